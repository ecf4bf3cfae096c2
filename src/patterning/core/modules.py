"""Handling a user's module: copies, fresh ones, tied parameters, and attributes that a forward pass changes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from patterning.core.errors import PatterningError
from patterning.core.numbers import as_float32
from patterning.core.rng import Stream, generator
from patterning.core.seen import Seen, fresh, tensors

_MISSING = object()


def copy_module(module: nn.Module, *, convert: bool = True) -> nn.Module:
    """A copy of a module that may hold tensors of an earlier forward pass; in evaluation mode, and in float32.

    `convert` False leaves number types and mode as they are. Raises `PatterningError` for what cannot be copied.
    """
    if not isinstance(module, nn.Module):
        raise PatterningError(f"the model must be a torch.nn.Module (found {type(module).__name__})")
    memo: dict[int, Any] = {}
    _check_parameters(module)
    for part in module.modules():
        for tensor in tensors(part.__dict__):
            if tensor.requires_grad and not tensor.is_leaf:  # deepcopy refuses these: results of a computation
                memo[id(tensor)] = tensor.detach().clone()
    try:
        copy = deepcopy(module, memo)
        if not convert:
            return copy
        numbers = [*copy.parameters(), *copy.buffers()]
        if any(value.is_floating_point() and value.dtype != torch.float32 for value in numbers):
            copy = copy.float()
    except Exception as error:
        raise PatterningError(
            f"the module cannot be copied or converted to float32 ({type(error).__name__}: {_first_line(error)}): "
            f"{_what_hinders(module)}, or give it in float32"
        ) from error
    return copy.eval()


def other_names(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Tied parameters: the name a parameter is listed under → its names in other modules.

    A module that stands under two names has its parameters once.
    """
    places: dict[int, dict[tuple[int, str], str]] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        path, _, attribute = name.rpartition(".")
        places.setdefault(id(p), {}).setdefault((id(module.get_submodule(path)), attribute), name)
    listed = {id(p): name for name, p in module.named_parameters()}
    found = {}
    for key, names in places.items():
        others = tuple(name for name in names.values() if name != listed[key])
        if len(names) > 1:
            found[listed[key]] = others
    return found


