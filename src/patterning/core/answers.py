"""What a loss answers, checked, and what a trial asks of a task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from patterning.core.batch import Batch, leaves, listed_rows
from patterning.core.errors import PatterningError

SHARE = 2e-4
"""Of the mean loss: what a loss may differ by when sums are taken in another order, in float32."""
SHARE_OF_ITSELF = 2e-3
"""Of a loss: the same."""
ROUNDING = 1e-6
"""Share of the mean loss by which two equal computations may differ (a GPU adds in any order)."""

HINTS = {
    "out of bounds": "class labels must be 0 to the number of classes - 1 (or the loss's ignore_index, with a mask)",
    "out of range": "token numbers must lie below the size of the vocabulary",
    "to be Long": "class labels must be whole numbers: labels.long()",
    "scalar type Long": "class labels must be whole numbers: labels.long()",
    "for argument #1 'indices'": "token numbers must be whole numbers: tokens.long()",
    "must have the same dtype": "whole numbers are left as they are: use x.float() in the loss",
    "on the same device": "what a loss holds besides module and batch must be on the module's device",
    "invalid data type 'str'": (
        "a data frame arrives as one tensor (b, columns): pass a dict of its columns to take them by name"
    ),
    "not implemented for": "numbers of another type are needed: labels.long(), x.float() or x.bool() in the loss",
}
"""What PyTorch says → what to do."""


@dataclass(frozen=True)
class Trial:
    """What was found out: t samples a row; whether the loss returns a mask; what vmap can take; what changes.

    `vectorise`: replicas can be run together on rows of their own ("rows"), on the same rows only ("parameters"), or
    not at all ("none"). `changing`: attributes and buffers that a forward pass changes. `differentiates`: the loss
    takes derivatives itself. `slack`: nats by which a loss may differ through the order of sums; `rounding`: what
    rounded parameters alone make of it. `notes`: sentences for the
    user. `samples_per_row` 0: not known yet.
    """

    samples_per_row: int = 0
    masked: bool = False
    vectorise: Literal["rows", "parameters", "none"] = "none"
    changing: tuple[tuple[str, str], ...] = ()
    differentiates: bool = False
    slack: float = 0.0
    rounding: float = 0.0
    notes: tuple[str, ...] = ()


class Triable(Protocol):
    """The parts of a task that a trial uses."""

    module: nn.Module
    data: Any
    trial: Trial

    def answer(
        self,
        rows: Tensor,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        module: nn.Module | None = None,
        batch: Batch = None,
        exact: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Losses and mask of rows, at the module's own parameters or at others."""
        ...

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Named views of parameter rows."""
        ...

    def own_row(self) -> Tensor:
        """The module's own parameters (P,)."""
        ...

    def sample_losses(self, flat: Tensor, index: Tensor) -> Tensor:
        """Losses of every sample, replica by replica."""
        ...


def losses_and_mask(answer: object, rows: int, samples_per_row: int = 0) -> tuple[Tensor, Tensor | None]:
    """What a loss returned for `rows` rows, checked: losses (b,) or (b, t), and a mask of that shape or None.

    Raises `PatterningError` for anything else, and for another t than `samples_per_row`, where that is known.
    """
    losses, mask = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        what = f"numbers of type {losses.dtype}" if isinstance(losses, Tensor) else type(losses).__name__
        raise PatterningError(
            f"the loss returned {what}: it must return a tensor of losses, floating point numbers of shape (b,) or "
            "(b, t), or a pair (losses, mask)"
        )
    if losses.layout != torch.strided:
        raise PatterningError(f"the loss returned a {losses.layout} tensor: it must return an ordinary one, to_dense()")
    if losses.ndim not in (1, 2) or len(losses) != rows or losses.numel() == 0:
        raise PatterningError(
            f"the loss gave shape {tuple(losses.shape)} for {rows} rows: it must return one loss a row, shape (b,), "
            "or one for each of the t samples a row holds, shape (b, t) (reduction='none')"
        )
    if samples_per_row and losses.numel() != rows * samples_per_row:
        raise PatterningError(
            f"the loss gave {losses.numel() // rows} losses a row for {rows} rows, and {samples_per_row} for others: "
            f"{TRIMMED}"
        )
    if mask is None:
        return losses, None
    if not isinstance(mask, Tensor) or mask.shape not in (losses.shape, losses.shape[:1]):
        what = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise PatterningError(
            f"the mask that the loss returns is {what} for losses {tuple(losses.shape)}: it must be of the same shape "
            "(or (b,), for whole rows), True where there is a sample"
        )
    if mask.shape != losses.shape:
        mask = mask[:, None].expand_as(losses)
    return losses, mask


