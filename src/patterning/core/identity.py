"""What a result depends on, as a digest: functions, objects and modules by what they hold, not by their names alone.

A function of the user's is its bytecode, its constants and defaults, what its closure holds, and what it reads of its
module (constants, other functions, classes), followed as far as it goes. A function of an installed package is its
name, and one of this package its name and the code that it reaches (`core.code`). What cannot be told apart by
anything but its address has no key: `digest` then never gives the same answer twice, so that nothing is reused, and a
warning says why. Locks and loggers decide no number: they are left out.
"""

import hashlib
import io
import logging
import random
import threading
import types
import uuid
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, GenericAlias, MethodType, ModuleType, UnionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patterning.core.code import PACKAGE, code_version
from patterning.core.errors import PatterningWarning
from patterning.core.held import held_by
from patterning.core.libraries import is_library
from patterning.core.module_reads import globals_read, imported, read_from_modules
from patterning.core.notes import without_notes
from patterning.core.rows import RowSource
from patterning.core.tensors import parts_of

_PLAIN = (type(None), bool, int, float, complex, str, bytes, slice, range)
_NOT_SUBCLASSED = (type, nn.Module, FunctionType, MethodType, BuiltinFunctionType, ModuleType, CodeType, Enum)
_IGNORED = (
    type(threading.Lock()), type(threading.RLock()), logging.Logger, logging.LoggerAdapter, logging.Handler,
    threading.Condition, threading.Event, threading.Semaphore, threading.local,
)  # fmt: skip
"""What no number depends on: who may go first, and what is written down on the way."""
_DESCRIPTORS = (
    types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType,
    types.MethodDescriptorType, types.WrapperDescriptorType,
)  # fmt: skip
"""Methods and attributes that are written in C, as they stand in a class: slots are, too."""
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
    """Sixteen hex digits that change when anything that the parts hold or reach changes.

    Warns (`PatterningWarning`) where something has no key: results that depend on it cannot be found again.
    """
    found, without_key = digest_of(*parts)
    if without_key:
        warnings.warn(
            f"results cannot be found again when this is run another time, as what they depend on holds "
            f"{without_key[0]}, which has no value to tell it by: keep it out of modules, losses and observables, "
            "or replace it by plain values",
            PatterningWarning,
            stacklevel=3,
        )
    return found


def digest_of(*parts: object) -> tuple[str, list[str]]:
    """`digest` without its warning, and what has no key, in words: to tell what changed, where nothing is stored."""
    walk = _Walk()
    return walk.of(parts)[:16], walk.without_key


def attributes_of(value: object) -> dict[str, object]:
    """What an object is told by, by name, where that is its attributes; nothing for all that has a way of its own."""
    walk = _Walk()
    if walk._describer(value) != walk._object or not isinstance(held := _held(value, "__dict__"), dict):
        return {}
    return without_notes(value, held)


