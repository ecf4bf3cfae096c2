"""Checkpoints w*: rows of parameters as they are given, checked; and whether a module is the task's but for them."""

import warnings
import weakref
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from patterning.core.answers import reason_of, same
from patterning.core.errors import PatterningError, PatterningWarning
from patterning.core.modules import copy_module, spread
from patterning.core.seen import same_values
from patterning.core.tensors import as_float32

ROWS = 16
"""Rows on which the losses of two modules are compared."""
REMEDY = "make the task of this module, Task(module, loss, data)"
_NONE = object()
COUNTERS = ("num_batches_tracked",)
"""Buffers that no loss in evaluation mode depends on."""


_given: "WeakKeyDictionary[Any, weakref.ref[nn.Module]]" = WeakKeyDictionary()
"""By task, the module that it was made of, while both live."""


def given_module(task: Any) -> nn.Module | None:
    """The module that a task was made of, whose copy the task holds; None where it is not known, or gone."""
    return _given[task]() if task in _given else None


def remember_given(task: Any, module: nn.Module | None) -> None:
    """Note the module that a task was made of."""
    if module is not None:
        _given[task] = weakref.ref(module)


def warn_if_trained(task: Any) -> None:
    """Warn where the module that a task was made of has other parameters now than the task's copy of it."""
    module = given_module(task)
    if module is None:
        return
    now, then = dict(module.named_parameters()), dict(task.module.named_parameters())
    for name in task.shapes:
        if name in now and now[name].shape == then[name].shape:
            value = now[name].detach().to(then[name])
            if not torch.equal(value.nan_to_num(), then[name].detach().nan_to_num()):
                warnings.warn(
                    f"the module has been trained since the task was made ({name} has other values), and w* is the "
                    "module as it was then: pass at=module for the parameters that it has now",
                    PatterningWarning,
                    stacklevel=5,
                )
                return


def check_anchor(task: Any, anchor: object) -> Tensor:
    """A checkpoint w* (P,) of the task: a copy, without a gradient, in float32 (float64 where the task is).

    Other floating point types are converted. Raises `PatterningError` for anything but a finite row of the task's P
    numbers on the device of its module, and for numbers that float32 does not hold.
    """
    count = getattr(task, "num_parameters", None)
    wanted = "floating point numbers" if count is None else f"{count} floating point numbers"
    if (
        not isinstance(anchor, Tensor)
        or not anchor.is_floating_point()
        or anchor.ndim != 1
        or (count is not None and len(anchor) != count)
    ):
        what = f"{anchor.dtype} {tuple(anchor.shape)}" if isinstance(anchor, Tensor) else type(anchor).__name__
        raise PatterningError(
            f"the checkpoint w* is {what}: it must be a row of {wanted}, as task.flatten(module) gives"
        )
    module = getattr(task, "module", None)
    like = next(module.parameters(), anchor) if isinstance(module, nn.Module) else anchor
    device = like.device
    if anchor.layout != torch.strided or anchor.device != device:
        raise PatterningError(
            f"the checkpoint w* is a {anchor.layout} row on {anchor.device}, and the task's module is on {device}: "
            f"move it there, with w.to({str(device)!r})"
        )
    if not bool(anchor.isfinite().all()):
        raise PatterningError(f"the checkpoint w* holds {int((~anchor.isfinite()).sum())} NaN or infinite parameters")
    keep = anchor.dtype == torch.float64 == like.dtype
    return (anchor.detach() if keep else as_float32("the checkpoint w*", anchor.detach())).clone()


def row_of(module: nn.Module, shapes: Mapping[str, torch.Size]) -> Tensor:
    """The row (P,) float32 of the parameters `shapes` of a module."""
    parts = zip(shapes, matching(module, shapes), strict=True)
    return torch.cat([as_float32(f"parameter {name}", p.detach()).reshape(-1) for name, p in parts])


def matching(module: nn.Module, shapes: Mapping[str, torch.Size]) -> list[nn.Parameter]:
    """The parameters `shapes` of a module, in this order; raises `PatterningError` where it has them not."""
    parameters = dict(module.named_parameters())
    for name, shape in shapes.items():
        if name not in parameters or parameters[name].shape != shape:
            there = tuple(parameters[name].shape) if name in parameters else "missing"
            raise PatterningError(f"parameter {name} is {there} where this task's module has {tuple(shape)}")
    return [parameters[name] for name in shapes]


