"""What a module holds besides parameters, seen so that changes show, in place or not; and copies to hand out instead.

An attribute may be a tensor, or a list, dict, set or object that holds some: a cache that a forward pass fills. Such a
container is changed by `append` or `cache[key] = …` while the attribute stays the same object.
"""

import copy
import io
import logging
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, MutableMapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

DEPTH = 4
"""How deep containers and objects of an attribute are looked into."""

_CLOSED = (
    nn.Module, type, FunctionType, MethodType, BuiltinFunctionType, ModuleType, str, bytes, logging.Logger,
    logging.Handler, io.IOBase,
)  # fmt: skip
"""Not looked into: they have no contents of their own, or are looked after elsewhere."""


_PLAIN = (dict, OrderedDict, list, set)
"""Containers that need no look inside when they are empty. A module holds some twenty of them, for its hooks."""


class Seen:
    """What a value was at a moment: which objects it consisted of, and how often its tensors had been written to.

    Keeps what it saw alive, so that no address is used twice. `exact` clones tensors as well: writing through `.data`
    counts as no writing. `made`: as in `fresh`, of values that share parts.
    """

    def __init__(self, value: object, *, exact: bool = False, made: dict[int, Any] | None = None) -> None:
        self._alive: list[object] | None = []
        self._exact = exact
        self.value = value
        self._before = self._look(value, DEPTH, ())
        self._kept_alive, self._alive = self._alive, None  # what is looked at later need not be kept
        self.copy = fresh(value, {} if made is None else made) if exact else None

    def changed(self, now: object) -> bool:
        """Whether `now` is another value than was seen, or the same one with other contents."""
        if self._look(now, DEPTH, ()) != self._before:
            return True
        if not self._exact:
            return False
        pairs = zip(tensors(self.copy, DEPTH), tensors(now, DEPTH), strict=True)
        return not all(same_values(before, after) for before, after in pairs)

    def _look(self, value: object, depth: int, above: tuple[int, ...]) -> Any:
        if self._alive is not None:
            self._alive.append(value)
        if value is None or isinstance(value, bool | int | float | str):
            return id(value)
        if isinstance(value, Tensor):
            return id(value), None if value.is_inference() else value._version
        if type(value) in _PLAIN and not value:
            return id(value), ()
        if not depth or id(value) in above or (parts := contents(value)) is None:
            return id(value)
        return id(value), tuple((key, self._look(part, depth - 1, (*above, id(value)))) for key, part in parts)


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN included, as far as their kind can be compared."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    try:
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    except (RuntimeError, NotImplementedError, TypeError):  # no comparison for this kind: the version has to do
        return True


def contents(value: object) -> list[tuple[Any, Any]] | None:
    """The parts of a container or an object, each with its place; None for what has none."""
    if isinstance(value, _CLOSED):
        return None
    if isinstance(value, Mapping):
        parts: list[tuple[Any, Any]] = [
            (id(key) if isinstance(key, Tensor) else key, part) for key, part in value.items()
        ]
    elif isinstance(value, list | tuple | deque):
        parts = list(enumerate(value))
    elif isinstance(value, set | frozenset):
        parts = [(id(part), part) for part in value]
    else:
        parts = []
        if not hasattr(value, "__dict__"):
            return None
    own = getattr(value, "__dict__", None)
    return parts + [((".", key), part) for key, part in own.items()] if isinstance(own, dict) else parts


def tensors(value: object, depth: int = DEPTH, above: tuple[int, ...] = ()) -> Iterator[Tensor]:
    """Every tensor in a value, containers and objects looked into."""
    if isinstance(value, Tensor):
        yield value
    elif depth and id(value) not in above and (parts := contents(value)) is not None:
        for _, part in parts:
            yield from tensors(part, depth - 1, (*above, id(value)))


def fresh(value: Any, made: dict[int, Any], depth: int = DEPTH) -> Any:
    """A copy with containers and tensors of its own, all else shared; `made` has what was copied before, by address.

    What two attributes share, their copies share. Parameters are shared as well: they belong to the module.
    """
    if id(value) in made:
        return made[id(value)][1]
    if isinstance(value, nn.Parameter):
        return value
    if isinstance(value, Tensor):
        found: Any = value.detach().clone()
    elif not depth or contents(value) is None:
        return value
    elif isinstance(value, tuple | frozenset):
        parts = [fresh(part, made, depth - 1) for part in value]
        if all(a is b for a, b in zip(parts, value, strict=True)):
            return value
        found = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    else:
        found = _filled(value, made, depth)
    made[id(value)] = value, found  # the value itself, so that its address is not used again
    return found


def _filled(value: Any, made: dict[int, Any], depth: int) -> Any:
    """A shallow copy whose parts are then copied in turn."""
    try:
        found = copy.copy(value)
    except Exception:  # an object that says no (a lock, a file) is shared, as it was before
        return value
    if found is value:
        return value
    made[id(value)] = value, found  # before its parts: one of them may lead back here
    if isinstance(found, MutableMapping):
        for key in list(found):
            found[key] = fresh(value[key], made, depth - 1)
    elif isinstance(found, list | deque):
        for place, part in enumerate(value):
            found[place] = fresh(part, made, depth - 1)
    own = getattr(found, "__dict__", None)
    if isinstance(own, dict) and own is not value.__dict__:
        for key, part in list(own.items()):
            own[key] = fresh(part, made, depth - 1)
    return found