class _Walk:
    """One walk over objects. Each is visited once; one that holds itself is named by its place on the way down."""

    def __init__(self) -> None:
        self._digests: dict[int, str] = {}
        self._under_way: list[int] = []
        self._path: list[object] = []
        self._alive: list[object] = []  # an address may be used again once its object is gone
        self._describers: dict[type, Callable[[Any], str]] = {}
        self.without_key: list[str] = []
        """What had no key, in words."""

    def of(self, what: object) -> str:
        if type(what) in _PLAIN:
            return _hash("plain", type(what).__name__, repr(what))
        if id(what) in self._under_way:
            return _hash("cycle", str(self._under_way.index(id(what))))
        if id(what) not in self._digests:
            self._alive.append(what)
            self._under_way.append(id(what))
            self._path.append(what)
            describe = self._describers.get(type(what)) or self._describer(what)
            found = describe(what)
            if describe != self._object and not isinstance(what, _NOT_SUBCLASSED) and not is_library(_module_of(what)):
                found = self._join("subclass", found, type(what), _held(what, "__dict__"))
            self._digests[id(what)] = found
            self._path.pop()
            self._under_way.pop()
        return self._digests[id(what)]

    def _describer(self, what: object) -> Callable[[Any], str]:
        """How values of this type are told apart; looked up once for a type, since a walk meets few of them."""
        found = next((describe for kinds, describe in self._kinds() if isinstance(what, kinds)), self._object)
        self._describers[type(what)] = found
        return found

    def _kinds(self) -> list[tuple[Any, Callable[[Any], str]]]:
        return [
            (Enum, lambda value: _hash("plain", *_full_name(type(value)), repr(value))),
            (_PLAIN, lambda value: _hash("plain", _value_of(value))),
            (Tensor, self._tensor),
            (weakref.ref, lambda value: self._join("weakref", value())),
            (_IGNORED, lambda value: _hash("ignored", type(value).__name__)),
            (random.Random, lambda value: self._join("random", type(value), value.getstate())),
            (torch.Generator, lambda value: self._join("generator", str(value.device), value.get_state())),
            (np.ndarray, self._array),
            (RowSource, lambda value: _hash("rows", value.fingerprint)),
            (np.generic, lambda value: _hash("number", str(value.dtype), repr(value.item()))),
            ((torch.dtype, torch.device, torch.Size, Path), lambda value: _hash("plain", repr(value))),
            (nn.Module, self._module),
            (partial, lambda value: self._join("partial", value.func, value.args, dict(value.keywords))),
            (MethodType, lambda value: self._join("method", value.__func__, value.__self__)),
            (FunctionType, self._function),
            (BuiltinFunctionType, self._builtin),
            (
                GenericAlias,
                lambda value: self._join("alias", value.__origin__, value.__args__),
            ),  # before type: it says so
            (UnionType, lambda value: self._join("union", value.__args__)),
            (type, self._class),
            (_DESCRIPTORS, lambda value: self._join("descriptor", value.__objclass__, value.__name__)),
            (ModuleType, self._file),
            (CodeType, self._code),
            (Mapping, self._mapping),
            ((list, tuple), lambda value: self._join(type(value).__name__, *value)),
            ((set, frozenset), self._set),
        ]

    def _join(self, kind: str, *parts: object) -> str:
        return _hash(kind, *(self.of(part) for part in parts))

    def _tensor(self, value: Tensor) -> str:
        own = vars(value) if type(value) is Tensor else {}  # libraries mark parameters, and have kinds of their own
        if own:
            return self._join("tensor with attributes", value.detach(), dict(own))
        value = value.detach()
        try:
            if (parts := parts_of(value)) is not None:
                return self._join("tensor", type(value).__name__, str(value.dtype), *parts)
            flat = value.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
            data = flat.view(torch.uint8).numpy().tobytes()
        except (RuntimeError, NotImplementedError, TypeError):  # left behind by a transform, say
            return self._unkeyed(value)
        return _hash("tensor", f"{value.dtype}{tuple(value.shape)}", data)

    def _set(self, value: set[object] | frozenset[object]) -> str:
        walks = [_Walk() for _ in value]
        found = sorted(walk.of(part) for walk, part in zip(walks, value, strict=True))
        self.without_key += [words for walk in walks for words in walk.without_key]
        return _hash("set", *found)

    def _array(self, value: np.ndarray) -> str:
        if isinstance(value, np.ma.MaskedArray):
            return self._join("masked", value.data, np.ma.getmaskarray(value))
        if value.dtype.hasobject:
            return self._join("array", value.tolist())
        return _hash("array", f"{value.dtype}{value.shape}", np.ascontiguousarray(value).tobytes())

    def _mapping(self, value: Mapping[Any, Any]) -> str:
        return self._join("mapping", list(value), list(value.values()), _held(value, "default_factory"))

    def _builtin(self, value: BuiltinFunctionType) -> str:
        owner = value.__self__
        bound = owner is not None and not isinstance(owner, ModuleType | type)
        return self._join("builtin", value.__module__, value.__qualname__, owner if bound else None)

    def _function(self, value: FunctionType) -> str:
        held = [_contents(cell) for cell in value.__closure__ or ()]
        if value.__module__ not in (None, "builtins") and is_library(value.__module__):  # these are typed in
            made = [held, value.__defaults__, value.__kwdefaults__] if "<locals>" in value.__qualname__ else []
            return self._join("function", value.__module__, value.__qualname__, _own_code(value.__module__), made)
        named = {name: value.__globals__[name] for name in globals_read(value.__code__) if name in value.__globals__}
        named |= imported(value.__code__)
        closed = dict(zip(value.__code__.co_freevars, held, strict=True))
        read = [*named.values(), *read_from_modules(value.__code__, closed | named).values()]
        own = without_notes(value, vars(value))
        return self._join("function", value.__code__, value.__defaults__, value.__kwdefaults__, held, read, own)

    def _code(self, value: CodeType) -> str:
        return self._join("code", value.co_code, value.co_names, value.co_varnames, value.co_freevars, value.co_consts)

    def _class(self, value: type) -> str:
        name = ".".join(_full_name(value))
        if is_library(value.__module__):
            return _hash("class", name, _own_code(value.__module__))
        own = {key: part for key, part in vars(value).items() if not _is_bookkeeping(key)}
        return self._join("class", name, list(value.__bases__), own)

    def _file(self, value: ModuleType) -> str:
        path = _held(value, "__file__")
        if path is None or is_library(value.__name__):
            return _hash("module", value.__name__)
        return _hash("module", Path(path).read_bytes())

    def _module(self, value: nn.Module) -> str:
        parts: list[object] = [value.training]
        for name, part in value.named_modules():
            own = without_notes(part, {key: held for key, held in vars(part).items() if key not in _OF_MODULES})
            hooks = [list(getattr(part, kind, {}).values()) for kind in _HOOKS]
            parts += [name, type(part), own, hooks]
        parts += [item for pair in value.named_parameters(remove_duplicate=False) for item in pair]
        parts += [p.requires_grad for p in value.parameters()]
        parts += [item for pair in value.named_buffers(remove_duplicate=False) for item in pair]
        return self._join("nn.Module", *parts)

    def _object(self, value: object) -> str:
        if isinstance(value, Iterator | AsyncIterator | Coroutine | io.IOBase):
            return self._unkeyed(value)  # what they will give next is not in what they hold
        parts = held_by(value)
        return self._unkeyed(value) if parts is None else self._join("object", *parts)

    def _unkeyed(self, value: object) -> str:
        owner = next((part for part in reversed(self._path) if part is not value and _has_name(part)), None)
        held = f" held by {_name_of(owner)}" if owner is not None else ""
        self.without_key.append(f"a {type(value).__name__}{held}")
        return _hash("unkeyed", uuid.uuid4().hex)


