"""χ by component: against dense sums, a finite difference of the chain, devinterp's formula; resume and storage."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from patterning.errors import PatterningError
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.models.module import LossTask
from patterning.models.restricted import Probe, Restricted
from patterning.posterior import sgld
from patterning.posterior.chains import ChainConfig, gaussian, minibatches
from patterning.posterior.preconditioned import RMSPropSGLD
from patterning.response import components, pathwise
from patterning.response.components import COMPONENT_LOSS, component_response
from patterning.response.pathwise import pathwise_chains
from patterning.response.store import open_response, save_response, to_tree
from patterning.store import RunFolder
from patterning.training.weighted import TrainConfig, advance, init_state, uniform_weights
from patterning.workers import Workers

CONFIG = LanguageConfig(vocabulary=7, context=6, layers=2, heads=2, width=8)
TOKENS = torch.randint(7, (16, 6), generator=torch.Generator().manual_seed(0))
KERNEL = sgld.SGLD(n_beta=30.0, localization=1000.0, step_size=2e-4)
CHAINS = ChainConfig(chains=4, draws=8, burn_in=3, steps_between_draws=2, batch_size=4, seed=5, matched=True)
ROWS = torch.tensor([3, 0, 9])


TASK = LossTask(LanguageModel(CONFIG), next_token_losses, TOKENS)
TRAINING = TrainConfig(steps=400, batch_size=16, learning_rate=1e-2)
ANCHOR = advance(TASK, TRAINING, init_state(TASK, [0]), [0], uniform_weights(TASK), TRAINING.steps).flat[0]


def draws_of(name: str, kernel: sgld.SGLD = KERNEL, config: ChainConfig = CHAINS) -> np.ndarray:
    """Probe losses at every draw, (draws, chains, n), by the plain formula on the whole model."""
    free = Restricted(TASK, ANCHOR, name)
    cumulative = np.cumsum(TASK.base_weights.numpy())
    state, found = sgld.init(free.anchor, config.chains), []
    for step in range(config.burn_in + config.draws * config.steps_between_draws):
        whole = free.expand(state.position).requires_grad_()
        (slope,) = torch.autograd.grad(
            TASK.losses(whole, minibatches(cumulative, config, 0, step)).mean(1).sum(), whole
        )
        moved = (free.expand(free.anchor[None] + 1) != ANCHOR)[0]
        state = sgld.update(state, slope[:, moved], gaussian(state.position, config.seed, 0, step), kernel)
        if step >= config.burn_in and (step - config.burn_in + 1) % config.steps_between_draws == 0:
            with torch.no_grad():
                found.append(TASK.sample_losses(free.expand(state.position), ROWS.expand(config.chains, -1)))
    return torch.stack(found).double().numpy()


@pytest.fixture(scope="module")
def sampled() -> components.ComponentResponse:
    return component_response(TASK, ANCHOR, ["full", "l0h1", "l1 mlp"], KERNEL, CHAINS, probes=ROWS, batches=2)


@pytest.mark.parametrize("name", ["full", "l0h1", "l1 mlp"])
def test_chains_of_a_component_are_those_of_the_whole_model_with_the_rest_clamped(name, sampled) -> None:
    losses = draws_of(name)
    phi = losses.mean(2) - TASK.sample_losses(ANCHOR[None], ROWS[None]).double().mean().item()
    np.testing.assert_allclose(sampled.by_component[name].traces[COMPONENT_LOSS], phi, atol=2e-5)
    assert sampled.rows.tolist() == np.repeat(ROWS.numpy(), 5).tolist()
    assert sampled.positions.tolist() == [0, 1, 2, 3, 4] * 3


@pytest.mark.parametrize("name", ["l0h1", "l1 mlp"])
def test_devinterp2_is_its_formula_on_the_stored_draws(name, sampled) -> None:
    full, own = draws_of("full"), draws_of(name)
    phi = own.mean(2) - TASK.sample_losses(ANCHOR[None], ROWS[None]).double().mean().item()
    mean, sample = own.mean(2), own
    baseline = full.mean() - full.mean((0, 1))
    expected = (phi * mean).mean() - (phi[..., None] * sample).mean((0, 1)) - phi.mean() * baseline
    np.testing.assert_allclose(sampled.devinterp2()[name], expected, atol=1e-6)


class Line(nn.Module):
    """Two weights, one loss each: a quadratic with curvature x²."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.3]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def cubic_losses(call, batch):
    """Not a quadratic, so that the response has all its terms."""
    error = call(batch[0]) - batch[1]
    return error**2 / 2 + error**3 / 20


