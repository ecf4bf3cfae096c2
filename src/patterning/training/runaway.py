"""A word where training has left all reason: what it returns is finite, and no trained model."""

import math
import warnings

import torch
from torch import Tensor

from patterning.core.errors import PatterningWarning
from patterning.core.modules import spread
from patterning.core.task import Task

LOOKED_AT = 64
"""Rows whose loss is looked at before and after training."""
RAN_AWAY = 100.0
"""A loss that rises by this many times its size (or this many nats) has run away."""


def warn_of_runaway(task: Task, rho: Tensor, seed: int, after: Tensor, rate: float) -> None:
    """Warn (`PatterningWarning`) where the weighted loss at `after` (1, P) is no number, or far above the first one.

    `rho` (n,): the weights that were trained under, at the learning rate `rate`.
    """
    rows = spread(len(rho), LOOKED_AT)
    own = rho.cpu()[rows] * task.base_weights.cpu()[rows]
    if not float(own.sum()) > 0:
        return
    with torch.no_grad():
        first, last = (
            float((own * task.losses(flat, rows[None].to(flat.device))[0].double().cpu()).sum() / own.sum())
            for flat in (task.init([seed]), after)
        )
    if not math.isfinite(last) or last > first + RAN_AWAY * max(abs(first), 1.0):
        warnings.warn(
            f"the weighted loss is {last:.3g} after training and was {first:.3g} before: training has run away, and "
            f"what it returns is no trained model; lower the learning rate ({rate:g}; Adam moves every parameter by "
            "about that much a step)",
            PatterningWarning,
            stacklevel=3,
        )
