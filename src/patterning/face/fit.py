"""`fit`: weighted training for those who have no loop of their own."""

import math
import warnings

import torch
from torch import Tensor, nn

from patterning.core.errors import PatterningError, PatterningWarning, check_whole
from patterning.core.modules import copy_module, spread
from patterning.core.task import Task
from patterning.intervention.aligned import aligned
from patterning.intervention.data_weights import Weights
from patterning.tasks.preference import exchanged
from patterning.training.weighted import TrainConfig, advance, init_state

LOOKED_AT = 64
"""Rows whose loss is looked at before and after training."""
RAN_AWAY = 100.0
"""A loss that rises by this many times its size (or this many nats) has run away."""


def fit(
    task: Task,
    weights: Weights | None,
    seed: int,
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
) -> nn.Module:
    """A module trained from scratch on the task's data under `weights` (None: unweighted): Adam, fixed rate.

    Initial weights and minibatches depend on `seed` alone, so that the same seed in two arms is a pair. ρ multiplies
    the loss of each row; preference pairs are trained on as `weights.swapped` says. Weights are
    found by the ids of the task's rows. Raises `PatterningError` for weights of other data, or of single tokens; warns
    where training has run away.
    """
    check_whole("seed", seed, 0)
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
        rho = torch.from_numpy(weights.rho)
        if weights.swapped is not None:
            task = exchanged(task, weights.swapped)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a small model on several threads is slower, and its sums have other bits
    try:
        start = init_state(task, [seed])
        state = advance(task, config, start, [seed], rho, steps)
    finally:
        torch.set_num_threads(threads)
    _warn_where_it_ran_away(task, rho, start.flat, state.flat, learning_rate)
    return task.load(copy_module(task.module), state.flat[0])


def _warn_where_it_ran_away(task: Task, rho: Tensor, before: Tensor, after: Tensor, rate: float) -> None:
    """Warn (`PatterningWarning`) where the weighted loss is not a number, or far above that before training."""
    rows = spread(len(rho), LOOKED_AT)
    own = (rho * task.base_weights)[rows]
    if not float(own.sum()) > 0:
        return
    with torch.no_grad():
        first, last = (float(own @ task.losses(flat, rows[None])[0].double() / own.sum()) for flat in (before, after))
    if not abs(last) < math.inf or last > first + RAN_AWAY * max(abs(first), 1.0):
        warnings.warn(
            f"the weighted loss is {last:.3g} after training and was {first:.3g} before: training has run away, and "
            f"what it returns is no trained model; lower the learning rate ({rate:g}; Adam moves every parameter by "
            "about that much a step)",
            PatterningWarning,
            stacklevel=3,
        )
