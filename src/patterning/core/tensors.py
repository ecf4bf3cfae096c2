"""Numbers as tensors, in the types that are computed in: what these cannot hold is refused, not rounded."""

from collections.abc import Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patterning.core.errors import PatterningError

MOST_ROUNDING = 1e-3
"""Share of a column's spread (its standard deviation over the rows) that rounding to float32 may move an entry by."""
NO_SPREAD = 1e-12
"""A spread below this share of a column's size is the rounding of float64 itself: the column is a constant."""
MOST_WHOLE = 2**24
"""Up to here float32 holds every whole number."""


def from_tensor(data: Tensor, *, item: bool = False) -> Tensor:
    """A tensor as data holds it, floating point numbers as float32; `item`: it is one row.

    Raises `PatterningError` for one that cannot be cut into rows, complex numbers, and what float32 cannot tell apart.
    """
    check_layout("data", data)
    if data.is_complex():
        raise PatterningError(f"the data holds complex numbers ({data.dtype}): use torch.view_as_real(data)")
    return _data_as_float32(data.detach(), item=item) if data.is_floating_point() else data.detach()


def holds_numbers(items: Sequence[Any]) -> bool:
    """Whether a sequence is an array in Python's clothes: numbers, or a list of lists of numbers.

    A tuple of lists is a container of arrays.
    """
    first = items[0]
    if isinstance(items, list) and isinstance(first, list | tuple):
        return len(first) > 0 and holds_numbers(first)
    return isinstance(first, Number)


def refuse_missing(what: str, values: object) -> None:
    """Raise `PatterningError` where a list of numbers, or of lists of them, holds None; `what` names it."""
    place = _place_of_none(values)
    if place is not None:
        where = what + "".join(f"[{i}]" for i in place)
        raise PatterningError(
            f"{where} is None: leave out rows without a value, or put a number there and let the loss return (losses, "
            "mask) with mask False at it"
        )


def _place_of_none(values: object) -> tuple[int, ...] | None:
    if values is None:
        return ()
    for i, value in enumerate(values if isinstance(values, list | tuple) else ()):
        if (place := _place_of_none(value)) is not None:
            return (i, *place)
    return None


def from_numbers(items: Sequence[Any], *, item: bool = False) -> Tensor:
    """A list of numbers, or of lists of them of one length; `item`: it is one row."""
    try:
        return from_numpy(np.array(items), item=item)
    except ValueError as error:  # rows of unequal length
        refuse_missing("entry ", items)
        raise PatterningError(
            f"a list of numbers is no array ({error}): pad rows of unequal length to one length, and let the loss "
            "return a pair (losses, mask) with mask False at the padding"
        ) from None


