"""What weights are expected to do to an observable, with an interval where the error is known."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from patterning.core.arrays import Floats


@dataclass(frozen=True)
class Change:
    """An expected change of an observable, in its own units, with its 95 % interval; NaN ends where it is not known."""

    value: float
    low: float
    high: float

    def times(self, share: float) -> "Change":
        """A positive share of it."""
        return Change(share * self.value, share * self.low, share * self.high)

    def ends(self) -> tuple[float, float]:
        """Of the interval; the value itself, twice, where the interval is not known."""
        return (self.low, self.high) if math.isfinite(self.low + self.high) else (self.value, self.value)

    def __str__(self) -> str:
        known = math.isfinite(self.low + self.high)
        return f"{self.value:+.3g} " + (f"[{self.low:+.3g}, {self.high:+.3g}]" if known else "(error unknown)")


def what_rows_keep(facts: Mapping[str, Any]) -> str:
    """What one weight a row leaves of the change that weights by token were expected to bring, in words; else "".

    Tokens of a row pull in different directions, and the mean of their scores is all that a weight of the whole row can
    follow.
    """
    by_token, by_row = facts.get("by_token_per_strength"), facts.get("predicted_per_strength")
    if not isinstance(by_token, Mapping) or not isinstance(by_row, Mapping):
        return ""
    told = []
    for name, token in by_token.items():
        row = by_row.get(name, {}).get("value")
        if isinstance(row, int | float) and token and math.isfinite(row):
            told.append(f"{100 * row / token:.0f} % of the change of {name} ({row:+.3g} instead of {token:+.3g})")
    moved = []
    for name, sign in facts.get("target", {}).items():
        change = by_row.get(name) or {}
        low, high = change.get("low"), change.get("high")
        if not sign and low is not None and high is not None and low * high > 0:
            moved.append(f"{name}, which was to be held, moves by {Change(**change)}")
    each = "for each unit of strength, by linear response"
    parts = [*([f"leaves {', '.join(told)}"] if told else []), *moved]
    return f"averaging over the tokens of a row {'; '.join(parts)}, {each}" if parts else ""


def changes_of_chains(table: Floats) -> list[Change]:
    """Means over chains, with 95 % intervals by Student's t, of `table` (chains, k).

    A first look has no chains: its halves are the same, and the error is not known.
    """
    mean, error = table.mean(0), table.std(0, ddof=1) / np.sqrt(len(table))
    error = np.where((table == table[0]).all(0) & (mean != 0), np.nan, error)
    width = float(stdtrit(max(len(table) - 1, 1), 0.975)) * error
    return [Change(float(m), float(m - w), float(m + w)) for m, w in zip(mean, width, strict=True)]