@contextmanager
def keep_attributes(module: nn.Module, changing: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Attributes and buffers (name of the submodule, name in it) are afterwards what they were before.

    A forward pass may leave tensors of its own behind (`self.last = x`), or write into a cache. While the context lasts
    it is given copies of what it changes, so that every call finds what the first one found.
    """
    kept, made = list[tuple[dict[str, Any], str, object]](), dict[int, Any]()
    for path, name in changing:
        if (part := _submodule(module, path)) is not None:
            for place in (part.__dict__, part._buffers):
                before = place.get(name, _MISSING)
                kept.append((place, name, before))
                if before is not _MISSING:
                    place[name] = fresh(before, made)
    try:
        yield
    finally:
        for place, name, before in kept:
            if before is _MISSING:
                place.pop(name, None)
            else:
                place[name] = before


def attributes_of(module: nn.Module) -> dict[tuple[str, str], Seen]:
    """What every attribute and buffer of every submodule is now (no parameters, submodules and hooks)."""
    made: dict[int, Any] = {}
    return {place: Seen(value, exact=True, made=made) for place, value in _attributes(module).items()}


def changed_attributes(before: Mapping[tuple[str, str], Seen], module: nn.Module) -> tuple[tuple[str, str], ...]:
    """Those that are other objects now than `before`, or the same ones with other contents."""
    after = _attributes(module)
    keys = [*before, *(key for key in after if key not in before)]
    return tuple(key for key in keys if key not in before or before[key].changed(after.get(key, _MISSING)))


def put_back(before: Mapping[tuple[str, str], Seen], module: nn.Module, changed: Sequence[tuple[str, str]]) -> None:
    """Give the module copies of what the attributes `changed` were `before`."""
    for path, name in changed:
        part = module.get_submodule(path)
        place = part._buffers if name in part._buffers else part.__dict__
        if (path, name) in before:
            place[name] = before[path, name].copy
        else:
            place.pop(name, None)


def _attributes(module: nn.Module) -> dict[tuple[str, str], object]:
    standard = vars(nn.Module())
    return {
        (path, key): value
        for path, part in module.named_modules()
        for key, value in (*vars(part).items(), *part._buffers.items())
        if key not in standard
    }


def fresh_module(
    module: nn.Module, make: Callable[[int], nn.Module] | None, seed: int, names: Sequence[str]
) -> nn.Module:
    """A module of the same kind with parameters `names` as a seed sets them.

    By `make(seed)`; by the constructor of a Hugging Face model, which starts it as its authors say; by the module's own
    `_init_weights`; or by each submodule's `reset_parameters`, children before their parents. The global random state
    is left as it was. Raises `PatterningError` where nothing sets some parameter.
    """
    own_seed = int(generator(seed, Stream.INIT).integers(2**63))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(own_seed)
        if make is not None:
            return _made(make, seed)
        if hasattr(module, "_init_weights") and hasattr(module, "config"):
            return _constructed_again(module)
        fresh = deepcopy(module).cpu()
        for p in fresh.parameters():
            p.detach().fill_(torch.nan)  # what nothing sets is found by its NaN
        for part in reversed(list(fresh.modules())):
            for method in ("_reset_parameters", "reset_parameters"):  # the first is MultiheadAttention's
                getattr(part, method, lambda: None)()
        if hasattr(fresh, "_init_weights"):
            rule: Any = fresh._init_weights
            fresh.apply(rule)
    values = dict(fresh.named_parameters())
    if unset := [name for name in names if bool(values[name].isnan().any())]:
        raise PatterningError(
            f"{', '.join(unset[:5])}: no reset_parameters() sets these parameters, so a seed cannot. Give the task "
            "make=..., a function of a seed that returns a fresh module"
        )
    return fresh


def spread(n: int, count: int) -> Tensor:
    """`count` row numbers (at most n), evenly spread over 0..n-1."""
    count = min(n, count)
    return torch.arange(count) * n // count


def displaced(parameters: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Parameters away from `parameters` (any shapes): each tensor's entries plus noise of their own size."""
    rng = generator(number, Stream.TRIAL)
    moved = {}
    for name, value in parameters.items():
        size = float(value.detach().double().square().mean().sqrt()) + 0.05
        noise = torch.from_numpy(rng.standard_normal(tuple(value.shape), dtype=np.float32))
        moved[name] = value.detach() + size * noise.to(value)
    return moved


def _made(make: Callable[[int], nn.Module], seed: int) -> nn.Module:
    fresh = make(seed)
    if not isinstance(fresh, nn.Module):
        raise PatterningError(f"make({seed}) returned {type(fresh).__name__}: it must return a module")
    return fresh


def _constructed_again(module: nn.Module) -> nn.Module:
    """A Hugging Face model from its configuration: some of its scales are set by its constructor alone."""
    try:
        fresh = type(module)(deepcopy(module.config))
    except Exception as error:
        raise PatterningError(
            f"{type(module).__name__} cannot be made again from its configuration ({_first_line(error)}): give the "
            "task make=..., a function of a seed that returns a fresh module"
        ) from error
    return fresh.float()


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:  # a copy whose parts stand elsewhere
        return None


def _check_parameters(module: nn.Module) -> None:
    """Raise `PatterningError` for numbers that a row of float32 cannot hold, or that are not there yet."""
    for name, p in module.named_parameters():
        if is_lazy(p) or p.is_meta:
            raise PatterningError(f"parameter {name} has no numbers yet: load the weights, or run the module once")
        if p.requires_grad and p.is_complex():
            as_float32(f"parameter {name}", p)
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.dtype == torch.float64:
            as_float32(name, value.detach())
    _check_memory(module)


def _check_memory(module: nn.Module) -> None:
    """Raise `PatterningError` for trainable parameters that share numbers without being the same parameter.

    A row would hold such numbers twice, with two values.
    """
    spans: list[tuple[int, int, str]] = []
    for name, p in module.named_parameters():
        if not p.requires_grad or p.layout != torch.strided or not p.numel():
            continue
        if any(stride == 0 and size > 1 for size, stride in zip(p.shape, p.stride(), strict=True)):
            raise PatterningError(
                f"parameter {name} repeats the same numbers (it was expanded): make it nn.Parameter(values.clone()), "
                "or keep the few numbers as the parameter and expand them in the forward pass"
            )
        last = sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
        spans.append((p.data_ptr(), p.data_ptr() + (last + 1) * p.itemsize, name))
    spans.sort()
    for (_, end, name), (start, _, other) in pairwise(spans):
        if start < end:
            raise PatterningError(
                f"parameters {name} and {other} share memory, but are two parameters: to tie them make them the same "
                "object (a.weight = b.weight), or else give each its own numbers (nn.Parameter(values.clone()))"
            )


def _what_hinders(module: nn.Module) -> str:
    """What to remove, for a module that cannot be copied."""
    for (path, name), value in _attributes(module).items():
        try:
            deepcopy(value, {id(value): None} if isinstance(value, Tensor) else {})
        except Exception:  # whatever keeps it from being copied
            where = f"{path}.{name}" if path else name
            return f"remove its attribute {where} (a {type(value).__name__}), or make it where it is used"
    return "remove what its modules hold besides parameters and buffers"


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]