def from_numpy(array: np.ndarray, *, item: bool = False) -> Tensor:
    """An array of numbers: floating point as float32, unsigned as int64; `item`: it is one row.

    Raises `PatterningError` for other arrays, masked ones, and numbers that these types cannot hold.
    """
    array = without_mask("the data", array)
    if array.dtype.kind not in "biuf":
        raise PatterningError(f"data must be numbers (found an array of {array.dtype})")
    if array.dtype.kind == "f":
        array = array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32, copy=False)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch has little arithmetic for these
        if array.dtype.itemsize == 8 and array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise PatterningError(f"data holds {int(array.max())}: whole numbers must be below 2**63")
        array = array.astype(np.int64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # torch knows no other order of bytes
    found = torch.from_numpy(np.ascontiguousarray(array)) if array.flags.writeable else torch.tensor(array)
    return _data_as_float32(found, item=item) if found.dtype == torch.float64 else found


def as_float32(what: str, values: Tensor) -> Tensor:
    """Parameters or buffers as float32; `what` names them. Rounding is let pass, as in any conversion to float32.

    Raises `PatterningError` for complex numbers, for values past the range of float32, and where all of them are so
    small that nothing is left.
    """
    if values.is_complex():
        raise PatterningError(
            f"{what} is complex ({values.dtype}): rows of parameters are real numbers. Keep real and imaginary part as "
            "two real parameters, and join them with torch.complex where they are used"
        )
    if values.dtype == torch.float32:
        return values
    found = values.float()
    if values.dtype != torch.float64:
        return found  # every narrower type fits
    lost = values.isfinite() & ~found.isfinite()
    if bool(lost.any()):
        raise PatterningError(
            f"{what} holds {float(values[lost].flatten()[0]):.6g}, which float32 cannot: everything is computed in "
            "float32 (up to 3.4e38), so give it in other units"
        )
    if bool(values.any()) and not bool(found.any()):
        raise PatterningError(
            f"{what} holds numbers up to {float(values.abs().max()):.3g}, all 0 in float32: give it in other units"
        )
    return found


def check_layout(what: str, values: Tensor) -> None:
    """Raise `PatterningError` for a sparse, nested, quantised, masked or empty (meta) tensor, with the remedy."""
    kind = next((kind for kind, is_that in _LAYOUTS.items() if is_that(values)), None)
    if kind is not None:
        called = str(values.layout).removeprefix("torch.") if kind == "sparse" else kind
        raise PatterningError(
            f"{what} must be plain tensors (found a {called} tensor): give {_REMEDIES[kind]} instead, and where "
            "entries are missing a pair (losses, mask) from the loss"
        )


_LAYOUTS = {
    "nested": lambda values: values.is_nested,
    "masked": lambda values: type(values).__name__ == "MaskedTensor",
    "quantised": lambda values: values.is_quantized,
    "sparse": lambda values: values.layout != torch.strided,
    "meta": lambda values: values.device.type == "meta",
}
_REMEDIES = {
    "nested": "torch.nested.to_padded_tensor(x, 0.0)",
    "masked": "x.get_data() with x.get_mask() beside it",
    "quantised": "x.dequantize()",
    "sparse": "x.to_dense()",
    "meta": "the numbers themselves",
}


def _data_as_float32(values: Tensor, *, item: bool) -> Tensor:
    """Data (n, ...) as float32; raises `PatterningError` where that would lose what tells its rows apart.

    That is: whole numbers past 2²⁴ that change (identifiers, time stamps), numbers past the range of float32, and
    columns that rounding moves by more than 0.1 % of their spread over the rows. An `item` (...) is one row,
    which has no such spread.
    """
    if values.dtype != torch.float64:
        return values.float()
    found = values.float()
    moved = (found.double() - values).abs()
    lost = (values.isfinite() & ~found.isfinite()) | (
        (values.abs() > MOST_WHOLE) & (values == values.round()) & (moved > 0)
    )
    if not item and not bool(lost.any()) and values.ndim and len(values) > 1:
        spread = values.std(0, correction=0)
        constant = spread <= NO_SPREAD * values.abs().amax(0)
        lost = (moved > MOST_ROUNDING * spread) & ~constant & values.isfinite()
    if bool(lost.any()):
        place = tuple(int(i) for i in lost.nonzero()[0])
        raise PatterningError(
            f"data{list(place) if place else ''} is {float(values[place])!r} and would become {float(found[place])!r}: "
            "floating point data is computed with in float32, which cannot tell such numbers apart. Give "
            "numbers that name something (tokens, rows) as int64; of others subtract an offset or change the unit; or "
            "convert them to float32 yourself, if that is what the model is meant to see"
        )
    return found


def without_mask(what: str, array: np.ndarray) -> np.ndarray:
    """The array itself; raises `PatterningError` for a masked one, whose mask would be lost."""
    if not isinstance(array, np.ma.MaskedArray):
        return array
    if np.ma.is_masked(array):
        raise PatterningError(
            f"{what} is a masked array with {int(np.ma.count_masked(array))} masked entries, whose values mean "
            "nothing: leave these rows out, or fill them with x.filled(value) and let the loss return a pair "
            "(losses, mask)"
        )
    return np.asarray(array)


def parts_of(value: Tensor) -> list[object] | None:
    """What a tensor that is no plain block of numbers is made of; None for one that is."""
    if value.is_nested:
        return list(value.unbind())
    if value.is_quantized:
        per_channel = value.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
        scale: list[object] = (
            [value.q_per_channel_scales(), value.q_per_channel_zero_points(), value.q_per_channel_axis()]
            if per_channel
            else [value.q_scale(), value.q_zero_point()]
        )
        return [value.int_repr(), *scale]
    if value.layout == torch.sparse_coo:
        whole = value.coalesce()
        return [tuple(value.shape), whole.indices(), whole.values()]
    if value.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [str(value.layout), tuple(value.shape), value.crow_indices(), value.col_indices(), value.values()]
    if value.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [str(value.layout), tuple(value.shape), value.ccol_indices(), value.row_indices(), value.values()]
    return ["meta", tuple(value.shape)] if value.device.type == "meta" else None
