"""χ by component: against dense sums, a finite difference of the chain, devinterp's formula; resume and storage."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from patterning.core.errors import PatterningError
from patterning.core.store import RunFolder
from patterning.core.task import Task
from patterning.core.workers import Workers
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.models.restricted import Restricted
from patterning.posterior import sgld
from patterning.posterior.chains import ChainConfig, gaussian, minibatches
from patterning.posterior.preconditioned import RMSPropSGLD
from patterning.response import one_component
from patterning.response.components import COMPONENT_LOSS, ComponentResponse, component_response
from patterning.response.store import open_response, save_response, to_tree
from patterning.training.weighted import TrainConfig, advance, init_state, uniform_weights

CONFIG = LanguageConfig(vocabulary=7, context=6, layers=2, heads=2, width=8)
TOKENS = torch.randint(7, (16, 6), generator=torch.Generator().manual_seed(0))
KERNEL = sgld.SGLD(n_beta=30.0, localization=1000.0, step_size=2e-4)
CHAINS = ChainConfig(chains=4, draws=8, burn_in=3, steps_between_draws=2, batch_size=4, seed=5, matched=True)
ROWS = torch.tensor([3, 0, 9])


TASK = Task(LanguageModel(CONFIG), next_token_losses, TOKENS)
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
def sampled() -> ComponentResponse:
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


@pytest.mark.long
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
    chains = replace(CHAINS, chains=2, antithetic=True)
    found = component_response(TASK, start, ["l1h0"], loose, chains, probes=ROWS, batches=2, estimator="auto")
    assert found.by_component["l1h0"].estimator == "covariance"
    assert "not pathwise: " in found.by_component["l1h0"].note
    assert found.by_component["l1h0"].traces[COMPONENT_LOSS].shape == (CHAINS.draws, 4)  # none of them antithetic
    assert to_tree(found)["posterior"]["phi"].shape[:2] == (4, CHAINS.draws)


def test_resumed_and_stored_components_are_the_same(sampled, tmp_path: Path, monkeypatch) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    arguments = (TASK, ANCHOR, ["full", "l0h1", "l1 mlp"], KERNEL, CHAINS)
    with Workers(run, 1) as pool:
        first = component_response(*arguments, probes=ROWS, batches=2, pool=pool)
        monkeypatch.setattr(one_component, "sample_component", lambda _work: pytest.fail("sampled again"))
        again = component_response(*arguments, probes=ROWS, batches=2, pool=pool)
        with pytest.raises(pytest.fail.Exception):  # other settings are other work
            component_response(*arguments, probes=ROWS[:2], batches=2, pool=pool)
    for other in (first, again):
        np.testing.assert_array_equal(other.chi(), sampled.chi())
        np.testing.assert_array_equal(other.half_width(), sampled.half_width())
        np.testing.assert_array_equal(other.devinterp2()["l0h1"], sampled.devinterp2()["l0h1"])

    save_response(sampled, tmp_path / "chi.zarr")
    tree = open_response(tmp_path / "chi.zarr")
    chi = tree["susceptibility"]["chi"].sel(component="l0h1", observable=COMPONENT_LOSS)
    np.testing.assert_array_equal(chi, sampled.chi()[1])
    error = tree["susceptibility"]["standard_error"].sel(component="l0h1", observable=COMPONENT_LOSS)
    assert (tree["susceptibility"]["degrees_of_freedom"] == CHAINS.chains * 2 - 1).all()
    np.testing.assert_allclose(sampled.half_width(0.9)[1], 1.8946 * error, rtol=1e-4)  # t of 7
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
        ({"chains": replace(CHAINS, draws=3), "estimator": "pathwise"}, "3 draws a chain do not tell"),
        ({"probes": torch.tensor([16])}, "row numbers from 0 to 15"),
        ({"estimator": "guess"}, "'guess' is not one of"),
        ({"estimator": "covariance", "phi": "data"}, "as the pathwise estimator alone can"),
        ({"chains": replace(CHAINS, antithetic=True)}, "antithetic chains serve the pathwise estimator"),
        ({"estimator": "pathwise", "kernel": RMSPropSGLD(30.0, 100.0, 1e-4)}, "plain SGLD"),
        ({"loss_band": -1.0, "components": ["l1h0"]}, "chains diverged and χ needs 2"),
        ({"loss_band": -1.0, "components": ["l1h0"], "estimator": "pathwise"}, "chains diverged and χ needs 2"),
        (
            {
                "loss_band": -1.0,
                "components": ["l1h0"],
                "estimator": "pathwise",
                "chains": replace(CHAINS, antithetic=True),
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
