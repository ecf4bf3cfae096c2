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

from patterning.posterior.calibrate import calibrate
from patterning.posterior.chains import ChainConfig, run_chains
from patterning.posterior.sgld import SGLD
from patterning.response.moments import Moments
from patterning.store import Arrays, write_whole
from patterning.tasks.base import evaluate
from patterning.tasks.parentheses import CONSTANT_LOSS, Parentheses, make_parentheses
from patterning.training.weighted import TrainConfig, TrainState, advance, init_state

SAVE_EVERY = 1000
"""Steps of training between saved states: what a killed run can lose of one unit."""

OBSERVABLES = ("llc", "ood_loss")


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
    """One chain around `anchor` (P,): the sums of `Moments` (one chain), traces at draws, and whether it diverged.

    Observables: `llc` = nβ (L(w) - L(w*)) and `ood_loss`, the mean loss on the OOD set.
    """
    del scratch  # a chain is short; it is run again whole
    built, q = build_task(task), build_task(task).base_weights.numpy()
    n, probes = len(q), len(built.ood_test)
    sampler = SGLD(**kernel)
    start = torch.from_numpy(anchor)

    def read(flat: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        losses = evaluate(built.losses, flat, n).double().numpy()
        ood = evaluate(built.losses_on(built.ood_test), flat, probes).double().mean(1).numpy()
        return losses, np.stack([sampler.n_beta * (losses @ q), ood], axis=1)

    at_anchor, phi_anchor = read(start[None])
    moments = Moments.empty(1, batches, at_anchor[0], phi_anchor[0])
    config = ChainConfig(chains=1, **chains)
    phi_trace: list[NDArray[np.float64]] = []

    def on_draw(draw: int, flat: torch.Tensor) -> None:
        losses, phi = read(flat)
        phi_trace.append(phi[0] - phi_anchor[0])
        moments.add(draw * batches // config.draws, phi, losses)

    # Past the constant predictor's loss the chain has left the solution, whatever it does afterwards.
    trace = run_chains(built, start, sampler, config, on_draw, first_chain=chain, loss_band=CONSTANT_LOSS)
    return {
        **moments.as_arrays(),
        "phi_trace": np.stack(phi_trace),
        "loss_trace": trace.losses[:, 0].numpy(),
        "diverged": np.frombuffer("; ".join(trace.diverged.values()).encode() or b" ", dtype=np.uint8),
    }


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
        "pilots": np.array(
            [[p.localization, p.step_size, p.rise, p.r_hat, float(p.diverged)] for p in found.pilots]
        ),
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
