"""Shapes of what the public functions return, as types (jaxtyping); checked at run time in the tests only.

Letters: k rows of χ, n samples, c chains, b rows of a minibatch, r replicas, P parameters.
"""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

Chi = Float64[np.ndarray, "k n"]
ChiByChain = Float64[np.ndarray, "c k n"]
PerSample = Float64[np.ndarray, " n"]
SampleNumbers = Int64[np.ndarray, " n"]
SampleMask = Bool[np.ndarray, " n"]
Rho = Float64[np.ndarray, "..."]
"""(n,) for rows, (n, t) for the tokens of rows."""
Losses = Tensor | tuple[Tensor, Tensor]
"""Of a minibatch: (b,) or (b, t), alone or with their mask."""

CHECK = "PATTERNING_CHECK_SHAPES"
"""Environment variable that the tests set: with it, `shaped` functions check their types at every call."""


def shaped(function: Callable[..., Any]) -> Any:
    """A function whose result is checked against its annotated shape where the tests ask for it."""
    if not os.environ.get(CHECK):
        return function
    expected = function.__annotations__["return"]

    @wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        if not isinstance(result, expected):
            raise TypeError(f"{function.__qualname__} returned {result.dtype}{result.shape}: {expected} is annotated")
        return result

    return checked
