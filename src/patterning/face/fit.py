"""`fit`: weighted training for those who have no loop of their own."""

import warnings

import torch
from torch import nn

from patterning.core.devices import DeviceLike
from patterning.core.errors import PatterningError, PatterningWarning, check_whole
from patterning.core.modules import copy_module, sets_own_start
from patterning.core.task import Task
from patterning.core.threads import undisturbed
from patterning.intervention.aligned import aligned
from patterning.intervention.data_weights import Weights
from patterning.tasks.preference import exchanged
from patterning.training.runaway import warn_of_runaway
from patterning.training.weighted import TrainConfig, advance, init_state


@undisturbed()
def fit(
    task: Task,
    weights: Weights | None,
    seed: int,
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    device: DeviceLike | None = None,
) -> nn.Module:
    """A module trained from scratch on the task's data under `weights` (None: unweighted): Adam, fixed rate.

    Initial weights and minibatches depend on `seed` alone, so that the same seed in two arms is a pair. ρ multiplies
    the loss of each row; preference pairs are trained on as `weights.swapped` says. `device`: "cuda" trains on a GPU
    (docs/gpu.md), None where the task is; the module comes back to where the task's own is. Raises `PatterningError`
    for weights of other data, or of single tokens.

    Weights are found by the ids of the task's rows. Warns (`PatterningWarning`) where training has run away; of a
    module that keeps running statistics (BatchNorm), which training here does not move; of dropout, which is switched
    off here; and of a constructor that sets initial weights, which are not set again without `Task(make=...)`.
    """
    check_whole("seed", seed, 0)
    _warn_of_other_training(task)
    config = TrainConfig(steps, batch_size, learning_rate, weight_decay)
    rho = torch.ones(len(task.base_weights), dtype=torch.float64)
    if weights is not None:
        if not isinstance(weights, Weights):
            raise PatterningError(
                f"weights is {type(weights).__name__}: it must be Weights (Weights.of_rows(ρ)), or None"
            )
        weights = aligned(weights, task)
        if weights.per_token:
            raise PatterningError(
                "fit weights whole rows: use weights.by_row(), or a loop of your own with weights.loss"
            )
        rho = torch.tensor(weights.rho)
        if weights.swapped is not None:
            task = exchanged(task, weights.swapped)
    home, task = task, task if device is None else task.to(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a small model on several threads is slower, and its sums have other bits
    try:
        state = advance(task, config, init_state(task, [seed]), [seed], rho, steps)
        warn_of_runaway(task, rho, seed, state.flat, learning_rate)
    finally:
        torch.set_num_threads(threads)
    return home.load(copy_module(home.module), state.flat[0].to(home.device))


def _warn_of_other_training(task: Task) -> None:
    """Say what a loop of the user's own would do otherwise: running statistics, dropout, initial weights."""
    parts = list(task.module.named_modules())
    own_loop = "Train by a loop of your own, with weights.loss"
    kept = [name for name, part in parts if getattr(part, "running_mean", None) is not None]
    dropped = [
        name for name, part in parts
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0  # pyright: ignore[reportPrivateUsage]
    ]  # fmt: skip
    said = []
    if kept:
        said.append(
            f"{', '.join(kept[:3])}: fit trains under the running statistics that the task's module has, and does not "
            f"move them: a run from scratch would end elsewhere. {own_loop}"
        )
    if dropped:
        said.append(
            f"{', '.join(dropped[:3])}: fit trains without dropout, and a run with it ends elsewhere. {own_loop}"
        )
    if task.make is None and (kinds := sets_own_start(task.module)):
        said.append(
            f"{', '.join(kinds[:3])} sets initial weights in its constructor, and fit starts from the "
            "reset_parameters() of its layers. Give the task make=..., a function of a seed that returns a fresh module"
        )
    for sentence in said:
        warnings.warn(sentence, PatterningWarning, stacklevel=4)  # past the decorator
