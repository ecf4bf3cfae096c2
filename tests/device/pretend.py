"""A device that is none: it computes on the CPU, refuses what a GPU refuses, and counts what would make a GPU wait.

PyTorch lets a backend be written in Python ("privateuse1"). This one keeps an ordinary tensor in each of its own. An
operation with a tensor of another device is refused, but for numbers without an axis, as on a GPU; every copy to or
from the CPU and every number read off is counted. Import it in a process of its own: it cannot be taken back.
"""

import sys
from collections import Counter
from typing import Any

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
WAITS = Counter[str]()
"""What a GPU would have waited for, by what it was."""
PLACES = Counter[str]()
"""The same, by the line of the package that asked for it."""
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim", "allclose")
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")


class _Backend(_DummyBackendModule):
    """What PyTorch asks a backend for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Types of autocast."""
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, _Backend())


class Pretended(torch.Tensor):
    """A tensor of the device; `raw` holds its numbers."""

    raw: torch.Tensor

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation on it."""
        del types
        return _any(operation, *args, **(kwargs or {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pretended":
        """A copy; a parameter stays one."""
        if id(self) not in memo:
            made = wrap(self.raw.detach().clone()).requires_grad_(self.requires_grad)
            memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if hasattr(self, "_is_param") else made
        return memo[id(self)]

    def tolist(self) -> Any:
        """All numbers, read off."""
        count("to the host")
        return self.raw.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as on a GPU."""
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy: use Tensor.cpu() first (force={force})")

    def untyped_storage(self) -> torch.UntypedStorage:
        """The numbers' own: views share it."""
        return self.raw.untyped_storage()

    def data_ptr(self) -> int:
        """Where the numbers are."""
        return self.raw.data_ptr()


Pretended.__module__ = "torch"  # a task's key looks into classes that are no library's


def wrap(raw: torch.Tensor) -> Pretended:
    """Numbers as a tensor of the device, without a copy."""
    if raw._is_zerotensor():  # zeros that take no memory
        raw = torch.zeros(raw.shape, dtype=raw.dtype)
    made: Any = torch.Tensor._make_wrapper_subclass(
        Pretended, raw.shape, raw.stride(), raw.storage_offset(), dtype=raw.dtype, device=torch.device(NAME, 0)
    )
    made.raw = raw
    return made


def count(what: str) -> None:
    """Note that a GPU would wait here."""
    WAITS[what] += 1
    frame = sys._getframe()
    while frame is not None:
        _, package, file = frame.f_code.co_filename.rpartition("/patterning/")
        if package:
            PLACES[f"{what} at {file}:{frame.f_lineno}"] += 1
            break
        frame = frame.f_back


def _any(operation: Any, *args: Any, **kwargs: Any) -> Any:
    name = operation._schema.name.removeprefix("aten::")
    if name == "copy_":
        return _copy_from(args[1], args[0])
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    moves = name == "_to_copy" and "device" in kwargs
    if name in READS:
        count(name)
    own = {id(x.raw): x for x in given if isinstance(x, Pretended)}
    strangers = [x for x in given if not isinstance(x, Pretended) and x.ndim]
    if strangers and name in INDEXED and isinstance(args[0], Pretended):
        count("from the host")  # a GPU takes row numbers from the host, and waits for them
    elif strangers:
        raise RuntimeError(
            f"{name}: expected all tensors to be on the same device, found {NAME} and {strangers[0].device}"
        )
    to_host = moves and torch.device(kwargs["device"] or NAME).type == "cpu"

    def plain(x: Any) -> Any:
        if isinstance(x, Pretended):
            return x.raw
        return torch.device("cpu") if isinstance(x, torch.device) and x.type == NAME else x

    if to_host:
        count("to the host")
    found = operation(*tree_map(plain, args), **tree_map(plain, kwargs))
    if to_host or (isinstance(found, torch.Tensor) and found.is_meta):
        return found
    if torch.Tag.inplace_view in operation.tags:  # squeeze_, say, changes the shape of the tensor itself
        with no_dispatch():
            operation(*args, **kwargs)
    return tree_map(lambda x: own[id(x)] if id(x) in own else wrap(x) if isinstance(x, torch.Tensor) else x, found)


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    del non_blocking
    if isinstance(source, Pretended) and not isinstance(target, Pretended):
        count("to the host")
    elif not isinstance(source, Pretended) and source.ndim:
        count("from the host")
    left, right = (x.raw if isinstance(x, Pretended) else x for x in (target, source))
    left.copy_(right)
    return target


_fallback = torch.library.Library("_", "IMPL")
_fallback.fallback(_any, "PrivateUse1")
_aten = torch.library.Library("aten", "IMPL")
_aten.impl("_copy_from", _copy_from, "PrivateUse1")
