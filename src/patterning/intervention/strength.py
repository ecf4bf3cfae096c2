"""How hard weights may pull: a strength that leaves an effective sample size, and a cap on single weights."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import Bools, Floats
from patterning.core.errors import PatterningError
from patterning.intervention.weights import PairPolicy, group_labels, make_weights, summarise


def strong_enough(
    s: Floats,
    q: Floats,
    moving: Bools,
    strength: float,
    policy: PairPolicy,
    cap: float | None,
    min_ess: float | None,
    within: NDArray[np.integer] | None = None,
) -> tuple[float, Floats]:
    """ρ at the largest strength up to `strength` that leaves the effective sample size, with its cap."""
    check_limits(strength, cap, min_ess)

    def at(alpha: float) -> Floats:
        rho = make_weights(s, q, policy=policy, alpha=alpha, free=moving, within=within)
        return rho if cap is None else capped(rho, q, moving, cap, within)

    rho = at(strength)
    if min_ess is None or summarise(rho, q, moving).effective_sample_size >= min_ess:
        return strength, rho
    low, high = 0.0, float(strength)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if summarise(at(middle), q, moving).effective_sample_size >= min_ess else (low, middle)
        )
    return low, at(low)


def check_limits(strength: Any, cap: Any, min_ess: Any) -> None:
    """Raise `PatterningError` for a strength that is no number > 0, and for a cap or share that nothing can keep."""
    if not is_number(strength) or not np.isfinite(strength) or strength <= 0:
        raise PatterningError(f"strength is {strength!r}: it must be a number > 0; for the other way ask for it")
    if min_ess is not None and not (is_number(min_ess) and 0 < min_ess < 1):
        raise PatterningError(f"min_ess is {min_ess!r}: it is a share of the data, between 0 and 1")
    if cap is not None and not (is_number(cap) and cap > 1):
        raise PatterningError(f"cap is {cap!r}: it must be above 1, the mean of ρ")


def is_number(value: Any) -> bool:
    """Whether a value is a real number that a float can hold, and no yes or no."""
    if not isinstance(value, int | float | np.number) or isinstance(value, bool):
        return False
    try:
        float(value)
    except (OverflowError, TypeError, ValueError):  # 10**400, a duration
        return False
    return True


def capped(rho: Floats, base_weights: Floats, free: Bools, cap: float, within: Any = None) -> Floats:
    """ρ with no free entry above `cap`, at the same total: what is cut off goes to the entries below, in proportion.

    Where all of these are 0, they get equal shares. With `within` (n,), a label for each sample, every group keeps its
    own total. Raises `PatterningError` where no weights under the cap have it.
    """
    if within is None:
        return _capped(rho, base_weights, free, cap)
    labels, result = group_labels(within, len(rho)), rho.copy()
    for group in np.unique(labels[free]):
        own = free & (labels == group)
        result[own] = _capped(rho, base_weights, own, cap)[own]
    return result


def _capped(rho: Floats, base_weights: Floats, free: Bools, cap: float) -> Floats:
    q, result = np.where(free, base_weights, 0.0), rho.copy()
    total = float((q * rho).sum())
    if cap * q.sum() < total * (1 - 1e-12):
        raise PatterningError(f"cap {cap} is below the mean of the free weights: it cannot be kept")
    for _ in range(200):
        above = free & (result >= cap)
        result = np.where(above, cap, result)
        short, rest = total - float((q * result).sum()), free & ~above
        if abs(short) <= 1e-12 * total:
            break
        if not (q * result)[rest].sum() > 0:
            result = np.where(rest, short / q[rest].sum(), result)
            break
        result = np.where(rest, result * (1 + short / (q * result)[rest].sum()), result)
    return np.minimum(result, np.where(free, cap, result))
