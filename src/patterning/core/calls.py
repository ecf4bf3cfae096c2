"""A module with its loss on top, called at given parameters: the one place where a user's code runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from patterning.core.batch import Batch, map_batch

BatchLoss = Callable[[Any, Batch], Tensor | tuple[Tensor, Tensor]]
"""(module, batch) → losses in nats, (b,) or (b, t): one a row, or one for each of the t samples that a row holds; or a
pair of the losses and their mask, of the same shape: False (or 0) where there is no sample, as at padding."""


class WithLoss(nn.Module):
    """A module with its loss on top, so that the loss is given the module itself, at any parameters."""

    def __init__(self, module: nn.Module, loss: BatchLoss) -> None:
        super().__init__()
        self.module = module
        self.__dict__["loss"] = loss  # a loss that is a module keeps its parameters to itself

    def forward(self, batch: Batch) -> Any:
        """Whatever the loss returns for the batch."""
        return self.__dict__["loss"](self.module, batch)

    def at(self, named: Mapping[str, Tensor], batch: Batch) -> Any:
        """The same at parameters (and buffers) `named` of the module."""
        values = {f"module.{name}": _on_its_own(value) for name, value in named.items()}
        return functional_call(self, values, (batch,), tie_weights=False)


def _on_its_own(value: Tensor) -> Tensor:
    """A copy of what `torch.view_as_complex` may read, two numbers at a time: it takes no slice of a row."""
    pairs = value.ndim > 0 and value.shape[-1] == 2 and value.is_floating_point()
    return value * 1 if pairs else value  # a product, so that derivatives of it are apart as well


def in_float64(module: nn.Module, named: Mapping[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], Batch]:
    """All that a call computes with, as float64: `named` parameters, the module's other ones and buffers, the batch."""
    held = {
        f"{path}.{key}".removeprefix("."): value
        for path, part in module.named_modules()  # one that stands under two names comes once
        for key, value in {**part._parameters, **part._buffers}.items()
        if value is not None
    }
    values = {**held, **named}
    return {name: _double(value) for name, value in values.items()}, map_batch(_double, batch)


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


@contextmanager
def no_inference_path() -> Iterator[None]:
    """PyTorch's inference path of whole attention layers has no rule for vmap, and is left where a module has hooks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def differentiable(needed: bool) -> Any:
    """A context in which a loss may differentiate by its inputs, where it does so (`needed`)."""
    return torch.enable_grad() if needed else nullcontext()


def rounded(kind: str, bfloat16: bool, *, once: bool = False) -> Any:
    """A context in which a device of this kind rounds what goes into matrix products to bfloat16, or rounds nothing.

    `once`: parameters are rounded once and kept, which transforms such as vmap cannot have.
    """
    if not bfloat16 and not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, torch.bfloat16, enabled=bfloat16, cache_enabled=once)


def plain(values: Tensor) -> Tensor:
    """Without a graph where none was asked for: a loss may have switched gradients on for itself."""
    return values.detach() if values.requires_grad and not torch.is_grad_enabled() else values
