"""What an object is told by: its attributes and slots, and what it keeps in C, as it gives these when it is copied."""

import copyreg
from collections.abc import Iterator

import numpy as np

from patterning.core.libraries import is_library
from patterning.core.notes import without_notes

_COPIED_BY = ("__reduce__", "__reduce_ex__", "__getstate__")


def held_by(value: object) -> list[object] | None:
    """The parts of an object that has no way of its own in `core.identity`; None where they cannot be had."""
    if isinstance(value, np.ufunc) and value.__name__.endswith("(vectorized)"):
        return None  # np.frompyfunc keeps its function to itself
    own = getattr(value, "__dict__", None)
    slots = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
    seen, copied = own is not None or bool(slots), _is_copied(type(value))
    if not seen and isinstance(value, property | staticmethod | classmethod):
        return [type(value), getattr(value, "__func__", None), getattr(value, "fget", None)]
    kept = None if own is None else without_notes(value, own)
    if seen and not copied:
        return [type(value), kept, {name: getattr(value, name) for name in slots}]
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        made = reduce(value) if reduce else value.__reduce_ex__(4)
    except Exception:  # whatever keeps it from being copied
        return None
    more = {name: part for name, part in (kept or {}).items() if name == "__wrapped__" or _is_of_user(value, name)}
    made = made if isinstance(made, tuple) else (made,)
    return [type(value), more, *(list(part) if isinstance(part, Iterator) else part for part in made)]


def _is_of_user(value: object, name: str) -> bool:
    """Whether an attribute was given to an object of a class of the user's: a library's are caches and the like."""
    return not is_library(type(value).__module__) and not name.startswith("_")


def _is_copied(kind: type) -> bool:
    """Whether a library's class in the family says itself how it is copied: its attributes are then not all of it.

    A pandas frame and a tokenizer keep their values in C, and caches beside them.
    """
    for name in _COPIED_BY:
        home = next((one for one in kind.__mro__ if name in vars(one)), object)
        if home is not object and is_library(home.__module__):
            return True
    return False


def _slots(kind: type) -> list[str]:
    names = vars(kind).get("__slots__", ())
    return [names] if isinstance(names, str) else [name for name in names if name not in ("__dict__", "__weakref__")]
