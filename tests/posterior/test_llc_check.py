"""Checks of λ̂ on bowls with known answers, on tilted ones, and on a reduced-rank regression beside exact sampling."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from zoo.double_well import double_well
from zoo.known import Copies, Floats
from zoo.linear_networks import LinearNetwork, anchor, aoyagi_watanabe
from zoo.quadratic import Bowl, Forms, QuadraticTask, chain_variance, quadratic_task
from zoo.reference import differentiable, hamiltonian, linear_loss
from zoo.singular import crossing_llc

from patterning.core.errors import PatterningError
from patterning.core.supervised import ModuleTask
from patterning.core.task import Task
from patterning.models.restricted import Restricted
from patterning.posterior.chains import ChainConfig
from patterning.posterior.llc_check import LLCCheck, check_llc, with_localization
from patterning.posterior.minimum import is_minimum
from patterning.posterior.preconditioned import RMSPropSGLD
from patterning.posterior.sgld import SGLD

COPIES = 25
CURVATURE = torch.tensor([1.0, 4.0, 0.0])


def bowls(centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> tuple[Copies, torch.Tensor]:
    """25 bowls side by side, two directions of each curved and one flat, and the point 0 to sample around."""
    return Copies(Bowl(CURVATURE, torch.tensor(centre)), COPIES), torch.zeros(3 * COPIES)


def of_chain(kernel: SGLD) -> float:
    """⟨nβ (L - L(w*))⟩ of the chain at its step size, all bowls together."""
    h = CURVATURE.numpy()
    variance = chain_variance(kernel.n_beta * h + kernel.localization, kernel.step_size)
    return COPIES * kernel.n_beta / 2 * float((h * variance).sum())


def names(check: LLCCheck, *, warnings: bool = True) -> list[str]:
    return [verdict.name for verdict in check.verdicts if verdict.warning == warnings]


CHAINS = ChainConfig(4, draws=60, burn_in=40, steps_between_draws=6, batch_size=4, seed=1)


def test_rows_are_the_closed_forms_at_every_setting() -> None:
    task, start = bowls()
    kernel = SGLD(n_beta=50.0, localization=20.0, step_size=5e-3)
    check = check_llc(task, start, kernel, CHAINS, localizations=(200.0, 20.0, 5.0))
    settings = [(row.localization, row.step_size, row.n_beta) for row in check.rows]
    assert settings == [(20.0, 5e-3, 50.0), (20.0, 2.5e-3, 50.0), (200.0, 1e-3, 50.0), (5.0, 5e-3, 50.0)]
    assert [row.chains.burn_in for row in check.rows] == [40, 80, 40, 160]
    assert [row.chains.steps_between_draws for row in check.rows] == [6, 12, 6, 24]
    for row in check.rows:
        exact = of_chain(SGLD(row.n_beta, row.localization, row.step_size))
        assert abs(row.coefficient - exact) < 4 * row.standard_error
        assert row.standard_error < 0.05 * row.coefficient
        assert row.rise == pytest.approx(row.coefficient / 50)
        assert row.component == "full"
    # ε λ / 4 is 0.28 at most: the step is seen, and so is γ
    assert names(check) == ["step size bias", "depends on localization"]
    bias, localization = (next(v.text for v in check.verdicts if v.name == name) for name in names(check))
    limit = float(bias.split("that says ")[1].split(" ±")[0])
    exact = of_chain(replace(kernel, step_size=1e-9))
    assert limit == pytest.approx(exact, rel=0.1)
    factor = float(localization.split(", ")[1].split(" times")[0])
    wide, tight = (of_chain(SGLD(50.0, gamma, step)) for gamma, step in ((5.0, 5e-3), (200.0, 1e-3)))
    assert factor == pytest.approx(wide / tight, rel=0.15)
    assert "γ 200" in localization
    assert "it has not levelled off" in localization
    text = str(check)
    assert "! full: step size bias" in text
    assert len(text.splitlines()) == 1 + 4 + len(check.verdicts)


@pytest.mark.long
def test_where_nothing_is_wrong_nothing_is_warned_of() -> None:
    task, start = bowls()
    kernel = SGLD(n_beta=1000.0, localization=10.0, step_size=4e-5)
    chains = replace(CHAINS, draws=30, burn_in=150, steps_between_draws=50)
    check = check_llc(task, start, kernel, chains, longest=1.0)
    assert check.warnings == []
    assert names(check, warnings=False) == ["step size", "depends on localization", "slope"]
    for row in check.rows:
        exact = of_chain(SGLD(row.n_beta, row.localization, row.step_size))
        assert abs(row.coefficient - exact) < 4 * row.standard_error
    assert check.rows[-1].coefficient == pytest.approx(COPIES, rel=0.06)  # λ: half of 2 directions
    assert "between γ 10 and 1 no change is seen" in str(check)
    level = check_llc(task, start, kernel, chains, longest=1.0, localizations=(1.0,), half_step=False)
    assert "no dependence on γ is seen" in str(level)


@pytest.mark.parametrize("centre", [(0.3, 0.0, 0.0), (0.0, 0.1, 0.0)])
def test_a_point_beside_the_minimum_is_named_and_so_is_what_its_slope_does(centre: tuple[float, float, float]) -> None:
    """A tilted quadratic: w* = 0 lies beside the minimum at `centre`, λ̂ is negative."""
    task, start = bowls(centre)
    kernel = SGLD(n_beta=300.0, localization=30.0, step_size=2e-4)
    check = check_llc(task, start, kernel, CHAINS, localizations=(), half_step=False)
    assert names(check) == ["slope", "negative"]
    h, c = CURVATURE.double().numpy(), np.array(centre)
    total = 300 * h + 30
    g = -h * c
    drop = COPIES * (300**2 / 2 * (g**2 / total + 30 * g**2 / total**2)).sum()
    expected = COPIES * (300 * h / 2 * chain_variance(total, 2e-4)).sum() - drop
    assert abs(check.rows[0].coefficient - expected) < 4 * check.rows[0].standard_error
    slope = check.slopes["full"]
    # the slope lies along one direction, where the lower bound is exact; the upper one is that of a flat direction
    assert slope.least_drop == pytest.approx(drop, rel=1e-4)
    assert slope.most_drop == pytest.approx(COPIES * 300**2 * (g**2).sum() / 30, rel=1e-4)
    assert slope.curvature == pytest.approx(h[np.argmax(np.abs(c))], rel=1e-4)
    assert "no minimum" in check.warnings[-1]


def test_the_bounds_of_the_drop_enclose_it_and_are_reached() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        root = rng.standard_normal((4, 4))
        forms = Forms((root @ root.T)[None], rng.standard_normal((1, 4)), np.zeros(1))
        n_beta, gamma = float(rng.uniform(1, 50)), float(rng.uniform(0.1, 50))
        slope = is_minimum(quadratic_task(forms, [1]), torch.zeros(4).double(), n_beta=n_beta, localization=gamma)
        g = forms.vectors[0]
        assert slope.gradient == pytest.approx(np.linalg.norm(g))
        assert slope.curvature == pytest.approx(g @ forms.matrices[0] @ g / (g @ g))
        drop = _coefficient(forms, n_beta, gamma) * -1
        drop += _coefficient(Forms(forms.matrices, np.zeros((1, 4)), np.zeros(1)), n_beta, gamma)
        assert slope.least_drop <= drop * (1 + 1e-9)
        assert drop <= slope.most_drop * (1 + 1e-9)
    flat = Forms(np.zeros((1, 2, 2)), np.array([[0.3, -0.4]]), np.zeros(1))
    slope = is_minimum(quadratic_task(flat, [1]), torch.zeros(2).double(), n_beta=10.0, localization=2.0)
    assert slope.least_drop == pytest.approx(-_coefficient(flat, 10.0, 2.0))
    assert slope.most_drop == pytest.approx(100 * 0.25 / 2)
    down = Forms(-np.eye(2)[None], np.array([[0.3, -0.4]]), np.zeros(1))
    assert math.isnan(
        is_minimum(quadratic_task(down, [1]), torch.zeros(2).double(), n_beta=10.0, localization=2.0).least_drop
    )


def _coefficient(forms: Forms, n_beta: float, gamma: float) -> float:
    """⟨nβ (L - L(0))⟩ exactly."""
    task = quadratic_task(forms, [1])
    size = forms.vectors.shape[1]
    law = task.posterior(np.ones(1), n_beta, gamma, np.zeros(size))
    return n_beta * float(forms.means(law)[0])


def test_the_slope_is_that_of_all_data_whatever_its_pieces() -> None:
    rng = np.random.default_rng(1)
    forms = Forms(np.stack([np.eye(2)] * 9), rng.standard_normal((9, 2)), np.zeros(9))
    task = quadratic_task(forms, range(1, 10))
    whole, pieces = (
        is_minimum(task, torch.zeros(2).double(), n_beta=3.0, localization=2.0, chunk=size) for size in (512, 4)
    )
    q = task.base_weights.numpy()
    assert whole.gradient == pytest.approx(np.linalg.norm(q @ forms.vectors))
    assert pieces.gradient == pytest.approx(whole.gradient)
    assert pieces.curvature == pytest.approx(whole.curvature) == pytest.approx(1)
    with pytest.raises(PatterningError, match=r"w\* holds \d+ NaN"):
        is_minimum(task, torch.full((2,), torch.nan), n_beta=3.0, localization=2.0)


def test_chains_that_are_not_settled_diverge_or_hold_two_states_are_named() -> None:
    task, start = bowls()
    slow = SGLD(n_beta=50.0, localization=5.0, step_size=2e-5)  # relaxation takes 400 steps and more
    check = check_llc(
        task, start, slow, replace(CHAINS, burn_in=0, steps_between_draws=2), localizations=(), half_step=False
    )
    assert "not settled" in names(check)
    assert "between the halves of the draws" in str(check)
    with np.errstate(all="ignore"):
        wild = check_llc(task, start, SGLD(50.0, 5.0, 0.1), CHAINS, localizations=(), half_step=True)
    assert "diverged" in names(wild)
    assert "step size bias" in names(wild)  # NaN against NaN is no agreement
    assert math.isnan(wild.rows[0].coefficient)
    assert "4 of 4 chains were left out" in str(wild)
    wells = check_llc(
        double_well(0.1, -0.04),
        torch.ones(1),
        SGLD(75.0, 0.5, 0.6 / 75),
        ChainConfig(4, 80, 50, 40, 4, seed=3),
        localizations=(),
        half_step=False,
    )
    assert "two states" in names(wells)
    assert "switches between two levels" in str(wells)
    assert wells.rows[0].two_state


def test_a_rise_out_of_band_is_named() -> None:
    task, start = bowls()
    # near ε λ = 4 the chain's variance is many times the posterior's
    kernel = SGLD(n_beta=50.0, localization=5.0, step_size=4 * 0.9 / 205)
    check = check_llc(task, start, kernel, CHAINS, localizations=(), half_step=False)
    assert check.rows[0].coefficient > 3 * COPIES / 2
    assert names(check) == ["rise out of band"]
    assert "above P/2 = 37.5" in str(check)
    fine = SGLD(50.0, 5.0, 1e-3)
    for band, expected in (((0.0, 1.0), []), ((0.0, 0.1), ["rise out of band"]), ((0.9, 1.0), ["rise out of band"])):
        banded = check_llc(task, start, fine, CHAINS, localizations=(), half_step=False, rise_band=band)
        assert names(banded) == expected


def test_the_step_is_shortened_where_the_localization_would_pull_too_hard() -> None:
    kernel = SGLD(30.0, 100.0, 1e-3)  # γε/2 = 0.05
    assert with_localization(kernel, 10.0, 0.1).step_size == 1e-3
    assert with_localization(kernel, 200.0, 0.1).step_size == 1e-3
    assert with_localization(kernel, 1000.0, 0.1).step_size == pytest.approx(2e-4)
    eager = SGLD(30.0, 100.0, 8e-3)  # 0.4 already
    assert with_localization(eager, 1000.0, 0.1).step_size == pytest.approx(8e-4)
    scaled = RMSPropSGLD(30.0, 100.0, 1e-4, damping=0.1)  # steps of ε / δ at most: 0.05
    assert with_localization(scaled, 1000.0, 0.1).step_size == pytest.approx(2e-5)
    assert with_localization(scaled, 1000.0, 0.1).localization == 1000.0


def test_other_samplers_components_and_probes() -> None:
    torch.manual_seed(0)
    x = torch.randn(24, 3)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    task = Task(net, lambda call, batch: (call(batch[0])[:, 0] - batch[1]) ** 2 / 2, (x, x.sum(1)))
    start, chains = task.flatten(net), ChainConfig(3, 10, 20, 3, 8, seed=0)
    kernel = RMSPropSGLD(30.0, 200.0, 1e-4)
    check = check_llc(task, start, kernel, chains, components=["0.*", "2.*"], localizations=(2000.0,))
    assert [row.component for row in check.rows] == ["0.*"] * 3 + ["2.*"] * 3
    assert list(check.slopes) == ["0.*", "2.*"]
    alone = check_llc(Restricted(task, start, "2.*"), Restricted(task, start, "2.*").anchor, kernel, chains,
                      localizations=(2000.0,))  # fmt: skip
    assert [row.coefficient for row in alone.rows] == [row.coefficient for row in check.rows[3:]]
    assert alone.rows[0].component == "2.*"
    some = check_llc(task, start, kernel, chains, probes=torch.arange(5), localizations=(), half_step=False)
    assert math.isfinite(some.rows[0].coefficient)
    assert some.rows[0].coefficient != check_llc(
        task, start, kernel, chains, localizations=(), half_step=False
    ).rows[0].coefficient  # fmt: skip


def test_settings_that_make_no_check_are_refused() -> None:
    task, start = bowls()
    kernel = SGLD(50.0, 20.0, 5e-3)
    with pytest.raises(PatterningError, match="γε/2 is 2: from 2 on"):
        check_llc(task, start, SGLD(50.0, 20.0, 0.2), CHAINS)
    with pytest.raises(PatterningError, match="1 chains of 60 draws"):
        check_llc(task, start, kernel, replace(CHAINS, chains=1))
    with pytest.raises(PatterningError, match="level is 95"):
        check_llc(task, start, kernel, CHAINS, level=95)
    with pytest.raises(PatterningError, match="a Copies has none"):
        check_llc(task, start, kernel, CHAINS, components=["full"])
    with pytest.raises(PatterningError, match=r"w\* holds \d+ NaN"):
        check_llc(task, start * torch.nan, kernel, CHAINS)
    net = nn.Linear(2, 1)
    module = ModuleTask(net, lambda output, y: (output[:, 0] - y) ** 2, torch.randn(8, 2), torch.randn(8))
    with pytest.raises(PatterningError, match="at least one"):
        check_llc(module, module.flatten(net), kernel, CHAINS, components=[])


# Reduced-rank regression beside exact sampling


def test_the_reference_sampler_knows_a_crossing_and_a_tilted_bowl() -> None:
    reference = hamiltonian(
        differentiable(lambda w: w.prod(1) ** 2 / 2), np.zeros(2), 100.0, 5.0,
        step=0.1, leaps=8, burn_in=30, draws=100, chains=200, seed=0,
    )  # fmt: skip
    value, error = reference.coefficient(100.0)
    assert abs(value - crossing_llc(100.0, 5.0)) < 3.5 * error
    assert error < 0.02
    forms = Forms(np.diag([1.0, 4.0])[None], np.array([[0.1, 0.2]]), np.zeros(1))
    task = quadratic_task(forms, [1])
    loss = differentiable(lambda w: task.losses(w, torch.zeros(len(w), 1, dtype=torch.int64))[:, 0])
    tilted = hamiltonian(
        loss, np.zeros(2), 20.0, 3.0,
        step=0.15, leaps=8, burn_in=30, draws=100, chains=200, seed=1,
    )  # fmt: skip
    value, error = tilted.coefficient(20.0)
    assert abs(value - _coefficient(forms, 20.0, 3.0)) < 3.5 * error
    assert 0.8 < tilted.acceptance < 1


def regression() -> tuple[LinearNetwork, torch.Tensor]:
    """4 → 3 → 4 at true rank 3: λ = 7.5."""
    start = anchor((4, 3, 4), 0).float()
    blank = LinearNetwork((4, 3, 4), torch.zeros(4, 4))
    return LinearNetwork((4, 3, 4), blank.product(start[None].double())[0]), start


def reference_coefficient(gamma: float, leaps: int) -> tuple[float, float]:
    task, start = regression()
    step = 0.6 / math.sqrt(400 + gamma) if gamma > 1 else 0.6 / math.sqrt(1200)
    found = hamiltonian(
        linear_loss(task), start.double().numpy(), 100.0, gamma,
        step=step, leaps=leaps, burn_in=40, draws=100, chains=200, seed=0,
    )  # fmt: skip
    return found.coefficient(100.0)


@pytest.mark.long
def test_sgld_gives_what_exact_sampling_gives_and_nears_the_coefficient_as_localization_falls() -> None:
    """The first as ε → 0, from two step sizes."""
    task, start = regression()
    limit, multiplicity = aoyagi_watanabe(4, 4, 3, 3)
    assert (limit, multiplicity) == (7.5, 1)
    copies = 64  # independent chains side by side, which cost little more than one; their λ̂ add
    reached: list[tuple[Floats, Floats]] = []
    for gamma, leaps, burn_in, between in ((100.0, 20, 200, 40), (10.0, 40, 800, 80), (1.0, 80, 3000, 200)):
        check = check_llc(
            Copies(task, copies),
            start.repeat(copies),
            SGLD(100.0, gamma, 4e-4),
            ChainConfig(4, 8, burn_in, between, 4, seed=2),
            localizations=(),
        )
        coarse, fine = ((row.coefficient / copies, row.standard_error / copies) for row in check.rows)
        extrapolated = 2 * fine[0] - coarse[0], math.hypot(2 * fine[1], coarse[1])
        exact = reference_coefficient(gamma, leaps)
        assert abs(extrapolated[0] - exact[0]) < 3.5 * math.hypot(extrapolated[1], exact[1])
        assert abs(fine[0] - exact[0]) < 3 * math.hypot(fine[1], exact[1]) + 0.02 * exact[0]
        assert not any(name in ("two states", "diverged", "negative") for name in names(check))
        reached.append((np.array(extrapolated), np.array(exact)))
    for i in (0, 1):  # by both samplers λ̂ grows towards λ as γ falls
        values = [row[i][0] for row in reached]
        assert values[0] < 0.7 * limit
        assert values[0] + 1 < values[1] < values[2]
        assert values[2] == pytest.approx(limit, rel=0.06)


def test_steps_are_counted() -> None:
    assert CHAINS.steps == 40 + 60 * 6
    assert isinstance(quadratic_task(Forms(np.eye(1)[None], np.zeros((1, 1)), np.zeros(1)), [1]), QuadraticTask)
