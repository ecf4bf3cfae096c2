"""What a call of a module leaves behind in it: found once, on a scratch copy, and undone after every call."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from patterning.core.identity import digest_of

_MISSING = object()

LARGE = 100_000
"""Numbers in a tensor from which on its sum stands for them."""

Place = tuple[str, str]
"""(name of the submodule, name of its attribute or buffer)."""


@contextmanager
def keep_attributes(module: nn.Module, changing: Sequence[Place]) -> Iterator[None]:
    """Attributes and buffers are afterwards what they were before: the same objects, with the same contents.

    While it lasts the module holds copies of them, which a call may write into: a running count, a cache, a tensor of
    its own (`self.last = x`), which is of no use outside of the call.
    """
    parts = [(part, attribute) for path, attribute in changing if (part := _submodule(module, path)) is not None]
    before = [_holder(part, attribute).get(attribute, _MISSING) for part, attribute in parts]
    for (part, attribute), value in zip(parts, before, strict=True):
        if value is not _MISSING:
            _holder(part, attribute)[attribute] = _copy(value)
    try:
        yield
    finally:
        for (part, attribute), value in zip(parts, before, strict=True):
            holder = _holder(part, attribute)
            if value is _MISSING:
                holder.pop(attribute, None)
            else:
                holder[attribute] = value


def scratch_copy(module: nn.Module) -> nn.Module:
    """A copy that shares the parameters, which no call may change, and nothing else."""
    return deepcopy(module, {id(p): p for p in module.parameters()})


def state_of(module: nn.Module) -> dict[Place, tuple[object, str]]:
    """Every attribute and buffer of every submodule, but for hooks: the object, and a digest of its contents."""
    standard = vars(nn.Module())
    known: dict[int, str] = {}  # a configuration stands in every layer of some models
    found = {}
    for path, part in module.named_modules():
        held = {key: value for key, value in vars(part).items() if key not in standard}
        for key, value in (held | part._buffers).items():
            if id(value) not in known:
                known[id(value)] = contents(value)
            found[path, key] = (value, known[id(value)])
    return found


def changed_places(before: dict[Place, tuple[object, str]], module: nn.Module) -> tuple[Place, ...]:
    """Those that are other objects now than `before`, or hold something else.

    What has no digest, so that it differs from itself, is told apart as an object alone.
    """
    after = state_of(module)
    nothing = (_MISSING, "")
    changed = []
    for place in [*before, *(place for place in after if place not in before)]:
        (old, old_contents), (new, new_contents) = before.get(place, nothing), after.get(place, nothing)
        if old is not new or (old_contents != new_contents and contents(new) == new_contents):
            changed.append(place)
    return tuple(changed)


def contents(value: object) -> str:
    """What an object holds, as a digest; of a large tensor its version and its sum. Functions are no state."""
    if isinstance(value, FunctionType | MethodType | BuiltinFunctionType | type | partial):
        return ""
    if isinstance(value, Tensor) and value.numel() > LARGE and value.layout == torch.strided:
        return (
            f"{value._version} {float(value.detach().sum(dtype=torch.float64 if value.is_floating_point() else None))}"
        )
    return digest_of(value)[0]


def _holder(part: nn.Module, attribute: str) -> dict[str, Any]:
    """The dictionary of a submodule in which an attribute or a buffer stands."""
    return part._buffers if attribute in part._buffers else part.__dict__


def _copy(value: Any) -> Any:
    try:
        return deepcopy(value)
    except Exception:  # what cannot be copied is written into as it is: a drift is noticed after sampling
        return value


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:  # a copy whose parts stand elsewhere
        return None
