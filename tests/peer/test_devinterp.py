"""Parity with devinterp 2.0.1: the same chains on the same batches and noise, its susceptibility formula, its stores.

Needs the extra `peer` (pip install -e '.[dev,peer]'); skipped without it. float32, no dropout, unshuffled batches.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("devinterp")
pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own

import patterning as pt  # noqa: E402
from patterning.core.task import Task  # noqa: E402
from patterning.models.components import find_component  # noqa: E402
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses  # noqa: E402
from patterning.models.restricted import Restricted  # noqa: E402
from patterning.posterior import chains  # noqa: E402
from patterning.posterior.chains import ChainConfig, run_chains  # noqa: E402
from patterning.posterior.preconditioned import RMSPropSGLD  # noqa: E402
from patterning.posterior.sgld import SGLD  # noqa: E402
from patterning.response.components import COMPONENT_LOSS, component_response  # noqa: E402
from patterning.training.weighted import TrainConfig, advance, init_state, uniform_weights  # noqa: E402

CONFIG = LanguageConfig(vocabulary=13, context=8, layers=2, heads=2, width=8)
TOKENS = torch.randint(13, (32, 8), generator=torch.Generator().manual_seed(0))
TASK = Task(LanguageModel(CONFIG), next_token_losses, TOKENS)
TRAINING = TrainConfig(steps=200, batch_size=16, learning_rate=1e-2)
ANCHOR = advance(TASK, TRAINING, init_state(TASK, [0]), [0], uniform_weights(TASK), TRAINING.steps).flat[0]
SETTINGS = {"n_beta": 30.0, "localization": 300.0}
STEP, BATCH, CHAINS, DRAWS, BURN_IN, SEED = 1e-4, 4, 3, 12, 5, 100
NAMES = ("full", "l0h1", "l1h0", "l1 mlp", "unembed")


def peer_sample(name: str, **extra):
    """devinterp's tree for one component; two observables of the same rows, as its formula wants."""
    from datasets import Dataset
    from devinterp.slt.sampling import sample

    data = Dataset.from_dict({"input_ids": TOKENS.tolist()}).with_format("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sample(
            TASK.load(LanguageModel(CONFIG), ANCHOR), data, {"train": (data, 8), "probe": (data, 8)},
            lr=STEP, param_masks=dict(find_component(TASK.module, name).masks), num_chains=CHAINS,
            num_draws=DRAWS, batch_size=BATCH, num_burnin_steps=BURN_IN, num_init_loss_batches=8, shuffle=False,
            init_seed=SEED, device="cpu", **SETTINGS, **extra,
        )  # fmt: skip


@pytest.fixture
def same_batches_and_noise(monkeypatch: pytest.MonkeyPatch):
    """Our chains draw as devinterp does: rows in order, and the global generator's normals for whole parameters."""

    def batches(_cumulative, config: ChainConfig, _first: int, step: int) -> torch.Tensor:
        start = step * BATCH % len(TOKENS)
        return torch.arange(start, start + BATCH).expand(config.chains, -1)

    def use(name: str) -> None:
        parameters = dict(TASK.module.named_parameters())
        masks = find_component(TASK.module, name).masks
        generators = [torch.Generator().manual_seed(SEED + c) for c in range(CHAINS)]

        def noise(like: torch.Tensor, *_counter: int) -> torch.Tensor:
            rows = []
            for generator in generators:
                parts = []
                for parameter, mask in masks.items():
                    whole = torch.normal(0.0, 1.0, size=parameters[parameter].shape, generator=generator)
                    parts.append(whole.flatten() if mask is None else whole[mask])
                rows.append(torch.cat(parts))
            assert rows[0].shape == like.shape[1:]
            return torch.stack(rows)

        monkeypatch.setattr(chains, "gaussian", noise)

    monkeypatch.setattr(chains, "minibatches", batches)
    return use


def config() -> ChainConfig:
    return ChainConfig(CHAINS, DRAWS, BURN_IN, 1, BATCH, matched=True)


@pytest.mark.parametrize("name", NAMES)
def test_sgld_loss_traces_are_the_same(name: str, same_batches_and_noise) -> None:
    same_batches_and_noise(name)
    free = Restricted(TASK, ANCHOR, name)
    trace = run_chains(free, free.anchor, SGLD(step_size=STEP, **SETTINGS), config(), lambda _draw, _flat: None)
    theirs = peer_sample(name).dataset["sampling_loss_micro"].values.mean((2, 3))
    np.testing.assert_allclose(trace.losses.numpy().T, theirs, atol=1e-6, rtol=1e-6)


