"""Paired effects of retraining: differences between arms with the same seeds, with bootstrap intervals over seeds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from patterning.core.arrays import as_floats, check_level
from patterning.core.errors import PatterningError, check_whole
from patterning.core.rng import Stream, generator

Floats = NDArray[np.float64]


SMALLEST = 1e-100
"""Differences below this are scaled before they are squared."""


@dataclass(frozen=True)
class Effect:
    """Mean paired difference with its interval `low`..`high` at `level`, over `pairs` seeds."""

    difference: float
    low: float
    high: float
    pairs: int
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def paired_effect(arm: Floats, baseline: Floats, *, level: float = 0.95, resamples: int = 9999) -> Effect:
    """Effect of `arm` against `baseline`, both (seeds,) in the same seed order.

    Each limit is the wider one of two. *Bootstrap-t* over seeds (Efron & Tibshirani 1993, ch. 12) studentises each
    resampled mean, and follows skew: of twelve exponential differences it misses 5 %, and Student's t 9 %. *Student's
    t* holds where a few runs jump, or outcomes have two values: there the bootstrap misses 10 % and t 2 to 5 %.
    Of normal differences both together miss 4 %. Deterministic. All differences equal: a zero-width interval.
    """
    arm, baseline = as_floats("the outcomes of the arm", arm), as_floats("the outcomes of the baseline", baseline)
    check_level(level)
    check_whole("resamples", resamples, 100)
    if arm.shape != baseline.shape or arm.ndim != 1:
        raise PatterningError(f"arms of shapes {arm.shape} and {baseline.shape} are not paired")
    if not (np.isfinite(arm).all() and np.isfinite(baseline).all()):
        raise PatterningError("an outcome is NaN or infinite: a run that failed has no place in a paired effect")
    if len(arm) < 3:
        raise PatterningError(f"{len(arm)} paired seeds give no interval: use at least 3")
    d = arm - baseline
    if 0 < np.abs(d).max() < SMALLEST:  # their squares would be 0
        own = paired_effect(arm / SMALLEST**2, baseline / SMALLEST**2, level=level, resamples=resamples)
        difference, low, high = (SMALLEST**2 * value for value in (own.difference, own.low, own.high))
        return Effect(difference, low, high, len(d), level)
    mean, error = d.mean(), d.std(ddof=1) / np.sqrt(len(d))
    if np.ptp(d) == 0 or error == 0:  # the mean of equal numbers may be rounded, and leave them a spread
        return Effect(float(mean), float(mean), float(mean), len(d), level)
    rng = generator(0, Stream.BOOTSTRAP)
    sample = d[rng.integers(0, len(d), size=(resamples, len(d)))]
    errors = sample.std(axis=1, ddof=1) / np.sqrt(len(d))
    # A resample of (nearly) equal differences has no scale of its own: it keeps the overall one as a floor.
    t = (sample.mean(axis=1) - mean) / np.maximum(errors, error / 10)
    student = float(stdtrit(len(d) - 1, (1 + level) / 2))
    low, high = np.quantile(t, [(1 - level) / 2, (1 + level) / 2])
    below, above = max(high, student) * error, max(-low, student) * error
    return Effect(float(mean), float(mean - below), float(mean + above), len(d), level)
