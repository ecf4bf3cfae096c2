"""Where an architecture keeps its heads, MLPs and embeddings: what each file of this package says of one of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from patterning.core.errors import PatterningError

Masks = Mapping[str, Tensor | None]
"""Parameter name → which of its entries are free, bool of its shape; None: all of them."""


@dataclass(frozen=True)
class Layout:
    """Where an architecture keeps its parts; `{}` in a template stands for the number of the layer.

    `head(layer, i)` gives the masks of a head. `attention` and `mlp` are templates of the beginnings of parameter names
    (`mlp` empty: the model has none). `parts`: name → parameters, for `embed`, `positions`, `unembed`. `shares`: heads
    that read the same keys and values. `output` is the template of the module whose input is what the heads of a layer
    read, (b, t, heads · size), side by side; empty where there is no such module. `note`: what is left out of a head.
    """

    layers: int
    heads: int
    head: Callable[[int, int], Masks]
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    parts: dict[str, list[str]]
    shares: int = 1
    output: str = ""
    note: str = ""

    def note_of(self, layer: int, head: int) -> str:
        """That the keys and values of a head are those of others, too, and what is left out of it."""
        first = head - head % self.shares
        others = [f"l{layer}h{i}" for i in range(first, first + self.shares) if i != head]
        shared = f"its keys and values are shared with {', '.join(others)}" if others else ""
        return "; ".join(filter(None, [shared, self.note]))


def left_out(module: nn.Module, name: str) -> bool:
    """Whether a module was made without this parameter, a bias; raises `PatterningError` where it has no such place."""
    path, _, attribute = name.rpartition(".")
    try:
        there = module.get_submodule(path)._parameters
    except AttributeError:
        there = {}
    if attribute not in there:
        raise PatterningError(
            f"{type(module).__name__} has no parameter {name}, where this architecture keeps it: name the parameters "
            "yourself, by a pattern or a Component with masks"
        )
    return there[attribute] is None


def rows(module: nn.Module, name: str, slices: Sequence[slice], axis: int = 0) -> dict[str, Tensor | None]:
    """Mask of slices along an axis of a parameter; nothing for a bias that the module was made without."""
    if left_out(module, name):
        return {}
    mask = torch.zeros(module.get_parameter(name).shape, dtype=torch.bool)
    for part in slices:
        if not 0 <= part.start < part.stop <= mask.shape[axis]:
            raise PatterningError(
                f"{type(module).__name__} keeps its heads otherwise than its architecture does ({name} is "
                f"{tuple(mask.shape)}): name the parameters yourself, by a pattern or a Component with masks"
            )
        mask.transpose(0, axis)[part] = True
    return {name: mask}


def split_head(
    module: nn.Module, read: Mapping[str, slice], write: str, columns: slice
) -> dict[str, Tensor | None]:  # fmt: skip
    """The masks of a head whose projections are `nn.Linear`s of their own.

    `read`: the module of each projection → the head's rows of its weight and bias; `write`: the module that takes what
    the head read to the stream → the head's `columns` of its weight. Its bias belongs to no head.
    """
    masks: dict[str, Tensor | None] = {}
    for name, part in read.items():
        masks |= rows(module, f"{name}.weight", [part])
        masks |= rows(module, f"{name}.bias", [part])
    return {**masks, **rows(module, f"{write}.weight", [columns], axis=1)}


def settings(module: nn.Module) -> Any:
    """The configuration of a Hugging Face model; None where a module has none."""
    config = getattr(module, "config", None)
    return config if isinstance(getattr(config, "model_type", None), str) else None


def base(module: nn.Module) -> tuple[nn.Module, str]:
    """The body of a Hugging Face model without its output layer, and the beginning of the names of its parameters."""
    name = getattr(module, "base_model_prefix", "")
    body = getattr(module, name, None) if isinstance(name, str) and name else None
    return (body, f"{name}.") if isinstance(body, nn.Module) else (module, "")


def piece(number: int, size: int, offset: int = 0) -> slice:
    """Entries `number` · size to (`number` + 1) · size, from `offset` on."""
    return slice(offset + number * size, offset + (number + 1) * size)
