"""What a result depends on, as a digest: functions, objects and modules by what they hold, not by their names alone.

A function of the user's is its bytecode, its constants and defaults, what its closure holds, and what it reads of its
module (constants, other functions, classes), followed as far as it goes. A function of an installed package is its
name, and one of this package its name and the code that it reaches (`core.code`). What cannot be told apart by
anything but its address has no key: `digest` then never gives the same answer twice, so that nothing is reused.
"""

import dis
import hashlib
import pickle
import sys
import sysconfig
import uuid
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patterning.core.code import PACKAGE, code_version
from patterning.core.rows import RowSource

_PLAIN = (type(None), bool, int, float, complex, str, bytes, slice, range)
_LIBRARIES = tuple(
    str(Path(sysconfig.get_paths()[kind]).resolve()) for kind in ("stdlib", "platstdlib", "purelib", "platlib")
)
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
)
_OF_MODULES = frozenset(vars(nn.Module()))
"""Attributes that every module has: parameters, buffers, children and hooks are keyed on their own."""


def digest(*parts: object) -> str:
    """Sixteen hex digits that change when anything that the parts hold or reach changes."""
    return _Walk().of(parts)[:16]


class _Walk:
    """One walk over objects. Each is visited once; one that holds itself is named by its place on the way down."""

    def __init__(self) -> None:
        self._digests: dict[int, str] = {}
        self._under_way: list[int] = []
        self._alive: list[object] = []  # an address may be used again once its object is gone

    def of(self, what: object) -> str:
        if isinstance(what, _PLAIN):
            return _hash("plain", type(what).__name__, repr(what))
        if id(what) in self._under_way:
            return _hash("cycle", str(self._under_way.index(id(what))))
        if id(what) not in self._digests:
            self._alive.append(what)
            self._under_way.append(id(what))
            describe = next((describe for kinds, describe in self._kinds() if isinstance(what, kinds)), self._object)
            self._digests[id(what)] = describe(what)
            self._under_way.pop()
        return self._digests[id(what)]

    def _kinds(self) -> list[tuple[Any, Callable[[Any], str]]]:
        return [
            (Tensor, self._tensor),
            (np.ndarray, self._array),
            (RowSource, lambda value: _hash("rows", value.fingerprint)),
            (np.generic, lambda value: _hash("number", str(value.dtype), repr(value.item()))),
            ((torch.dtype, torch.device, torch.Size, Enum, Path), lambda value: _hash("plain", repr(value))),
            (nn.Module, self._module),
            (partial, lambda value: self._join("partial", value.func, value.args, dict(value.keywords))),
            (MethodType, lambda value: self._join("method", value.__func__, value.__self__)),
            (FunctionType, self._function),
            (BuiltinFunctionType, self._builtin),
            (type, self._class),
            (ModuleType, self._file),
            (CodeType, self._code),
            (Mapping, lambda value: self._join("mapping", *(part for item in value.items() for part in item))),
            ((list, tuple), lambda value: self._join(type(value).__name__, *value)),
            ((set, frozenset), lambda value: _hash("set", *sorted(_Walk().of(part) for part in value))),
        ]

    def _join(self, kind: str, *parts: object) -> str:
        return _hash(kind, *(self.of(part) for part in parts))

    def _tensor(self, value: Tensor) -> str:
        try:
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        except (RuntimeError, NotImplementedError, TypeError):  # sparse, quantised, or left behind by a transform
            return self._object(value)
        return _hash("tensor", f"{value.dtype}{tuple(value.shape)}", data)

    def _array(self, value: np.ndarray) -> str:
        if value.dtype.hasobject:
            return self._join("array", value.tolist())
        return _hash("array", f"{value.dtype}{value.shape}", np.ascontiguousarray(value).tobytes())

    def _builtin(self, value: BuiltinFunctionType) -> str:
        owner = value.__self__
        bound = owner is not None and not isinstance(owner, ModuleType | type)
        return self._join("builtin", value.__module__, value.__qualname__, owner if bound else None)

    def _function(self, value: FunctionType) -> str:
        if value.__module__ not in (None, "builtins") and _is_library(value.__module__):  # these are typed in
            return _hash("function", value.__module__, value.__qualname__, _own_code(value.__module__))
        held = [_contents(cell) for cell in value.__closure__ or ()]
        read = [value.__globals__[name] for name in _globals_read(value.__code__) if name in value.__globals__]
        return self._join("function", value.__code__, value.__defaults__, value.__kwdefaults__, held, read)

    def _code(self, value: CodeType) -> str:
        return self._join("code", value.co_code, value.co_names, value.co_varnames, value.co_freevars, value.co_consts)

    def _class(self, value: type) -> str:
        name = f"{value.__module__}.{value.__qualname__}"
        if _is_library(value.__module__):
            return _hash("class", name, _own_code(value.__module__))
        own = {key: part for key, part in vars(value).items() if not _is_bookkeeping(key)}
        return self._join("class", name, list(value.__bases__), own)

    def _file(self, value: ModuleType) -> str:
        path = getattr(value, "__file__", None)
        if path is None or _is_library(value.__name__):
            return _hash("module", value.__name__)
        return _hash("module", value.__name__, Path(path).read_bytes())

    def _module(self, value: nn.Module) -> str:
        parts: list[object] = [value.training]
        for name, part in value.named_modules():
            own = {key: held for key, held in vars(part).items() if key not in _OF_MODULES}
            hooks = [list(getattr(part, kind, {}).values()) for kind in _HOOKS]
            parts += [name, type(part), own, hooks]
        parts += [item for pair in value.named_parameters(remove_duplicate=False) for item in pair]
        parts += [p.requires_grad for p in value.parameters()]
        parts += [item for pair in value.named_buffers(remove_duplicate=False) for item in pair]
        return self._join("nn.Module", *parts)

    def _object(self, value: object) -> str:
        held = getattr(value, "__dict__", None)
        slots = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
        if held is not None or slots:
            return self._join("object", type(value), held, {name: getattr(value, name) for name in slots})
        if isinstance(value, property | staticmethod | classmethod):
            return self._join("wrapper", getattr(value, "__func__", None), getattr(value, "fget", None))
        try:
            return _hash("pickled", pickle.dumps(value))
        except Exception:  # whatever keeps it from being pickled, it has no key
            return _hash("unkeyed", uuid.uuid4().hex)


