"""What a loss answers, checked, and what a trial asks of a task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from patterning.core.errors import PatterningError

TOLERANCE = {"rtol": 2e-3, "atol": 2e-4}
"""Of a loss computed in another order, in float32."""


@dataclass(frozen=True)
class Trial:
    """What was found out: t samples a row; whether the loss returns a mask; what vmap can take; what changes.

    `vectorise`: replicas can be run together on rows of their own ("rows"), on the same rows only ("parameters"), or
    not at all ("none"). `changing`: attributes that a forward pass changes. `notes`: sentences for the user.
    """

    samples_per_row: int = 1
    masked: bool = False
    vectorise: Literal["rows", "parameters", "none"] = "none"
    changing: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


class Triable(Protocol):
    """The parts of a task that a trial uses."""

    module: nn.Module
    data: Any
    trial: Trial

    def answer(self, rows: Tensor, parameters: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor | None]:
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


def losses_and_mask(answer: object, rows: int) -> tuple[Tensor, Tensor | None]:
    """What a loss returned for `rows` rows, checked: losses (b,) or (b, t), and a mask of that shape or None.

    Raises `PatterningError` for anything else.
    """
    losses, mask = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        what = f"numbers of type {losses.dtype}" if isinstance(losses, Tensor) else type(losses).__name__
        raise PatterningError(f"the loss returned {what}: it must return a tensor of losses, or (losses, mask)")
    if losses.ndim not in (1, 2) or len(losses) != rows or losses.numel() == 0:
        raise PatterningError(
            f"the loss gave shape {tuple(losses.shape)} for {rows} rows: it must return one loss a row, shape (b,), "
            "or one for each of the t samples a row holds, shape (b, t) (reduction='none')"
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


def run_plain(task: Triable, rows: Tensor, parameters: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor | None]:
    """One plain pass, with whatever goes wrong as one sentence."""
    try:
        with torch.no_grad():
            return task.answer(rows, parameters)
    except PatterningError:
        raise
    except Exception as error:
        raise PatterningError(f"the module or its loss cannot run on the data: {reason_of(error)}") from error


def kept(losses: Tensor, mask: Tensor | None) -> Tensor:
    """Which losses are of samples, bool."""
    return torch.ones_like(losses, dtype=torch.bool) if mask is None else mask > 0


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree as far as the order of float32 sums lets them."""
    return a.shape == b.shape and torch.allclose(a, b, **TOLERANCE, equal_nan=True)


def reason_of(error: Exception) -> str:
    """The first line of an error."""
    return (str(error) or repr(error)).splitlines()[0]
