"""χ and its neighbours with settings, scales and results that once gave a wrong number without a word."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo.quadratic import quadratic_task, random_forms

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.posterior.chains import ChainConfig, run_chains
from patterning.posterior.llc_check import check_llc
from patterning.posterior.preconditioned import RMSPropSGLD
from patterning.posterior.sgld import SGLD
from patterning.response.ensemble import ensemble_susceptibility
from patterning.response.first_order import first_order_susceptibility
from patterning.response.packing import pack, unpack
from patterning.response.retraining import split_weights, training_response
from patterning.response.sample import llc_observable, sample_response
from patterning.response.solution_responses import four_responses
from patterning.response.solutions import gap_direction, predict_shares
from patterning.response.susceptibility import Susceptibility
from patterning.training.weighted import TrainConfig, advance, init_state
from tests.faults.common import CHAINS, KERNEL, PAIRED, X, Y, chi, classify, linear_task, seeded

# First-order χ at any scale of the parameters


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("differenced", [False, True])
def test_first_order_is_right_at_any_scale_of_the_parameters(scale: float, differenced: bool, monkeypatch) -> None:
    """Cubic losses of u = w / scale, which a step of one length for all scales would miss."""
    rng = np.random.default_rng(0)
    a = torch.from_numpy(rng.standard_normal((12, 4)))
    q = torch.full((12,), 1 / 12, dtype=torch.float64)

    class Cubic:
        base_weights, draws = q, torch.arange(12)

        def losses(self, flat: Tensor, index: Tensor) -> Tensor:
            return ((a.to(flat)[index] * (flat / scale)[:, None]).sum(-1)) ** 3

    if differenced:

        def refuses(*_args, **_kwargs) -> None:
            raise NotImplementedError

        monkeypatch.setattr(torch.func, "jvp", refuses)
    u = torch.from_numpy(rng.standard_normal(4))
    phi = torch.from_numpy(rng.standard_normal(4))
    found = first_order_susceptibility(
        Cubic(), u * scale, {"phi": lambda flat: flat @ phi / scale}, localization=2.0  # type: ignore[arg-type]
    )  # fmt: skip
    slopes = 3 * (a @ u) ** 2 * (a @ phi) / scale**2
    wanted = (-(slopes - slopes @ q) / 2.0).numpy()
    tolerance = 1e-3 if differenced else 1e-9
    np.testing.assert_allclose(found[0], wanted, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("options", "observable", "message"),
    [
        ({"localization": 0.0}, lambda flat: flat.sum(1), "localization is 0"),
        ({"localization": math.nan}, lambda flat: flat.sum(1), "localization is nan"),
        ({}, lambda flat: flat.detach().sum(1), "has no gradient in the parameters"),
        ({}, lambda flat: flat, "gave \\(1, 3\\) for 1 replica"),
        ({"step": -1.0}, lambda flat: flat.sum(1), "step is -1"),
    ],
)
def test_what_has_no_first_order_is_refused(options, observable, message: str) -> None:
    task = quadratic_task(random_forms(0, 4, 3), [1, 1, 1, 1])
    with pytest.raises(PatterningError, match=message):
        first_order_susceptibility(task, torch.ones(3), {"phi": observable}, **{"localization": 1.0, **options})


# A rise that float32 cannot tell


def shifted(constant: float) -> Task:
    return Task(seeded(nn.Linear(6, 3)), lambda call, b: classify(call, b) + constant, (X, Y))


@pytest.mark.filterwarnings("ignore")
def test_a_rise_below_the_resolution_of_the_loss_is_named() -> None:
    kernel = SGLD(30, 1e4, 1e-5)
    clear, drowned = (chi(shifted(constant), kernel=kernel).by_component["full"] for constant in (0.0, 4e3))
    assert not any("rounding" in why for why in clear.warnings)
    assert any("float32 of the size of the loss lie 0.00048 apart" in why for why in drowned.warnings)
    task = shifted(4e3)
    options = {"half_step": False, "localizations": (), "loss_band": math.inf}
    checks = [check_llc(each, each.own_row(), kernel, CHAINS, **options) for each in (shifted(0.0), task)]
    assert ["rounding" in [verdict.name for verdict in check.verdicts] for check in checks] == [False, True]
    found = sample_response(task, task.own_row(), {"llc": llc_observable(task, task.own_row(), 30)}, kernel, CHAINS)
    assert any("rounding" in why for why in found.warnings)


# Reliability of few samples


def of_chains(chains: np.ndarray) -> Susceptibility:
    """χ of one row from chains (c, n)."""
    c, n = chains.shape
    halves = np.stack([chains[0::2].mean(0), chains[1::2].mean(0)])[:, None]
    error = chains.std(0, ddof=1)[None] / np.sqrt(c)
    q = np.full(n, 1 / n)
    mean = chains.mean(0)[None]
    return Susceptibility(("phi",), 1.0, q, mean, error, c - 1, halves, q, q, chains[:, None])


@pytest.mark.parametrize("n", [2, 3, 7])
def test_noise_on_few_samples_is_not_reliable_and_a_signal_is(n: int) -> None:
    rng = np.random.default_rng(n)
    values = []
    for _ in range(400):
        noise = rng.standard_normal((4, n))
        values.append(of_chains(noise - noise.mean(1, keepdims=True)).reliability()["phi"])
    assert np.mean(np.array(values) > 0) < 0.08
    assert max(values) < 1
    signal = 50 * (np.arange(n) - (n - 1) / 2) + rng.standard_normal((4, n))
    assert 0.9 < of_chains(signal).reliability()["phi"] < 1
    assert math.isnan(of_chains(signal).reliability(np.arange(n) == 0)["phi"])
    with pytest.raises(PatterningError, match="no sample is free"):
        of_chains(signal).reliability(np.zeros(n, dtype=bool))


def test_two_probed_rows_say_how_their_reliability_was_made() -> None:
    found = chi(linear_task(), probes=torch.arange(2)).by_component["full"]
    assert found.susceptibility.reliability()["component loss"] < 1
    assert "a lower bound from errors over chains: 2 samples are few" in found.note
    assert "few" not in chi(linear_task(), probes=torch.arange(16)).by_component["full"].note


# The four responses need φ of their own samples and the kernel of their chains


def at_anchor_of(task: Task, rows: Tensor) -> np.ndarray:
    return task.losses(task.own_row()[None], rows[None])[0].double().numpy()


def test_four_responses_take_pathwise_results_of_their_own_samples_alone() -> None:
    task, rows = linear_task(), torch.arange(20)
    options = {"chains": PAIRED, "estimator": "pathwise", "probes": rows}
    own = chi(task, phi=rows.flip(0), **options).by_component["full"]
    assert own.phi == "probes"
    losses = at_anchor_of(task, rows)
    good = four_responses(own, KERNEL, at_anchor=losses)
    assert np.isfinite(good.llc_total.values).all()
    other = chi(task, phi=torch.arange(64, 128), **options).by_component["full"]
    assert unpack(pack(other)).phi == "rows"
    assert unpack(pack(other)).kernel == KERNEL
    with pytest.raises(PatterningError, match="φ was read on other rows than the sampled ones"):
        four_responses(other, KERNEL, at_anchor=losses)
    with pytest.raises(PatterningError, match="at_anchor are not the losses at this w"):
        four_responses(own, KERNEL, at_anchor=losses + 1)
    mine = {"w": lambda flat: flat.square().sum(1)}
    alone = chi(task, observables=mine, component_loss=False, **options).by_component["full"]
    with pytest.raises(PatterningError, match="no observable is known to be L"):
        four_responses(alone, KERNEL, at_anchor=losses)


@pytest.mark.parametrize("kernel", [SGLD(30, 50, 1e-3), SGLD(30, 100, 5e-4), RMSPropSGLD(30, 100, 1e-3)])
def test_four_responses_know_the_kernel_of_their_chains(kernel) -> None:
    found = chi(linear_task()).by_component["full"]
    four_responses(found, KERNEL)
    with pytest.raises(PatterningError, match=r"the chains ran with SGLD\(n_beta=30.0, localization=100.0, .*not with"):
        four_responses(found, kernel)


# Numbers that depend on the sum of the base weights, or on values that are none


def test_base_weights_count_by_their_ratios() -> None:
    rng = np.random.default_rng(0)
    losses, outcome = rng.standard_normal((20, 5)), rng.standard_normal(20)
    q = np.arange(1.0, 6)
    one, other = (ensemble_susceptibility("phi", outcome, losses, weights) for weights in (q, q / q.sum()))
    np.testing.assert_allclose(one.chi, other.chi)
    np.testing.assert_allclose(one.chi @ (q / q.sum()), 0, atol=1e-12)
    means, shares = rng.standard_normal((3, 5)), np.array([0.5, 0.3, 0.2])
    np.testing.assert_allclose(gap_direction(means, shares, 1, q), gap_direction(means, shares, 1, q / q.sum()))
    rho = rng.random(5)
    np.testing.assert_allclose(
        predict_shares(shares, means, rho, q, 3.0), predict_shares(shares, means, rho, q / q.sum(), 3.0)
    )


GROUPS = np.array([0, 0, 1, 1, -1])
ONES = np.ones((3, 2, 5))


def design(**changes) -> tuple[np.ndarray, np.ndarray]:
    signs = np.array([[1.0, -1], [-1, 1], [1, -1]])
    rho = np.stack([[split_weights(s * sign, GROUPS, np.full(5, 0.2), 0.3) for sign in (1, -1)] for s in signs])
    return np.array([[1.0, 0], [0, 1.1], [0.9, 0]]), rho


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o, r: training_response(o * np.nan, r, GROUPS, np.ones(5)), "an outcome is NaN"),
        (lambda o, r: training_response(o, r * (np.arange(5) > 0), GROUPS, np.ones(5)), "group 0 are not all finite"),
        (lambda o, r: training_response(o, r * np.linspace(1, 2, 5), GROUPS, np.ones(5)), "differ within group 0"),
        (lambda o, r: training_response(o, r, np.array([0, 0, 2, 2, -1]), np.ones(5)), "no members"),
        (lambda o, r: training_response(o, r[:2], GROUPS, np.ones(5)), "are not \\(pairs, 2\\)"),
        (lambda o, r: ensemble_susceptibility("phi", np.full(8, np.nan), np.ones((8, 2)), np.ones(2)), "NaN or inf"),
        (lambda o, r: ensemble_susceptibility("phi", np.ones(8), np.ones((8, 2)), -np.ones(2)), "finite numbers >= 0"),
        (lambda o, r: gap_direction(np.ones((2, 3)), np.ones(2), -1, np.ones(3)), "target is -1"),
        (lambda o, r: gap_direction(np.ones((2, 3)), -np.ones(2), 1, np.ones(3)), "shares must be 2"),
        (lambda o, r: RMSPropSGLD(30, 100, 1e-3, decay="0.9"), "decay is '0.9'"),
        (lambda o, r: RMSPropSGLD(30, 100, 1e-3, damping=True), "damping is True"),
        (lambda o, r: ChainConfig(2, 8, 4, 2, 8, matched="no"), "matched is 'no'"),
        (lambda o, r: TrainConfig(4, learning_rate="1e-3"), "learning_rate is '1e-3'"),
        (lambda o, r: of_chains(np.ones((2, 9))).row("loss"), "χ has no row 'loss': it has phi"),
        (lambda o, r: chi(linear_task()).reliability("loss"), "χ has no row 'loss': it has component loss"),
        (lambda o, r: chi(linear_task()).half_width(observable="loss"), "χ has no row 'loss'"),
    ],
)
def test_what_has_no_number_is_one_sentence(call, message: str) -> None:
    outcomes, rho = design()
    assert training_response(outcomes, rho, GROUPS, np.ones(5)).pairs == 3
    with pytest.raises(PatterningError, match=message):
        call(outcomes, rho)


def test_parameters_and_weights_that_carry_a_graph_are_taken_as_numbers() -> None:
    task = linear_task()
    row = task.own_row()
    traces = [
        run_chains(task, anchor, KERNEL, replace(CHAINS, draws=2), lambda *_: None).losses
        for anchor in (row, row.clone().requires_grad_())
    ]
    torch.testing.assert_close(*traces, rtol=0, atol=0)
    assert not traces[1].requires_grad
    state = init_state(task, [0, 1])
    rho = torch.linspace(0.5, 1.5, 128)
    config = TrainConfig(4, 32)
    ends = [
        advance(task, config, start, [0, 1], weights, 4).flat
        for start, weights in (
            (state, rho),
            (replace(state, flat=state.flat.clone().requires_grad_()), rho.clone().requires_grad_()),
            (state, rho.numpy()),
        )
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    torch.testing.assert_close(ends[0], ends[2], rtol=0, atol=0)
    with pytest.raises(PatterningError, match="1 seeds for 2 replicas"):
        advance(task, config, state, [0], rho, 4)
    with pytest.raises(PatterningError, match="weights for 3 replicas"):
        advance(task, config, state, [0, 1], torch.ones(3, 128), 4)
