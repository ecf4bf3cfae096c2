"""The adaptive variant: measure χ where the run stands, weight the data from there on, measure again.

Which algorithm wins is decided early, while χ of a finished run describes a finished solution. Here every run reads the
response of its own weights at a few marks. What it costs is in the result.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save

from patterning.core.errors import PatterningError
from patterning.core.store import Arrays, write_whole
from patterning.experiments.parentheses.units import OBSERVABLES, build_task, sample_chains
from patterning.intervention.solve import Solution, solve
from patterning.intervention.weights import Policy, make_weights
from patterning.response.susceptibility import susceptibility
from patterning.training.weighted import TrainConfig, TrainState, advance, init_state, uniform_weights

HELD = ("ood_loss", "true_loss", "false_loss")
"""Observables of the constrained target: move the first, hold the others."""


def held_direction(
    chi: NDArray[np.float64],
    base_weights: NDArray[np.float64],
    n_beta: float,
    free: NDArray[np.bool_],
    noise: NDArray[np.float64] | None,
) -> Solution:
    """χ† for a lower OOD loss at unchanged loss on TRUE and on FALSE strings: rows `HELD` of χ, (3, n).

    Held fixed, because early in training the OOD loss answers first of all to how readily the model says FALSE, which
    the rest of training undoes.
    """
    q = np.where(free, base_weights, 0.0)
    size = np.sqrt((q * chi[0] ** 2).sum())
    return solve(chi, base_weights, np.array([-size, 0.0, 0.0]), n_beta, noise=noise, free=free)


def adaptive_unit(
    *,
    task: Mapping[str, Any],
    train: Mapping[str, Any],
    seed: int,
    toward: str,
    marks: Sequence[int],
    policy: Policy,
    alpha: float,
    kernel: Mapping[str, float],
    chains: Mapping[str, Any],
    batches: int,
    scratch: Path,
) -> Arrays:
    """Train one seed, re-weighting at every mark by χ measured there. Killed, it goes on from its last mark.

    Returns the structure measures (1,), the weights `rho` (1 + marks, n) of each segment, `reliability` (marks,) of the
    OOD row over FALSE strings, and `seconds` (training, χ). Where χ is below its noise the old weights stay.
    """
    built, config = build_task(task), TrainConfig(**train)
    q, free = built.base_weights.numpy(), ~built.train.labels
    state, rho, reliability, seconds = _resume(built, seed, scratch)
    for stop in [*marks, config.steps]:
        if stop > state.step:
            begun = time.perf_counter()
            state = advance(built, config, state, [seed], rho[-1], stop)
            seconds[0] += time.perf_counter() - begun
        if stop == config.steps or len(rho) > 1 + marks.index(stop):
            continue
        begun = time.perf_counter()
        found = sample_chains(built, state.flat[0], kernel, chains, batches)
        weights = rho[-1]
        try:
            response = susceptibility(found.moments, OBSERVABLES, q, kernel["n_beta"])
            reliability.append(response.reliability(free)["ood_loss"])
            rows = [OBSERVABLES.index(name) for name in HELD]
            solution = held_direction(response.chi[rows], q, kernel["n_beta"], free, response.half_difference()[rows])
            s = solution.s if toward == "nested" else -solution.s
            weights = torch.from_numpy(make_weights(s, q, policy=policy, alpha=alpha, free=free))
        except PatterningError:
            reliability += [float("nan")] * (len(rho) - len(reliability))
        rho.append(weights)
        seconds[1] += time.perf_counter() - begun
        _save(state, rho, reliability, seconds, scratch)
    return {
        **built.measure(state.flat),
        "rho": torch.stack(rho).numpy(),
        "reliability": np.array(reliability),
        "seconds": np.array(seconds),
    }


def _save(
    state: TrainState, rho: list[torch.Tensor], reliability: list[float], seconds: list[float], scratch: Path
) -> None:
    tensors = {
        "step": torch.tensor(state.step),
        "flat": state.flat,
        "first_moment": state.first_moment,
        "second_moment": state.second_moment,
        "rho": torch.stack(rho),
        "reliability": torch.tensor(reliability, dtype=torch.float64),
        "seconds": torch.tensor(seconds, dtype=torch.float64),
    }
    write_whole(scratch, save(tensors))


def _resume(task: Any, seed: int, scratch: Path) -> tuple[TrainState, list[torch.Tensor], list[float], list[float]]:
    if not scratch.exists():
        return init_state(task, [seed]), [uniform_weights(task)], [], [0.0, 0.0]
    found = load_file(scratch)
    state = TrainState(int(found["step"]), found["flat"], found["first_moment"], found["second_moment"])
    return state, list(found["rho"]), found["reliability"].tolist(), found["seconds"].tolist()