def _hash(*parts: str | bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def _contents(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # named, but not assigned yet
        return "empty"


def _globals_read(code: CodeType) -> list[str]:
    """Names that a function and the functions in it read from their module."""
    names = {
        str(instruction.argval) for instruction in dis.get_instructions(code) if instruction.opname == "LOAD_GLOBAL"
    }
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= set(_globals_read(constant))
    return sorted(names)


def _is_library(module: str | None) -> bool:
    """Whether a module comes with Python, with an installed package, or with this one."""
    name = module or "builtins"
    if name.partition(".")[0] in ("patterning", "builtins") or name in sys.builtin_module_names:
        return True
    path = getattr(sys.modules.get(name), "__file__", None)
    if path is None:
        return name != "__main__" and name in sys.modules
    place = str(Path(path).resolve())
    return any(place.startswith(library) for library in _LIBRARIES)


def _own_code(module: str) -> str:
    """The code that a module of this package reaches; nothing for other packages."""
    return code_version(module) if module.partition(".")[0] == PACKAGE else ""


def _is_bookkeeping(name: str) -> bool:
    """Class attributes that say nothing of what a class does, or hold addresses."""
    return name in {
        "__dict__", "__weakref__", "__module__", "__doc__", "__annotations__", "__annotate__", "__annotate_func__",
        "__annotations_cache__", "__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl",
        "__parameters__", "__orig_bases__", "__qualname__",
    }  # fmt: skip


def _slots(kind: type) -> list[str]:
    names = vars(kind).get("__slots__", ())
    return [names] if isinstance(names, str) else [name for name in names if name not in ("__dict__", "__weakref__")]
