"""What the workers of the parentheses experiment run: train some replicas, sample one chain, calibrate a sampler.

Each function takes plain values and arrays and returns arrays, so that its result can be found again by a hash.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save

from patterning.core.store import Arrays, write_whole
from patterning.posterior.calibrate import calibrate
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response.first_order import first_order_susceptibility
from patterning.response.sample import DifferentiableObservable, Draws, Observable, llc_observable, sample_draws
from patterning.tasks.parentheses import CONSTANT_LOSS, Parentheses, Strings, make_parentheses
from patterning.training.weighted import TrainConfig, TrainState, advance, init_state

SAVE_EVERY = 1000
"""Steps of training between saved states: what a killed run can lose of one unit."""

LOSS_BAND = CONSTANT_LOSS
"""Past the constant predictor's loss a chain has left the solution, whatever it does afterwards."""

OBSERVABLES = ("llc", "ood_loss", "true_loss", "false_loss")
"""nβ (L(w) - L(w*)); mean loss on the OOD set, and on the TRUE and the FALSE half of the ID test set."""


def build_task(task: Mapping[str, Any]) -> Parentheses:
    """The task of a configuration; built once in each process."""
    return _build(tuple(sorted(task.items())))


@lru_cache(maxsize=2)
def _build(items: tuple[tuple[str, Any], ...]) -> Parentheses:
    return make_parentheses(**dict(items))


def train_unit(
    *,
    task: Mapping[str, Any],
    train: Mapping[str, Any],
    seeds: Sequence[int],
    rho: NDArray[np.float64],
    starts: Sequence[int],
    keep: Sequence[int],
    scratch: Path,
) -> Arrays:
    """Train `seeds` under weights `rho` (segments, n), segment i in force from step `starts[i]`; measure at the end.

    Returns the structure measures (r,), `final` parameters (r, P), and `at_<step>` parameters for steps in `keep`.
    """
    built, config = build_task(task), TrainConfig(**train)
    state = _resume(built, seeds, scratch)
    stops = sorted({*starts[1:], *keep, *range(SAVE_EVERY, config.steps, SAVE_EVERY), config.steps})
    kept: Arrays = _kept(scratch)
    for stop in stops:
        if stop <= state.step:
            continue
        segment = max(i for i, start in enumerate(starts) if start <= state.step)
        state = advance(built, config, state, seeds, torch.from_numpy(rho[segment]), stop)
        if stop in keep:
            kept[f"at_{stop}"] = state.flat.numpy()
        if stop < config.steps and stop % SAVE_EVERY == 0:
            _save(state, kept, scratch)
    return {**built.measure(state.flat), "final": state.flat.numpy(), **kept}


def chain_unit(
    *,
    task: Mapping[str, Any],
    anchor: NDArray[np.float32],
    kernel: Mapping[str, float],
    chains: Mapping[str, Any],
    chain: int,
    batches: int,
    scratch: Path,
) -> Arrays:
    """Chain number `chain` around `anchor` (P,): the sums of `Moments`, traces, and why it diverged (empty: healthy).

    A diverged chain leaves no sums: it is named by `diverged`, and its arrays have no chains.
    """
    del scratch  # a chain is short; a killed one is run again whole
    draws = sample_chains(build_task(task), torch.from_numpy(anchor), kernel, {**chains, "chains": 1}, batches, chain)
    return {
        **draws.moments.as_arrays(),
        "phi_trace": draws.phi_trace,
        "loss_trace": draws.loss_trace,
        "diverged": np.frombuffer("; ".join(draws.excluded.values()).encode(), dtype=np.uint8),
    }


def sample_chains(
    task: Parentheses,
    anchor: torch.Tensor,
    kernel: Mapping[str, float],
    chains: Mapping[str, Any],
    batches: int,
    first_chain: int = 0,
) -> Draws:
    """Chains around `anchor` (P,) with the experiment's observables, named `OBSERVABLES`."""
    sampler = SGLD(**kernel)
    observables: dict[str, Observable] = {"llc": llc_observable(task, anchor, sampler.n_beta), **probe_losses(task)}
    return sample_draws(
        task, anchor, observables, sampler, ChainConfig(**chains), batches=batches, loss_band=LOSS_BAND,
        first_chain=first_chain,
    )  # fmt: skip


def probe_losses(task: Parentheses) -> dict[str, DifferentiableObservable]:
    """Mean losses on the probe sets, by name; each maps flat parameters (r, P) to (r,) and can be differentiated."""
    true = np.flatnonzero(task.id_test.labels)
    false = np.flatnonzero(~task.id_test.labels)
    sets = {
        "ood_loss": (task.ood_test, np.arange(len(task.ood_test))),
        "true_loss": (task.id_test, true),
        "false_loss": (task.id_test, false),
    }

    def mean_loss(data: Strings, rows: NDArray[np.int64]) -> DifferentiableObservable:
        index = torch.from_numpy(rows)
        losses = task.losses_on(data)
        return lambda flat: torch.stack([losses(row[None], index[None])[0].mean() for row in flat])

    return {name: mean_loss(data, rows) for name, (data, rows) in sets.items()}


def first_order_unit(
    *, task: Mapping[str, Any], anchor: NDArray[np.float32], localization: float, scratch: Path
) -> Arrays:
    """`first_order_susceptibility` of the probe losses around `anchor` (P,): `chi` (3, n)."""
    del scratch
    built = build_task(task)
    chi = first_order_susceptibility(built, torch.from_numpy(anchor), probe_losses(built), localization=localization)
    return {"chi": chi}


def calibrate_unit(
    *, task: Mapping[str, Any], anchor: NDArray[np.float32], settings: Mapping[str, Any], scratch: Path
) -> Arrays:
    """`calibrate` around `anchor`; returns the chosen settings and every pilot as rows of `pilots` (p, 5)."""
    del scratch
    found = calibrate(build_task(task), torch.from_numpy(anchor), constant_loss=CONSTANT_LOSS, **settings)
    return {
        "localization": np.array(found.kernel.localization),
        "step_size": np.array(found.kernel.step_size),
        "rise": np.array(found.rise),
        "pilots": np.array([[p.localization, p.step_size, p.rise, p.r_hat, float(p.diverged)] for p in found.pilots]),
    }


def _save(state: TrainState, kept: Arrays, scratch: Path) -> None:
    tensors = {
        "step": torch.tensor(state.step),
        "flat": state.flat,
        "first_moment": state.first_moment,
        "second_moment": state.second_moment,
    }
    write_whole(scratch, save(tensors | {name: torch.from_numpy(value) for name, value in kept.items()}))


def _resume(task: Parentheses, seeds: Sequence[int], scratch: Path) -> TrainState:
    if not scratch.exists():
        return init_state(task, seeds)
    found = load_file(scratch)
    return TrainState(int(found["step"]), found["flat"], found["first_moment"], found["second_moment"])


def _kept(scratch: Path) -> Arrays:
    if not scratch.exists():
        return {}
    return {name: value.numpy() for name, value in load_file(scratch).items() if name.startswith("at_")}
