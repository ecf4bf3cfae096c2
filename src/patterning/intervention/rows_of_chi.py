"""The rows of χ that a direction is made from, and whether they can be relied on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from patterning.core.arrays import Floats
from patterning.posterior.diagnostics import MOST_R_HAT

MIN_RELIABILITY = 0.3
"""A row of χ with a split-half reliability under this is not inverted."""


@dataclass(frozen=True)
class Rows:
    """The rows of χ that a direction is made from: `chi` (k, n), by chain `chains` (c, k, n), `noise` (k, n).

    `r_hat` of the observables whose chains are further apart than settled ones may be (`store.r_hat_apart`), else NaN.
    """

    names: tuple[str, ...]
    chi: Floats
    chains: Floats
    noise: Floats
    reliability: tuple[float, ...]
    r_hat: tuple[float, ...] = ()


def untrusted(reliability: Mapping[str, float], r_hat: Mapping[str, float], min_reliability: float) -> str | None:
    """Why χ of the rows that were asked for cannot be relied on, if so. `r_hat`: as in `Rows`."""
    low = [f"{name} {value:.2f}" for name, value in reliability.items() if not value >= min_reliability]
    if low and all(math.isnan(value) for value in reliability.values()):
        return f"the reliability of χ is not known ({', '.join(reliability)})"
    if low:
        return f"χ is too noisy: split-half reliability {', '.join(low)} (at least {min_reliability})"
    apart = [f"{name} {value:.2f}" for name, value in r_hat.items() if not math.isnan(value)]
    if apart:
        return (
            f"the chains have not settled: R-hat of φ {', '.join(apart)} (at most {MOST_R_HAT}), so that χ is that of "
            "chains still moving away from w*, which ± and reliability do not show; raise burn_in and draws, or γ"
        )
    return None
