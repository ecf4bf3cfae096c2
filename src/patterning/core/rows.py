"""Rows of a data set that is read by number, a few at a time, so that it need not fit in memory."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from patterning.core.errors import PatterningError
from patterning.core.tensors import from_numbers, from_numpy, from_tensor, refuse_missing

AT_ONCE = 1024
"""Rows that are read at a time where all are gone through."""


class RowSource:
    """A map-style data set: `len(source)` and `source[i]`, as torch's and Hugging Face's data sets are.

    An item is a number, an array, a tensor, or a tuple or dict of these; items must be alike. Text in a dict is left
    out (`left_out` names it). The data set must give the same item for the same number every time. `device`: where
    rows go that have been read.
    """

    def __init__(self, source: Any, device: torch.device | None = None) -> None:
        self.source = source
        self.device = torch.device("cpu") if device is None else device
        self.left_out: tuple[str, ...] = ()
        if len(source) == 0:
            raise PatterningError("the data set is empty: it must have n > 0 rows")
        first = self._item(0)
        if isinstance(first, Mapping):
            self.left_out = tuple(str(key) for key, value in first.items() if not self._is_kept(key, value))
            if len(self.left_out) == len(first):
                raise PatterningError(f"the rows of the data set hold text alone ({', '.join(self.left_out)})")

    def __len__(self) -> int:
        """Rows."""
        return len(self.source)

    def on(self, device: torch.device) -> "RowSource":
        """The same rows, which go to `device` once read."""
        return RowSource(self.source, device)

    def take(self, rows: Tensor) -> Any:
        """The rows with these numbers, stacked: each entry becomes (*rows.shape, ...)."""
        flat = rows.reshape(-1).cpu()
        items = [self._item(int(i)) for i in flat]
        return self._stacked(items, tuple(rows.shape), [int(i) for i in flat])

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the rows and their order. A Hugging Face data set's own covers its data and transforms."""
        known = getattr(self.source, "_fingerprint", None)
        if isinstance(known, str):
            return f"{known}-{len(self)}"
        total = hashlib.sha256()
        for part in torch.arange(len(self)).split(AT_ONCE):
            for values in _tensors(self.take(part)):
                total.update(f"{values.dtype}{tuple(values.shape)}".encode())
                total.update(values.cpu().contiguous().numpy().tobytes())
        return total.hexdigest()[:16]

    def _item(self, row: int) -> Any:
        try:
            with temporarily_clear_interpreter_stack():  # a data set may read values, which derivatives would forbid
                return self.source[row]
        except PatterningError:
            raise
        except Exception as error:
            raise PatterningError(
                f"row {row} of the data set cannot be read ({type(error).__name__}: {error})"
            ) from error

    def _is_kept(self, key: Any, first: Any) -> bool:
        """Whether a column holds numbers: where its first row has none, by the first of the next ones that has any."""
        if first is None:
            items = (self._item(row) for row in range(1, min(len(self), AT_ONCE)))
            first = next((item[key] for item in items if item.get(key) is not None), None)
        return _is_numeric(first)

    def _stacked(self, items: list[Any], shape: tuple[int, ...], rows: list[int], name: str = "") -> Any:
        first = items[0]
        if isinstance(first, Mapping):
            keys = [key for key in first if str(key) not in self.left_out]
            return {key: self._stacked([item[key] for item in items], shape, rows, f": [{key!r}]") for key in keys}
        if isinstance(first, tuple):
            parts = [self._stacked([item[k] for item in items], shape, rows) for k in range(len(first))]
            return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
        try:
            values = [_as_tensor(item) for item in items]
        except PatterningError:
            for row, item in zip(rows, items, strict=True):
                refuse_missing(f"row {row} of the data set{name}", item)
            raise
        for row, value in zip(rows, values, strict=True):
            if value.shape != values[0].shape:
                raise PatterningError(
                    f"rows {rows[0]} and {row} of the data set have shapes {tuple(values[0].shape)} and "
                    f"{tuple(value.shape)}: pad rows to one length, and let the loss return (losses, mask)"
                )
        stacked = torch.stack(values)
        return stacked.reshape(*shape, *stacked.shape[1:]).to(self.device)


def is_row_source(data: object) -> bool:
    """Whether an object is read by row number: it has a length and items, and is no array, sequence or mapping."""
    plain = isinstance(data, Tensor | np.ndarray | Mapping | Sequence) or hasattr(data, "__array__")
    return not plain and hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _is_numeric(value: object) -> bool:
    if isinstance(value, str | bytes) or value is None:
        return False
    if isinstance(value, Sequence) and len(value):
        return _is_numeric(value[0])
    return True


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    else:
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(part)


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return from_tensor(value, item=True)
    if isinstance(value, bool | int | float | np.generic | np.ndarray):
        array = np.asarray(value)
        return from_numpy(array.reshape(1), item=True)[0] if array.ndim == 0 else from_numpy(array, item=True)
    if isinstance(value, Sequence) and len(value) and not isinstance(value, str | bytes):
        return from_numbers(list(value), item=True)
    hint = " (with_format(None) gives plain rows)" if type(value).__name__ in ("DataFrame", "Table") else ""
    raise PatterningError(f"an item of the data set holds {type(value).__name__}: it must be numbers{hint}")