def _value_of(value: object) -> str:
    """The plain value under a subclass's own way to show itself."""
    kind: Any = next(kind for kind in _PLAIN if isinstance(value, kind))
    return f"{kind.__name__} {kind.__repr__(value)}"


def _has_name(value: object) -> bool:
    return isinstance(value, nn.Module | FunctionType | type) or not isinstance(
        value, (*_PLAIN, list, tuple, Mapping, set, frozenset, CodeType)
    )


def _name_of(value: object) -> str:
    return _held(value, "__qualname__") or type(value).__qualname__


def _full_name(kind: type) -> tuple[str, str]:
    """A library's class by its module and its name, the user's by its name.

    The user's file goes by other names when it is loaded again, imported, or run; what is in the class tells the rest.
    """
    return kind.__module__ if is_library(kind.__module__) else "", kind.__qualname__


def _module_of(value: object) -> str:
    return type(value).__module__


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


def _own_code(module: str) -> str:
    """The code that a module of this package reaches; nothing for other packages."""
    return code_version(module) if module.partition(".")[0] == PACKAGE else ""


def _held(value: object, name: str) -> Any:
    """An attribute, or None where there is none: a dict whose attributes are its items says so by a KeyError."""
    try:
        return getattr(value, name, None)
    except Exception:
        return None


def _is_bookkeeping(name: str) -> bool:
    """Class attributes that say nothing of what a class does, or hold addresses."""
    return name in {
        "__dict__", "__weakref__", "__module__", "__doc__", "__annotations__", "__annotate__", "__annotate_func__",
        "__annotations_cache__", "__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl",
        "__parameters__", "__orig_bases__", "__qualname__",
    }  # fmt: skip
