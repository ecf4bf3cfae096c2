"""Whether the gradient of a task's loss is there, is finite, reaches every parameter, and is that of the loss."""

import math

import torch
from torch import Tensor

from patterning.core.answers import Triable, kept, reason_of, run_plain, same
from patterning.core.errors import PatterningError
from patterning.core.modules import displaced

TOO_FAR = 0.02
"""Share by which differences of the loss may miss its gradient."""

STEPS = (3e-3, 1e-3, 3e-4)
"""Of differences, as shares of the parameters' size."""


def check_gradient(task: Triable, rows: Tensor) -> None:
    """The loss must have a finite gradient, that is not all zero and agrees with differences of the loss."""
    own = {name: value[0] for name, value in task.named(task.own_row()[None]).items()}
    sizes = []
    for parameters in (own, displaced(own, 0)):
        slopes = _gradient(task, rows, parameters)
        if parameters is own and any(not bool(slope.isfinite().all()) for slope in slopes.values()):
            raise PatterningError("the gradient of the loss is NaN or infinite at these parameters")
        sizes.append(max((float(slope.nan_to_num().abs().max()) for slope in slopes.values()), default=0.0))
        _check_differences(task, rows, parameters, slopes)
        _check_reached(task, rows, parameters, slopes)
    if max(sizes) == 0:
        raise PatterningError(
            "the loss does not depend on the module's parameters: it must call the module that it is given, "
            "loss(module, batch), and must not detach its outputs or run under torch.no_grad()"
        )


def _gradient(task: Triable, rows: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the sum of the losses, by parameter; those that the loss does not depend on are left out."""
    values = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    try:
        losses, mask = task.answer(rows, values)
        total = losses[kept(losses, mask)].sum()
        if not total.requires_grad:
            return {}
        slopes = torch.autograd.grad(total, list(values.values()), allow_unused=True)
    except PatterningError:
        raise
    except Exception as error:
        raise PatterningError(
            f"the loss has no gradient in the module's parameters: {reason_of(error)} (gradient checkpointing must be "
            "off)"
        ) from error
    return {name: slope for name, slope in zip(values, slopes, strict=True) if slope is not None}


def _check_reached(task: Triable, rows: Tensor, parameters: dict[str, Tensor], slopes: dict[str, Tensor]) -> None:
    """What the gradient does not reach must not matter to the loss: a chain would not feel the loss there."""
    rest = {name: value for name, value in parameters.items() if name not in slopes}
    if not rest or not slopes:
        return
    before, mask = run_plain(task, rows, parameters)
    for name, value in rest.items():
        moved = displaced({name: value}, 1)
        after, _ = run_plain(task, rows, {**parameters, **moved})
        if not same(before[kept(before, mask)], after[kept(before, mask)]):
            raise PatterningError(
                f"the loss depends on parameter {name}, but its gradient does not reach it. Gradient checkpointing "
                "must be off, and nothing on the way may be detached; or freeze it with requires_grad_(False)"
            )


def _check_differences(task: Triable, rows: Tensor, parameters: dict[str, Tensor], slopes: dict[str, Tensor]) -> None:
    """The gradient must be that of the loss: compared with central differences along itself.

    It is not where a part of the model is computed again in the backward pass (gradient checkpointing), by then with
    other parameters, or where a function has a wrong derivative.
    """
    square = sum(float(slope.double().square().sum()) for slope in slopes.values())
    size = math.sqrt(sum(float(value.double().square().sum()) for value in parameters.values()))
    if not (square > 0 and math.isfinite(square)):
        return
    misses = []
    for share in STEPS:
        step, totals = share * (size + 1e-3) / math.sqrt(square), []
        for sign in (1, -1):
            moved = {name: value + sign * step * slopes.get(name, 0.0) for name, value in parameters.items()}
            losses, mask = run_plain(task, rows, moved)
            totals.append(float(losses[kept(losses, mask)].double().sum()))
        misses.append((totals[0] - totals[1]) / (2 * step * square) - 1)
    # Rounding and curvature would give each step another miss: only one that all steps agree on is the gradient's.
    least = min(misses, key=abs)
    if all(math.isfinite(miss) for miss in misses) and abs(least) > TOO_FAR + 2 * (max(misses) - min(misses)):
        raise PatterningError(
            f"the gradient of the loss is not that of its values: along the gradient the loss changes {1 + least:.3g} "
            "times as much as it says. Gradient checkpointing must be off, and functions of your own must have the "
            "right backward"
        )