LINE_X, LINE_Y = (torch.randn(*shape, generator=torch.Generator().manual_seed(3)) for shape in ((8, 2), (8,)))
LINE = LossTask(Line(), cubic_losses, (LINE_X, LINE_Y))
LINE_KERNEL = sgld.SGLD(n_beta=20.0, localization=10.0, step_size=0.01)
LINE_Q = np.full(8, 1 / 8)


def line_response(config: ChainConfig, kernel: sgld.SGLD = LINE_KERNEL, **settings) -> np.ndarray:
    """Pathwise χ (chains, 8) of all 8 samples."""
    free = Restricted(LINE, LINE.flatten(LINE.module), "full")
    probe = Probe(free, torch.arange(8), config.replicas)
    return pathwise_chains(free, probe, LINE_Q, kernel, config, **settings).chi


def mean_phi(config: ChainConfig, i: int, h: float, read_after: int) -> np.ndarray:
    """Mean L (chains,) over the 20 positions from `read_after` on, in chains whose drift is moved by h nβ ∇(ℓ_i - L).

    The same noise and minibatches, in plain float64.
    """
    state = sgld.init(LINE.flatten(LINE.module).double(), config.chains)
    phi = np.zeros(config.chains)
    for step in range(31):
        w = state.position.detach().requires_grad_()
        error = w @ LINE_X.double().T - LINE_Y.double()
        loss = error**2 / 2 + error**3 / 20  # (r, n)
        if read_after <= step < read_after + 20:
            phi += loss.detach().mean(1).numpy() / 20
        index = minibatches(np.cumsum(LINE_Q), config, 0, step)
        total = loss.gather(1, index).mean(1) + h * (loss[:, i] - loss.mean(1))
        (slope,) = torch.autograd.grad(total.sum(), w)
        noise = gaussian(torch.zeros(config.chains, 2), config.seed, 0, step).double()
        state = sgld.update(state, slope, noise, LINE_KERNEL)
    return phi