TRIMMED = (
    "the number of samples in a row must not change from batch to batch. A loss must not trim its batch to the longest "
    "row in it: pad all rows to one length, keep every column, and return (losses, mask)"
)
"""What to do where t follows the batch."""


def run_plain(
    task: Triable, rows: Tensor, parameters: Mapping[str, Tensor] | None = None, *, exact: bool = False
) -> tuple[Tensor, Tensor | None]:
    """One pass without a gradient, with whatever goes wrong as one sentence, which names the row if it is one's."""
    try:
        with torch.no_grad():
            return task.answer(rows, parameters, exact=exact)
    except PatterningError:
        raise
    except Exception as error:
        where, reason = "the data", error
        if (bad := _first_bad(task, rows)) is not None:
            row, reason = bad
            where = f"row {row} of the data{_whole_numbers(task, row)}"
        hint = next((f": {hint}" for key, hint in HINTS.items() if key in str(reason)), "") or listed_rows(task.data)
        if f"must be Tensor, not {type(task.module).__name__}" in str(reason):
            hint = ": it is called as loss(module, batch); lambda module, batch: loss(module(batch[0]), batch[1])"
        raise PatterningError(
            f"the module or its loss cannot run on {where} ({type(reason).__name__}: {reason_of(reason)}){hint}"
        ) from error


def _first_bad(task: Triable, rows: Tensor) -> tuple[int, Exception] | None:
    """The first row that cannot be run while another can, and what it raises; None where it is not a row's fault."""
    if _error(task, rows[:1]) is not None and all(_error(task, row[None]) is not None for row in rows[1:9]):
        return None
    while len(rows) > 1:
        half = rows[: len(rows) // 2]
        rows = half if _error(task, half) is not None else rows[len(rows) // 2 :]
    error = _error(task, rows)
    return None if error is None else (int(rows[0]), error)


def _error(task: Triable, rows: Tensor) -> Exception | None:
    try:
        with torch.no_grad():
            task.answer(rows)
    except Exception as error:
        return error
    return None


def _whole_numbers(task: Triable, row: int) -> str:
    """Labels of a row: what stands in tensors that hold one whole number a row."""
    labels = [values[row] for values in leaves(task.data) if values.ndim == 1 and not values.is_floating_point()]
    return f" (label {', '.join(str(value.item()) for value in labels)})" if labels else ""


def kept(losses: Tensor, mask: Tensor | None) -> Tensor:
    """Which losses are of samples, bool."""
    return torch.ones_like(losses, dtype=torch.bool) if mask is None else mask > 0


def same(a: Tensor, b: Tensor, slack: float) -> bool:
    """Whether losses `a` are `b`, up to the order of float32 sums: a share of themselves, and `slack` nats."""
    return a.shape == b.shape and not bool(differing(a, b, slack).any())


def differing(a: Tensor, b: Tensor, slack: float) -> Tensor:
    """Where losses `a` are not `b`."""
    return ~torch.isclose(a, b.to(a), rtol=SHARE_OF_ITSELF, atol=slack, equal_nan=True)


def identical(a: Tensor, b: Tensor) -> bool:
    """Whether losses `a` and `b` come of the same computation of the same numbers; a GPU may add in another order."""
    finite = b[b.isfinite()].abs()
    scale = float(finite.mean()) if finite.numel() else 0.0
    atol, rtol = (0.0, 2 * torch.finfo(torch.float32).eps) if a.device.type == "cpu" else (ROUNDING * scale, 0.0)
    return a.shape == b.shape and torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)


def reason_of(error: BaseException) -> str:
    """The first line of an error."""
    return (str(error) or repr(error)).splitlines()[0]
