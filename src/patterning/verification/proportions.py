"""Intervals for shares of runs: of one share, and of the difference of two shares over paired seeds.

A bootstrap of 0/1 outcomes fails where it matters: a share of 200/200 has no resampled spread, and its interval has no
width. Wilson's score interval stays inside [0, 1] and has a width there; Newcombe's paired interval is built from it.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import check_level
from patterning.core.errors import PatterningError, check_whole
from patterning.core.rng import Stream, generator
from patterning.verification.effects import Effect

Bools = NDArray[np.bool_]


def share_interval(count: int, runs: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (JASA 22, 1927) for the share `count / runs`; it never leaves [0, 1]."""
    check_level(level)
    check_whole("count", count, 0)
    check_whole("runs", runs, 0)
    if not (runs > 0 and 0 <= count <= runs):
        raise PatterningError(f"{count} of {runs} runs is no share")
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (count + z * z / 2) / (runs + z * z)
    half = z / (runs + z * z) * math.sqrt(count * (runs - count) / runs + z * z / 4)
    low = 0.0 if count == 0 else middle - half  # exact at the ends, where rounding would leave 1e-17
    high = 1.0 if count == runs else middle + half
    return low, high


def paired_share_difference(arm: Bools, baseline: Bools, *, level: float = 0.95) -> Effect:
    """Share of `arm` less share of `baseline`, both (seeds,) in the same seed order, with its interval.

    Method 10 of Newcombe (Statistics in Medicine 17, 1998, 2635-2650): the Wilson limits of both shares, combined by
    their correlation φ over pairs, which is corrected for continuity.
    """
    arm, baseline = np.asarray(arm), np.asarray(baseline)
    if arm.shape != baseline.shape or arm.ndim != 1 or len(arm) == 0:
        raise PatterningError(f"outcomes of shapes {arm.shape} and {baseline.shape} are not paired")
    if arm.dtype != np.bool_ or baseline.dtype != np.bool_:
        raise PatterningError(f"outcomes of types {arm.dtype} and {baseline.dtype} are no yes or no: pass booleans")
    n, both, neither = len(arm), int((arm & baseline).sum()), int((~arm & ~baseline).sum())
    hits, base_hits = int(arm.sum()), int(baseline.sum())
    low, high = share_interval(hits, n, level=level)
    base_low, base_high = share_interval(base_hits, n, level=level)
    share, base_share = hits / n, base_hits / n
    phi = _correlation(both, hits, base_hits, neither)
    below = _distance(share - low, base_high - base_share, phi)
    above = _distance(high - share, base_share - base_low, phi)
    difference = share - base_share
    return Effect(difference, max(-1.0, difference - below), min(1.0, difference + above), n, level)


@dataclass(frozen=True)
class Agreement:
    """Predicted against realised shares of several arms: Pearson's `r` with its interval over seeds, and errors.

    r and its limits are None where the shares of one side do not vary.
    """

    r: float | None
    low: float | None
    high: float | None
    mean_error: float
    largest_error: float


def compare_shares(
    predicted: NDArray[np.float64], hits: Bools, *, level: float = 0.95, resamples: int = 2000
) -> Agreement:
    """How `predicted` shares (arms,) compare with the outcomes `hits` (arms, seeds), whose seeds are paired over arms.

    The interval of r is the percentile bootstrap over seeds: where other seeds might put it, for these arms.
    """
    check_level(level)
    predicted, hits = np.asarray(predicted), np.asarray(hits)
    if hits.dtype != np.bool_ or hits.ndim != 2 or predicted.shape != hits.shape[:1]:
        raise PatterningError(f"{predicted.shape} predictions do not fit outcomes of shape {hits.shape}")
    if not np.isfinite(predicted).all():
        raise PatterningError("a predicted share is NaN or infinite")
    realised = hits.mean(axis=1)
    error = np.abs(predicted - realised)
    mean, largest = float(error.mean()), float(error.max())
    r = _pearson(predicted, realised)
    if r is None:
        return Agreement(None, None, None, mean, largest)
    seeds = generator(0, Stream.BOOTSTRAP).integers(0, hits.shape[1], size=(resamples, hits.shape[1]))
    drawn = [_pearson(predicted, hits[:, sample].mean(axis=1)) for sample in seeds]
    defined = [value for value in drawn if value is not None]
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Agreement(r, float(low), float(high), mean, largest)


def _pearson(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def _correlation(both: int, hits: int, base_hits: int, neither: int) -> float:
    """φ of the 2 × 2 table of pairs, corrected for continuity where it is positive; 0 where a margin is empty."""
    n = hits + base_hits - both + neither
    margins = hits * (n - hits) * base_hits * (n - base_hits)
    if margins == 0:
        return 0.0
    product = both * neither - (hits - both) * (base_hits - both)
    if product > 0:
        product = max(product - n / 2, 0)
    return product / math.sqrt(margins)


def _distance(one: float, other: float, phi: float) -> float:
    """How far a limit lies from the difference: the two shares' distances, added as correlated errors."""
    return math.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))
