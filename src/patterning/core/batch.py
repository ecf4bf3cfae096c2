"""Rows of data as a user has them: tensors, arrays, and tuples, lists and dicts of these with one leading axis."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any, cast

import numpy as np
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.numbers import from_numpy, plain_tensor

Batch = Any
"""A tensor (b, ...), or a tuple, list or dict of them (nested as you like) with one leading axis; None stays None."""


def as_batch(data: object) -> Batch:
    """`data` with its leaves as tensors: arrays and lists of numbers are converted, floating point numbers to float32.

    Raises `PatterningError` for what holds no numbers.
    """
    if isinstance(data, Tensor):
        return plain_tensor(data)
    if isinstance(data, np.ndarray):
        return from_numpy(data)
    if isinstance(data, Mapping):
        return {key: None if part is None else as_batch(part) for key, part in data.items()}
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        items = cast("Sequence[Any]", data)
        if len(items) and _holds_numbers(items):
            return _from_numbers(items)
        return _like(items, [None if part is None else as_batch(part) for part in items])
    if hasattr(data, "__array__"):  # a pandas column, say
        return from_numpy(np.asarray(data))
    raise PatterningError(
        f"data must be tensors, arrays or lists of numbers, or tuples, lists and dicts of them (found {_kind(data)})"
    )


def leaves(data: Batch) -> list[Tensor]:
    """Every tensor in `data`, in a fixed order."""
    if data is None:
        return []
    if isinstance(data, Tensor):
        return [data]
    parts = data.values() if isinstance(data, Mapping) else data
    return [leaf for part in parts for leaf in leaves(part)]


def map_batch(function: Callable[[Tensor], Tensor], data: Batch) -> Batch:
    """`function` of every tensor in `data`, in containers of the same kind."""
    if data is None:
        return None
    if isinstance(data, Tensor):
        return function(data)
    if isinstance(data, Mapping):
        return {key: map_batch(function, part) for key, part in data.items()}
    return _like(data, [map_batch(function, part) for part in data])


def count_rows(data: Batch) -> int:
    """Length of the leading axis, the same in every tensor; raises `PatterningError` where it is not, or is 0."""
    sizes = sorted({len(values) if values.ndim else 0 for values in leaves(data)})
    if len(sizes) != 1 or not sizes[0]:
        raise PatterningError(f"the data must be tensors with one leading axis of n > 0 rows (found lengths {sizes})")
    return sizes[0]


def take_rows(data: Batch, rows: Tensor) -> Batch:
    """Rows of every tensor in `data`: each (n, ...) becomes (*rows.shape, ...)."""
    return map_batch(lambda values: values[rows.to(values.device)], data)


def _like(container: Any, parts: list[Any]) -> Any:
    """A list, tuple or named tuple of the container's kind."""
    if hasattr(container, "_fields"):
        return type(container)(*parts)
    return parts if isinstance(container, list) else tuple(parts)


def _holds_numbers(items: Sequence[Any]) -> bool:
    """Whether a sequence is an array in Python's clothes: numbers, or a list of lists of numbers.

    A tuple of lists is a container of arrays.
    """
    first = items[0]
    if isinstance(items, list) and isinstance(first, list | tuple):
        return len(first) > 0 and _holds_numbers(first)
    return isinstance(first, Number)


def _from_numbers(items: Sequence[Any]) -> Tensor:
    try:
        return from_numpy(np.array(items))
    except ValueError as error:  # rows of unequal length
        raise PatterningError(
            f"a list of numbers is no array ({error}): pad rows of unequal length to one length, and let the loss "
            "return a pair (losses, mask) with mask False at the padding"
        ) from None


def _kind(what: object) -> str:
    return type(what).__name__
