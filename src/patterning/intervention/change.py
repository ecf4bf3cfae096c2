"""What weights are expected to do to an observable, with an interval where the error is known."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from patterning.core.arrays import Floats


@dataclass(frozen=True)
class Change:
    """An expected change of an observable, in its own units, with its 95 % interval; NaN ends where it is not known."""

    value: float
    low: float
    high: float

    def ends(self) -> tuple[float, float]:
        """Of the interval; the value itself, twice, where the interval is not known."""
        return (self.low, self.high) if math.isfinite(self.low + self.high) else (self.value, self.value)

    def __str__(self) -> str:
        known = math.isfinite(self.low + self.high)
        return f"{self.value:+.3g} " + (f"[{self.low:+.3g}, {self.high:+.3g}]" if known else "(error unknown)")


def changes_of_chains(table: Floats) -> list[Change]:
    """Means over chains, with 95 % intervals by Student's t, of `table` (chains, k).

    A first look has no chains: its halves are the same, and the error is not known.
    """
    mean, error = table.mean(0), table.std(0, ddof=1) / np.sqrt(len(table))
    error = np.where((table == table[0]).all(0) & (mean != 0), np.nan, error)
    width = float(stdtrit(max(len(table) - 1, 1), 0.975)) * error
    return [Change(float(m), float(m - w), float(m + w)) for m, w in zip(mean, width, strict=True)]
