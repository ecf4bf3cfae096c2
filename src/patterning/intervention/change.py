"""What weights are expected to do to an observable, with an interval where the error is known."""

import math
from dataclasses import dataclass


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
