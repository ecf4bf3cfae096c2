"""Rows of data as a user has them: tensors, arrays, and tuples, lists and dicts of these with one leading axis."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set, Sized
from numbers import Number
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.parquet_rows import ParquetRows
from patterning.core.rows import RowSource, is_row_source
from patterning.core.tensors import from_numbers, from_numpy, from_tensor, holds_numbers, refuse_missing

MANY_COLUMNS = 3
"""From so many entries on, a list may be one of rows."""
COLUMNS = "is taken as"
Batch = Any
"""A tensor (b, ...), or a tuple, list or dict of them (nested as you like) with one leading axis; None stays None.

A task's data may be a `RowSource` instead, of which rows are taken a few at a time."""


def as_batch(data: object) -> Batch:  # noqa: PLR0911 - one return for each kind of data
    """`data` with its leaves as tensors: arrays and lists of numbers are converted, floating point numbers to float32.

    Raises `PatterningError` for what holds no numbers.
    """
    if isinstance(data, Tensor):
        return from_tensor(data)
    if isinstance(data, np.ndarray):
        return from_numpy(data)
    if hasattr(data, "toarray"):
        raise PatterningError(
            f"the data holds a sparse matrix ({_kind(data)}): give x.toarray(), or a data set that makes each row dense"
        )
    if isinstance(data, Mapping):
        return {key: None if part is None else _entry(key, part) for key, part in data.items()}
    if isinstance(data, str | Path) and str(data).endswith(".parquet"):
        return RowSource(ParquetRows(data))
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        items = cast("Sequence[Any]", data)
        if len(items) and holds_numbers(items):
            return from_numbers(items)
        if any(isinstance(part, Number) for part in items):
            refuse_missing("entry ", items)
        try:
            return _like(items, [None if part is None else _whole(as_batch(part)) for part in items])
        except PatterningError as error:
            hint = "" if COLUMNS in str(error) else listed_rows(items)  # a list within it may have said so
            raise PatterningError(f"{error}{hint}") from None
    if hasattr(data, "__array__"):  # a pandas column, say
        return _table(data) if hasattr(data, "columns") else from_numpy(np.asarray(data))
    if isinstance(data, RowSource) or is_row_source(data):
        return data if isinstance(data, RowSource) else RowSource(data)
    hint = ""
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | Set):
        hint = ": rows are read again and again, in any order, so put all of them into one tensor (torch.stack) first"
    raise PatterningError(
        f"data must be tensors, arrays or lists of numbers, or tuples, lists and dicts of them (found {_kind(data)})"
        f"{hint}"
    )


def leaves(data: Batch) -> list[Tensor]:
    """Every tensor in `data`, in a fixed order; none of a data set that is read by row number."""
    if data is None or isinstance(data, RowSource):
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
    if isinstance(data, RowSource):
        return len(data)
    shapes = [tuple(values.shape) for values in leaves(data)]
    sizes = sorted({shape[0] if shape else 0 for shape in shapes})
    if len(sizes) != 1 or not sizes[0]:
        kinds = ", ".join(str(shape) for shape in shapes[:6]) or "nothing"
        if (hint := listed_rows(data)) != "":
            raise PatterningError(f"the data are read column by column{hint}")
        raise PatterningError(
            f"the data must be tensors with one leading axis of n > 0 rows (found shapes {kinds}): give each the same "
            "number of rows, and what all rows share to the module or the loss"
        )
    return sizes[0]


def listed_rows(data: object) -> str:
    """What to do about a list that seems to hold a row in each entry, where columns are wanted; empty for others."""
    if not isinstance(data, list) or len(data) < MANY_COLUMNS:
        return ""
    kinds = {(type(row), frozenset(row) if isinstance(row, Mapping) else _length(row)) for row in data}
    if len(kinds) > 1 or isinstance(data[0], int | float | str):
        return ""
    return (
        f": a list of {len(data)} {COLUMNS} {len(data)} columns. If they are rows, stack each part of them into one "
        "tensor (torch.stack) and give the parts as a tuple, or wrap the list in a torch Dataset"
    )


