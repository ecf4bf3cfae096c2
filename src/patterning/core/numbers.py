"""Numbers as they are given, in the types that are computed in: what float32 cannot hold is refused, not rounded."""

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


def plain_tensor(values: Tensor) -> Tensor:
    """A tensor of data that can be cut into rows, floating point numbers as float32; raises as `check_layout` does."""
    check_layout("data", values)
    return data_as_float32(values.detach()) if values.is_floating_point() else values.detach()


def check_layout(what: str, values: Tensor) -> None:
    """Raise `PatterningError` for a sparse, nested, quantised, masked or empty (meta) tensor, with the remedy."""
    kind = next((kind for kind, is_that in _LAYOUTS.items() if is_that(values)), None)
    if kind is not None:
        raise PatterningError(
            f"{what} must be plain tensors (found a {kind} one): give {_REMEDIES[kind]} instead, and where entries are "
            "missing a pair (losses, mask) from the loss"
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


def data_as_float32(values: Tensor) -> Tensor:
    """Data (n, ...) as float32; raises `PatterningError` where that would lose what tells its rows apart.

    That is: whole numbers past 2²⁴ that change (identifiers, time stamps), numbers past the range of float32, and
    columns that rounding moves by more than 0.1 % of their spread over the rows.
    """
    if values.dtype != torch.float64:
        return values.float()
    found = values.float()
    moved = (found.double() - values).abs()
    lost = (values.isfinite() & ~found.isfinite()) | (
        (values.abs() > MOST_WHOLE) & (values == values.round()) & (moved > 0)
    )
    if not bool(lost.any()) and values.ndim and len(values) > 1:
        spread = values.std(0, correction=0)
        constant = spread <= NO_SPREAD * values.abs().amax(0)
        lost = (moved > MOST_ROUNDING * spread) & ~constant & values.isfinite()
    if bool(lost.any()):
        place = tuple(int(i) for i in lost.nonzero()[0])
        raise PatterningError(
            f"data{list(place) if place else ''} is {float(values[place])!r} and would become {float(found[place])!r}: "
            "floating point data is computed with in float32, which cannot tell such numbers apart. Subtract an "
            "offset or change the unit; or convert it to float32 yourself, if that is what the model is meant to see"
        )
    return found


def from_numpy(array: np.ndarray) -> Tensor:
    """Data as a tensor: floating point numbers as float32, unsigned ones as int64; raises `PatterningError` else."""
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
    return data_as_float32(found) if found.dtype == torch.float64 else found


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