@pytest.mark.parametrize(("phi", "batch", "first"), [("probes", 2, 11), ("data", 8, 10)])
def test_pathwise_is_the_derivative_of_the_chain_itself(phi, batch, first) -> None:
    """Against a finite difference of ⟨φ⟩; with minibatches of all the data, φ read off them is φ itself."""
    config = ChainConfig(chains=3, draws=20, burn_in=10, steps_between_draws=1, batch_size=batch, seed=1)
    chi = line_response(config, phi=phi)
    for i in (0, 5):
        expected = (mean_phi(config, i, 1e-4, first) - mean_phi(config, i, -1e-4, first)) / 2e-4 / LINE_KERNEL.n_beta
        np.testing.assert_allclose(chi[:, i], expected, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(chi @ LINE_Q, 0, atol=1e-9)


def test_phi_read_off_minibatches_is_unbiased() -> None:
    """The same chains with φ read on all the data at every step, and off the two rows of each minibatch."""
    config = ChainConfig(chains=400, draws=20, burn_in=10, steps_between_draws=1, batch_size=2, seed=1)
    found = line_response(config, phi="data")
    for i in (0, 5):
        truth = (mean_phi(config, i, 1e-4, 10) - mean_phi(config, i, -1e-4, 10)) / 2e-4 / LINE_KERNEL.n_beta
        error = found[:, i] - truth
        assert abs(error.mean()) < 3 * error.std() / 20
        assert error.std() / 20 < 0.15 * abs(truth.mean())


@pytest.mark.parametrize("matched", [False, True])
@pytest.mark.parametrize("phi", ["probes", "data"])
def test_a_mirrored_chain_is_the_mean_of_a_chain_and_one_of_opposite_noise(phi, matched, monkeypatch) -> None:
    config = ChainConfig(chains=3, draws=6, burn_in=4, steps_between_draws=1, batch_size=2, seed=1, matched=matched)
    found = line_response(replace(config, mirrored=True), phi=phi)
    plain = line_response(config, phi=phi)
    monkeypatch.setattr(pathwise, "gaussian", lambda *arguments: -gaussian(*arguments))
    opposite = line_response(config, phi=phi)
    np.testing.assert_allclose(found, (plain + opposite) / 2, rtol=1e-5, atol=1e-7)
    assert np.abs(plain - opposite).max() > 0.1 * np.abs(found).max()


def test_mirrored_chains_have_less_variance_than_twice_as_many() -> None:
    """Away from a minimum φ has a slope, and what is odd in the noise is most of the error."""
    config = ChainConfig(chains=200, draws=20, burn_in=10, steps_between_draws=1, batch_size=8, seed=1)
    plain, mirrored = line_response(config), line_response(replace(config, mirrored=True))
    error = plain.std(0, ddof=1) / np.sqrt(2)  # of two chains
    assert (mirrored.std(0, ddof=1) < 0.7 * error).mean() > 0.7
    assert np.abs((mirrored.mean(0) - plain.mean(0)) / (plain.std(0) / np.sqrt(200))).max() < 4


def test_one_derivative_for_several_steps_is_unbiased(monkeypatch) -> None:
    """χ of eight steps between draws, against a derivative of the probe at every step: the same chains."""
    kernel = sgld.SGLD(n_beta=20.0, localization=30.0, step_size=0.01)  # takes 0.15 off λ at each step
    config = ChainConfig(chains=400, draws=5, burn_in=16, steps_between_draws=8, batch_size=8, seed=1)

    found = {}
    for steps in (1, 4, 8):
        monkeypatch.setattr(pathwise, "steps_at_once", lambda *_, steps=steps: steps)
        found[steps] = line_response(config, kernel)
    for steps in (4, 8):
        error = found[steps] - found[1]
        assert np.abs(error.mean(0) / (error.std(0) / np.sqrt(len(error)))).max() < 4
        assert error.std() > 0
        assert error.var(0).sum() < (steps / 12) ** 2 * found[1].var(0).sum()


def test_pieces_cover_every_step_once_and_span_no_draw() -> None:
    kernel = replace(LINE_KERNEL, localization=30.0)  # takes 0.15 off λ at each step
    assert [pathwise.steps_at_once(kernel, every) for every in (1, 4, 5, 8, 9)] == [1, 4, 3, 4, 3]
    config = ChainConfig(chains=3, draws=4, burn_in=7, steps_between_draws=5, batch_size=2, seed=1, mirrored=True)
    pieces = list(pathwise._pieces(config, kernel, 27, 0))
    assert [k for piece, _ in pieces for k in piece] == list(range(27, 0, -1))
    for piece, phase in pieces:
        assert not {12, 17, 22} & set(piece[1:])  # a draw is the first of its piece
        assert phase.shape == (3,)
    later = list(pathwise._pieces(replace(config, chains=1), kernel, 27, 2))
    assert [phase[0] for _, phase in later] == [phase[2] for _, phase in pieces]
    many = np.array([phase for _, phase in pathwise._pieces(replace(config, draws=400), kernel, 2007, 0)])
    np.testing.assert_allclose((many < 0.3).mean(0), 0.3, atol=0.01)


def test_the_step_that_stands_for_a_piece_is_unbiased_and_shared_by_a_mirror_image() -> None:
    rng = torch.Generator().manual_seed(0)
    positions, adjoints = torch.randn(3, 4, 2, generator=rng), torch.randn(3, 4, 2, generator=rng)
    adjoints[1] *= 5
    total, grid = torch.zeros(4), (np.arange(2000) + 0.5) / 2000
    for x in grid:
        at, along = pathwise._stand_in(positions, adjoints, np.array([x, (x + 0.5) % 1]))
        total += (at * along).sum(1) / len(grid)
        steps = [[int((positions[:, r] == at[r]).all(1).nonzero()[0]) for r in pair] for pair in ((0, 2), (1, 3))]
        assert all(one == other for one, other in steps)
    torch.testing.assert_close(total, (positions * adjoints).sum((0, 2)), rtol=0.02, atol=0.02)
    at, along = pathwise._stand_in(positions, torch.zeros_like(adjoints), np.array([0.2, 0.9]))
    assert torch.equal(along, torch.zeros(4, 2))
    assert torch.equal(at[0], positions[0, 0])


def test_pathwise_agrees_with_the_covariance_of_many_draws() -> None:
    chains = replace(CHAINS, chains=16, draws=200, burn_in=40, steps_between_draws=2, batch_size=16)
    many = component_response(TASK, ANCHOR, ["l1h0"], KERNEL, chains, probes=ROWS)
    few = component_response(
        TASK, ANCHOR, ["l1h0"], KERNEL, replace(chains, chains=8, draws=20), probes=ROWS, estimator="auto"
    )
    z = (many.chi() - few.chi()) / np.hypot(many.standard_error(), few.standard_error())
    assert np.sqrt((z**2).mean()) < 2
    assert np.corrcoef(many.chi()[0], few.chi()[0])[0, 1] > 0.8
    assert few.reliability()["l1h0"] > 0.8
    assert few.by_component["l1h0"].estimator == "pathwise"


def test_rounds_go_on_until_reliable_and_say_why_they_stopped() -> None:
    def notes(**settings) -> tuple[str, int]:
        found = component_response(TASK, ANCHOR, ["l1h0"], KERNEL, CHAINS, probes=ROWS, batches=2, **settings)
        own = found.by_component["l1h0"]
        return own.note, own.traces[COMPONENT_LOSS].shape[1]

    note, chains = notes(reliability=0.999, rounds=3)
    assert note.startswith("budget of 3 round(s) used, reliability")
    assert chains == 12
    note, chains = notes(reliability=0.001, rounds=20, estimator="pathwise")
    assert "reached after" in note
    assert chains < 80


def test_rounds_are_new_chains() -> None:
    """Two rounds of two are four chains: each has its own noise, whatever round it runs in."""
    two = replace(CHAINS, chains=2)
    for estimator in ("covariance", "pathwise"):
        rounds = component_response(
            TASK, ANCHOR, ["l1h0"], KERNEL, two, probes=ROWS, batches=2, rounds=2, estimator=estimator
        )
        once = component_response(TASK, ANCHOR, ["l1h0"], KERNEL, CHAINS, probes=ROWS, batches=2, estimator=estimator)
        np.testing.assert_allclose(rounds.chi(), once.chi(), atol=1e-5)


def test_auto_leaves_pathwise_where_steps_do_not_contract() -> None:
    start = TASK.init([1])[0] * 8  # no minimum: curvature is negative along some directions
    loose = replace(KERNEL, localization=1.0, n_beta=300.0)
    chains = replace(CHAINS, chains=2, mirrored=True)
    found = component_response(TASK, start, ["l1h0"], loose, chains, probes=ROWS, batches=2, estimator="auto")
    assert found.by_component["l1h0"].estimator == "covariance"
    assert "do not contract" in found.by_component["l1h0"].note
    assert found.by_component["l1h0"].traces[COMPONENT_LOSS].shape == (CHAINS.draws, 4)  # none of them mirrored
    assert to_tree(found)["posterior"]["phi"].shape[:2] == (4, CHAINS.draws)


def test_resumed_and_stored_components_are_the_same(sampled, tmp_path: Path, monkeypatch) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    arguments = (TASK, ANCHOR, ["full", "l0h1", "l1 mlp"], KERNEL, CHAINS)
    with Workers(run, 1) as pool:
        first = component_response(*arguments, probes=ROWS, batches=2, pool=pool)
        monkeypatch.setattr(components, "sample_component", lambda _work: pytest.fail("sampled again"))
        again = component_response(*arguments, probes=ROWS, batches=2, pool=pool)
        with pytest.raises(pytest.fail.Exception):  # other settings are other work
            component_response(*arguments, probes=ROWS[:2], batches=2, pool=pool)
    for other in (first, again):
        np.testing.assert_array_equal(other.chi(), sampled.chi())
        np.testing.assert_array_equal(other.standard_error(), sampled.standard_error())
        np.testing.assert_array_equal(other.devinterp2()["l0h1"], sampled.devinterp2()["l0h1"])

    save_response(sampled, tmp_path / "chi.zarr")
    tree = open_response(tmp_path / "chi.zarr")
    chi = tree["susceptibility"]["chi"].sel(component="l0h1", observable=COMPONENT_LOSS)
    np.testing.assert_array_equal(chi, sampled.chi()[1])
    assert chi["row"].values.tolist() == sampled.rows.tolist()
    assert tree["posterior"]["phi"].dims == ("chain", "draw", "component", "observable")
    settings = tree["susceptibility"].attrs
    assert settings["phi_of"] == "probes"
    assert (settings["n_beta"], settings["localization"], settings["estimator"]) == (30.0, 1000.0, "covariance")
    with pytest.raises(PatterningError, match="exists"):
        save_response(sampled, tmp_path / "chi.zarr")
    with pytest.raises(PatterningError, match="holds no susceptibilities"):
        open_response(tmp_path / "run")


def test_worker_processes_and_unmatched_chains_change_nothing_that_they_should_not(sampled, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create()
    with Workers(run, 2) as pool:
        found = component_response(TASK, ANCHOR, ["full", "l0h1"], KERNEL, CHAINS, probes=ROWS, batches=2, pool=pool)
    np.testing.assert_allclose(found.chi(), sampled.chi()[:2], atol=1e-9)


def test_other_observables_and_the_other_sampler() -> None:
    phis = {"norm": lambda flat: flat.norm(dim=1)}
    kernel = RMSPropSGLD(n_beta=30.0, localization=100.0, step_size=1e-4)
    found = component_response(TASK, ANCHOR, ["l0h0"], kernel, CHAINS, probes=ROWS, observables=phis, batches=2)
    assert found.chi("norm").shape == (1, 15)
    norm = found.by_component["l0h0"].traces["norm"]
    assert 0 < np.ptp(norm) < 1
    assert norm.mean() == pytest.approx(float(ANCHOR.norm()), rel=0.1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"components": []}, "at least one"),
        ({"components": ["l0h0", "l0h0"]}, "named once"),
        ({"chains": replace(CHAINS, chains=1)}, "1 chain gives no error bar"),
        ({"probes": torch.tensor([16])}, "row numbers from 0 to 15"),
        ({"estimator": "guess"}, "'guess' is not one of"),
        ({"estimator": "auto", "phi": "data"}, "as the pathwise estimator alone can"),
        ({"chains": replace(CHAINS, mirrored=True)}, "mirrored chains serve the pathwise estimator"),
        ({"estimator": "pathwise", "kernel": RMSPropSGLD(30.0, 100.0, 1e-4)}, "plain SGLD"),
        ({"loss_band": -1.0, "components": ["l1h0"]}, "chains diverged and χ needs 2"),
        ({"loss_band": -1.0, "components": ["l1h0"], "estimator": "pathwise"}, "chains diverged and χ needs 2"),
        (
            {
                "loss_band": -1.0,
                "components": ["l1h0"],
                "estimator": "pathwise",
                "chains": replace(CHAINS, mirrored=True),
            },
            "chains diverged and χ needs 2",
        ),
    ],
)
def test_what_is_wrong_is_said(change: dict, says: str) -> None:
    settings = {"components": ["full"], "kernel": KERNEL, "chains": CHAINS, "probes": ROWS} | change
    with pytest.raises(PatterningError, match=says):
        component_response(TASK, ANCHOR, **settings)


def test_devinterp2_needs_the_full_model() -> None:
    found = component_response(TASK, ANCHOR, ["l0h0"], KERNEL, CHAINS, probes=ROWS, batches=2)
    with pytest.raises(PatterningError, match="needs the component 'full'"):
        found.devinterp2()