def test_rmsprop_sgld_loss_traces_are_the_same(same_batches_and_noise) -> None:
    """Theirs has no bias correction."""
    same_batches_and_noise("l1 mlp")
    free = Restricted(TASK, ANCHOR, "l1 mlp")
    kernel = RMSPropSGLD(step_size=STEP, decay=0.9, damping=0.1, bias_correction=False, **SETTINGS)
    trace = run_chains(free, free.anchor, kernel, config(), lambda _draw, _flat: None)
    tree = peer_sample("l1 mlp", sampling_method="rmsprop_sgld", rmsprop_alpha=0.9, rmsprop_eps=0.1)
    theirs = tree.dataset["sampling_loss_micro"].values.mean((2, 3))
    np.testing.assert_allclose(trace.losses.numpy().T, theirs, atol=1e-6, rtol=1e-6)


def test_the_devinterp2_formula_is_theirs(same_batches_and_noise) -> None:
    from devinterp.slt.susceptibilities import compute_susceptibilities

    trees = {name: peer_sample(name) for name in NAMES}
    found = compute_susceptibilities(trees, "train")["susceptibilities"].to_dataset()
    rows = torch.as_tensor(_probe_rows())
    for name in NAMES[1:]:
        by_name = {}
        for component in ("full", name):
            same_batches_and_noise(component)
            part = component_response(
                TASK, ANCHOR, [component], SGLD(step_size=STEP, **SETTINGS), config(), probes=rows, batches=2
            )
            by_name |= part.by_component
        ours = type(part)(**{**vars(part), "by_component": by_name}).devinterp2()[name]
        theirs = found["sus"].sel(wr=name).values
        np.testing.assert_allclose(ours, theirs.reshape(-1), atol=1e-6, rtol=1e-6)
        assert COMPONENT_LOSS in by_name[name].traces


def test_stores_that_devinterp_wrote_are_read(same_batches_and_noise, tmp_path: Path) -> None:
    """Of the same chains, our covariance has the same χ, errors, reliability and R-hat as what is read from theirs."""
    for name in ("full", "l1h0"):
        peer_sample(name, output_path=tmp_path / f"samples_{name}.zarr")
    read = pt.from_devinterp(tmp_path, TASK, phi="train")
    assert read.names == ("full", "l1h0")
    assert read.n_beta == SETTINGS["n_beta"]
    rows = _probe_rows()
    assert sorted(set(read.row.tolist())) == sorted(rows)
    for k, name in enumerate(read.names):
        same_batches_and_noise(name)
        ours = component_response(
            TASK, ANCHOR, [name], SGLD(step_size=STEP, **SETTINGS), config(), probes=torch.as_tensor(rows)
        )
        item = ours.by_component[name]
        own = item.susceptibility
        # theirs are float32 losses of 2 nats, written down; a chain's covariance is of their last digits
        np.testing.assert_allclose(read.chi[k], own.chi[0], atol=1e-6, rtol=1e-3)
        np.testing.assert_allclose(read.standard_error[k], own.standard_error[0], atol=1e-6, rtol=1e-2)
        assert read.reliability[name] == pytest.approx(own.reliability()[COMPONENT_LOSS], abs=0.02)
        assert read.r_hat[name] == pytest.approx(item.diagnostics[COMPONENT_LOSS].r_hat, rel=1e-3)
    assert read.invert({"l1h0": -1}).refused  # twelve draws of three chains are noise
    alone = pt.from_devinterp({"l1h0": tmp_path / "samples_l1h0.zarr"}, phi="train")
    np.testing.assert_allclose(alone.chi[0], read.chi[1], rtol=1e-9)  # rows in the order of the store
    assert np.array_equal(alone.data["tokens"].values, TOKENS[rows].numpy())


def test_the_table_that_devinterp_made_is_read_as_one_without_errors(tmp_path: Path) -> None:
    from devinterp.slt.susceptibilities import compute_susceptibilities

    table = compute_susceptibilities({name: peer_sample(name) for name in ("full", "l0h1")}, "train")
    table.to_zarr(tmp_path / "sus.zarr")
    for found in (pt.from_devinterp(table), pt.load(tmp_path / "sus.zarr")):
        assert found.rows_of == (("l0h1", "loss of the sampling task"),)
        theirs = table["susceptibilities"]["sus"].sel(wr="l0h1").values
        np.testing.assert_array_equal(found.chi[0], theirs)
        assert "(error unknown)" in str(found)
        assert "(error unknown)" in str(found.top(1)[0])
    with_task = pt.from_devinterp(table, TASK, n_beta=SETTINGS["n_beta"])
    rows = _probe_rows()
    assert with_task.row.tolist() == np.repeat(rows, 7).tolist()
    assert "is not known" in str(with_task.invert({with_task.names[0]: -1}))


def _probe_rows() -> list[int]:
    """The rows that devinterp evaluates, which it does not store."""
    import random

    return random.Random(1337).sample(range(len(TOKENS)), 32)
