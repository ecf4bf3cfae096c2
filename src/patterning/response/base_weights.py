"""Base weights q as callers give them, checked and scaled to sum to 1: else means under q are wrong by their sum."""

from typing import Any

import numpy as np

from patterning.core.arrays import Floats, as_floats
from patterning.core.errors import PatterningError

ROUNDING = 1e-9


def as_base_weights(values: Any, count: int) -> Floats:
    """q (count,) float64, summing to 1; raises `PatterningError` for negative, undefined or missing ones."""
    q = as_floats("base_weights", values, 1)
    if len(q) != count or not (np.isfinite(q).all() and (q >= 0).all() and q.any()):
        raise PatterningError(f"base_weights must be {count} finite numbers >= 0, not all 0 (got {q.shape})")
    return q if abs(q.sum() - 1) < ROUNDING else q / q.sum()
