"""Arrays as callers give them, checked: numbers as float64, and which samples are meant as a mask."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterning.core.errors import PatterningError
from patterning.core.indexes import refuse_shuffled
from patterning.core.tensors import check_layout, without_mask

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
MOST_COUNTED = 2000
"""Test rows up to which a share of them is told from a real number."""


def as_floats(name: str, values: Any, ndim: int | None = None) -> Floats:
    """`values` (an array, a tensor or a list) as a new float64 array, so that no integer type can wrap or truncate.

    Raises `PatterningError` for what holds no real numbers, or has not `ndim` axes.
    """
    array = as_array(name, values)
    if array.dtype.kind not in "biuf":
        raise PatterningError(f"{name} must be real numbers (found an array of {array.dtype})")
    if ndim is not None and array.ndim != ndim:
        raise PatterningError(f"{name} has shape {array.shape}: it must have {ndim} axis" + ("es" if ndim > 1 else ""))
    return array.astype(np.float64)


def as_mask(name: str, mask: Any, count: int) -> Bools:
    """`mask` as a bool array (count,); None means all. Raises `PatterningError` for any other type or shape.

    0/1 integers are refused: numpy would take them for positions.
    """
    if mask is None:
        return np.ones(count, dtype=bool)
    refuse_shuffled(name, mask)
    array = as_array(name, mask)
    if array.dtype != np.bool_:
        raise PatterningError(
            f"{name} is an array of {array.dtype}: it must be bool, True at the samples that are meant "
            "(for 0/1 numbers write mask.astype(bool); for positions set these entries of np.zeros(n, bool))"
        )
    if array.shape != (count,):
        raise PatterningError(f"{name} has shape {array.shape} for {count} samples")
    return array


def as_ids(ids: Any) -> NDArray[Any]:
    """Names of rows (n,): all whole numbers or all text, no two alike; raises `PatterningError` else."""
    given = as_array("ids", ids) if isinstance(ids, np.ndarray) or hasattr(ids, "detach") else list(ids)
    array = as_array("ids", given)
    kinds = {_kind_of(name) for name in given}
    if array.ndim != 1 or array.dtype.kind not in "iuUSO" or len(kinds) > 1 or not kinds <= {"number", "text"}:
        raise PatterningError(
            f"ids must be one name a row, all whole numbers or all text (found an array of {array.dtype} "
            f"{array.shape}, such as {', '.join(repr(name) for name in list(given)[:3])}); str(name) is text"
        )
    first: dict[Any, int] = {}
    for place, name in enumerate(array.tolist()):
        if first.setdefault(name, place) != place:
            raise PatterningError(
                f"ids must be different: {name!r} is the id of row {first[name]} and of row {place}, so that a weight "
                "looked up by it would be one of two"
            )
    return array


def _kind_of(name: object) -> str:
    whole = isinstance(name, int | np.integer) and not isinstance(name, bool)
    return "number" if whole else "text" if isinstance(name, str | bytes) else type(name).__name__


def ranks(values: Any) -> Floats:
    """Ranks from 1, ties shared."""
    from scipy.stats import rankdata  # slow to import

    return rankdata(values)


def check_level(level: float) -> None:
    """Raise `PatterningError` unless a confidence level lies between 0 and 1."""
    if isinstance(level, bool) or not isinstance(level, int | float | np.number) or not 0 < level < 1:
        raise PatterningError(f"level is {level!r}: it must be between 0 and 1, such as 0.95")


def are_shares(values: Floats) -> bool:
    """Whether all values are whole numbers of some 1/n, n <= 2,000, as an accuracy is: these agree by chance, too."""
    multiples = np.arange(1, MOST_COUNTED + 1)[:, None] * values
    return bool((np.abs(multiples - np.round(multiples)).max(1) < 1e-3).any())


def as_array(name: str, values: Any) -> np.ndarray:
    """`values` (an array, a tensor or a list) as an array of NumPy; raises `PatterningError` for a ragged list."""
    numpy = getattr(values, "numpy", None)  # a tensor
    if callable(numpy) and hasattr(values, "detach"):
        check_layout("an array", values)
        own = values.detach().cpu()
        return np.asarray((own.float() if own.is_floating_point() and own.itemsize < 4 else own).numpy())
    try:
        return np.asarray(without_mask("an array", values))
    except PatterningError:
        raise
    except ValueError:
        raise PatterningError(
            f"{name} is a list of lists of different lengths: all rows must be of one length"
        ) from None
