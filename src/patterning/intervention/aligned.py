"""Weights in the order of a task's rows, which may not be the order that they were written in."""

from dataclasses import replace

from patterning.core.task import Task
from patterning.intervention.data_weights import Weights
from patterning.intervention.row_ids import order_of


def aligned(weights: Weights, task: Task) -> Weights:
    """The weights with their rows in the order of `task`, by their ids; raises `PatterningError` for other rows."""
    weights.check_data(task.data_fingerprint, len(task.base_weights))
    order = order_of(weights.ids, task.ids)
    if order is None:
        return weights
    swapped = None if weights.swapped is None else weights.swapped[order]
    return replace(
        weights, rho=weights.rho[order], ids=weights.ids[order], base_weights=weights.base_weights[order],
        free=weights.free[order], swapped=swapped,
    )  # fmt: skip
