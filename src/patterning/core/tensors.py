"""Numbers as tensors: what data may hold, and what it may not, in one sentence each."""

from collections.abc import Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patterning.core.errors import PatterningError


def from_tensor(data: Tensor) -> Tensor:
    """A tensor as data holds it: dense, real, floating point numbers as float32."""
    if data.is_nested or data.layout != torch.strided:
        kind = "a nested tensor" if data.is_nested else f"a {str(data.layout).removeprefix('torch.')} tensor"
        remedy = "to_padded_tensor(0) with a mask in the loss" if data.is_nested else "to_dense()"
        raise PatterningError(f"the data holds {kind}, of which rows cannot be picked: use {remedy}")
    if data.is_complex():
        raise PatterningError(f"the data holds complex numbers ({data.dtype}): use torch.view_as_real(data)")
    if data.is_quantized or data.is_meta:
        kind, remedy = (
            ("a tensor without values (meta)", "load it") if data.is_meta else ("a quantised tensor", "dequantize()")
        )
        raise PatterningError(f"the data holds {kind}: {remedy} first")
    return _as_float32(data.detach()) if data.is_floating_point() else data.detach()


def _as_float32(values: Tensor) -> Tensor:
    """Floating point numbers as float32; raises `PatterningError` for whole numbers that it cannot tell apart."""
    single = values.float()
    large = values.dtype == torch.float64 and bool((values.abs() >= 2**24).any())
    if large and bool((values == values.round()).all()) and not torch.equal(single.double(), values):
        raise PatterningError(
            "the data holds whole numbers beyond 2^24 as floating point numbers, which float32 cannot tell apart: give "
            "numbers that name something (tokens, rows) as int64"
        )
    return single


def holds_numbers(items: Sequence[Any]) -> bool:
    """Whether a sequence is an array in Python's clothes: numbers, or a list of lists of numbers.

    A tuple of lists is a container of arrays.
    """
    first = items[0]
    if isinstance(items, list) and isinstance(first, list | tuple):
        return len(first) > 0 and holds_numbers(first)
    return isinstance(first, Number)


def from_numbers(items: Sequence[Any]) -> Tensor:
    """A list of numbers, or of lists of them of one length."""
    try:
        return from_numpy(np.array(items))
    except ValueError as error:  # rows of unequal length
        raise PatterningError(
            f"a list of numbers is no array ({error}): pad rows of unequal length to one length, and let the loss "
            "return a pair (losses, mask) with mask False at the padding"
        ) from None


def from_numpy(array: np.ndarray) -> Tensor:
    """An array of numbers: floating point as float32, unsigned as int64."""
    if array.dtype.kind not in "biuf":
        raise PatterningError(f"data must be numbers (found an array of {array.dtype})")
    if array.dtype == np.float64:
        return _as_float32(torch.from_numpy(np.array(array)))
    if array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch has little arithmetic for these
        array = array.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(array)) if array.flags.writeable else torch.tensor(array)