def _length(value: object) -> int | None:
    if isinstance(value, Tensor | np.ndarray):
        return value.size if isinstance(value, np.ndarray) else value.numel()
    return len(value) if isinstance(value, Sized) else None


def equal_batches(a: Batch, b: Batch) -> bool:
    """Whether two batches hold the same numbers, in containers of the same shape."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(equal_batches(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(equal_batches(*pair) for pair in zip(a, b, strict=True))
    return a is None and b is None


def check_form(what: str, rows: Batch, like: Batch) -> None:
    """Raise `PatterningError` unless `rows` hold what `like` holds: keys, entries, widths and kinds of numbers.

    `what` names the rows. More keys are let pass.
    """
    if isinstance(like, Mapping) and isinstance(rows, Mapping):
        for key, part in like.items():
            if key not in rows:
                raise PatterningError(f"{what} has no {key!r}, which the task's data has (it has {', '.join(rows)})")
            check_form(f"{what}[{key!r}]", rows[key], part)
    elif isinstance(like, list | tuple) and isinstance(rows, list | tuple) and len(like) == len(rows):
        for i, (row, part) in enumerate(zip(rows, like, strict=True)):
            check_form(f"{what}[{i}]", row, part)
    elif (found := _form(rows)) != (wanted := _form(like)):
        raise PatterningError(f"{what} holds {found}, and the task's data holds {wanted}: give rows in the same form")


def _form(part: Batch) -> str:
    if isinstance(part, Tensor):
        kind = "real numbers" if part.is_floating_point() else "whole numbers"
        return f"{kind} of shape (n{''.join(f', {size}' for size in part.shape[1:])})"
    return f"{len(part)} parts in a {_kind(part)}" if isinstance(part, Sized) else _kind(part)


def take_rows(data: Batch, rows: Tensor) -> Batch:
    """Rows of every tensor in `data`: each (n, ...) becomes (*rows.shape, ...)."""
    if isinstance(data, RowSource):
        return data.take(rows)
    return map_batch(lambda values: values[rows.to(values.device)], data)


def _like(container: Any, parts: list[Any]) -> Any:
    """A list, tuple or named tuple of the container's kind."""
    if hasattr(container, "_fields"):
        return type(container)(*parts)
    return parts if isinstance(container, list) else tuple(parts)


def _entry(key: object, part: object) -> Batch:
    try:
        if isinstance(part, list) and any(isinstance(row, list) for row in part):  # a column: each entry is a row
            refuse_missing("row ", [None if row is None else 0 for row in part])
        return _whole(as_batch(part))
    except PatterningError as error:
        raise PatterningError(f"data[{key!r}]: {error}") from None


def _whole(part: Batch) -> Batch:
    """A part that is held as a whole; raises `PatterningError` for one that is read by row number."""
    if isinstance(part, RowSource):
        raise PatterningError(
            "a data set, which is read by row number, cannot be a part of the data: give one data set as the whole of "
            "the data (of a dict of splits, one split)"
        )
    return part


def _table(frame: Any) -> Tensor:
    """A frame of numbers (n, columns)."""
    array = np.asarray(frame)
    if array.dtype.kind in "biuf":
        return from_numpy(array)
    columns = [np.asarray(frame[name]) for name in frame.columns]
    bad = [str(name) for name, values in zip(frame.columns, columns, strict=True) if values.dtype.kind not in "biuf"]
    if not bad:  # numbers of several types, yes and no among them
        return from_numpy(np.stack(columns, axis=1))
    raise PatterningError(
        f"columns {', '.join(bad)} of the frame hold no numbers: leave them out (frame[[...]]), or give the columns "
        "that the loss needs by name, {'x': frame['x'].to_numpy(), ...}; of lists, np.stack(frame['x'])"
    )


def _kind(what: object) -> str:
    return type(what).__name__