def check_like(task: Any, module: nn.Module) -> None:
    """Raise `PatterningError` where `module` is not the `Task`'s with other parameters, which a row could not tell.

    Frozen parameters and stored buffers must be equal. Where its parts, their settings or their hooks differ, its
    losses on a few rows must be those of the task's module at its parameters.
    """
    own = task.module
    if own is module:
        return
    matching(module, task.shapes)
    check_rest(own, module, set(task.shapes))
    if not (other := _unlike(own, module)):
        return
    flat = task.named(row_of(module, task.shapes).to(next(own.parameters()).device)[None])
    rows = spread(len(task.base_weights), ROWS)[None]
    with torch.no_grad():
        expected = task.run(flat, task.data, rows)
        try:
            found = task.run(flat, task.data, rows, module=copy_module(module).to(expected.device))
        except Exception as error:
            raise PatterningError(
                f"this module cannot be run as the task's is ({reason_of(error)}); {REMEDY}"
            ) from error
    if not same(expected, found, task.trial.slack):
        raise PatterningError(
            f"this module is not the task's with other parameters: its losses at them are others ({other[0]} differs), "
            f"which a row w* does not hold; {REMEDY}"
        )


def check_rest(own: nn.Module, other: nn.Module, names: set[str]) -> None:
    """Raise `PatterningError` where `other` differs from `own` in what a row of the parameters `names` cannot hold.

    That is: parameters that are frozen, and buffers that are stored with the module (running statistics). Types of
    numbers may differ: two values agree where they round to the same number of the coarser type.
    """
    mine, theirs = _rest(own, names), _rest(other, names)
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        a, b = mine.get(name), theirs.get(name)
        if a is None or b is None:
            trouble = f"is missing in the {'other module' if b is None else 'module of the task'}"
        elif a.shape != b.shape:
            trouble = f"is {tuple(b.shape)} there and {tuple(a.shape)} in the task's module"
        elif not _agree(a, b):
            trouble = "has other values there"
        else:
            continue
        raise PatterningError(
            f"this module is not the task's with other parameters: {name} {trouble}, and a row w* holds no buffers and "
            f"no frozen parameters; {REMEDY}"
        )


def _unlike(own: nn.Module, other: nn.Module) -> list[str]:
    """Names of parts and settings in which two modules differ, besides parameters and stored buffers."""
    mine, theirs = _settings(own), _settings(other)
    return [name for name in dict.fromkeys([*mine, *theirs]) if mine.get(name, _NONE) != theirs.get(name, _NONE)]


def _settings(module: nn.Module) -> dict[str, object]:
    standard, found = vars(nn.Module()), dict[str, object]()
    for path, part in module.named_modules():
        where = f"{path}." if path else ""
        found[path or "its class"] = f"{type(part).__module__}.{type(part).__qualname__}"
        found[f"{where}hooks"] = len(part._forward_hooks) + len(part._forward_pre_hooks)
        found |= {
            f"{where}{key}": value
            for key, value in vars(part).items()
            if key not in standard and isinstance(value, bool | int | float | complex | str | tuple | torch.dtype)
        }
    return found


def _rest(module: nn.Module, names: set[str]) -> dict[str, Tensor]:
    stored = set(module.state_dict(keep_vars=True))
    kept = {name: p for name, p in module.named_parameters() if name not in names}
    buffers = {name: value for name, value in module.named_buffers() if name in stored}
    return {name: value.detach() for name, value in (kept | buffers).items() if name.rpartition(".")[2] not in COUNTERS}


def _agree(a: Tensor, b: Tensor) -> bool:
    if a.device != b.device:
        a, b = a.cpu(), b.cpu()
    if a.dtype != b.dtype and a.is_floating_point() and b.is_floating_point():
        coarse = max((a.dtype, b.dtype), key=lambda dtype: torch.finfo(dtype).eps)
        a, b = a.to(coarse), b.to(coarse)
    return same_values(a, b)
