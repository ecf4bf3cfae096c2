"""From a direction s to relative weights ρ ≥ 0 that a training run can use.

`clip`: max(0, 1 + α s).  `tilt`: exp(α s), positive by construction.  `rank`: s is first replaced by Gaussian scores of
its ranks, then clipped: χ is heavy-tailed, and a few strings would otherwise hold the whole change. `rank-tilt`: the
exponential of those scores (a plain tilt of heavy tails leaves all weight on a handful of samples). For these, s enters
with unit root mean square over the free samples, so α means the same for every direction. `linear`: 1 + α s with s
scaled to max |s| = 1, which keeps every weight above 0 for α < 1: first-order predictions hold for it as they are.
`swap`, for preference pairs: |1 + α s|, and where 1 + α s is negative the labels of the pair are exchanged (`swaps`).
`constrained` needs χ besides s, and is in `intervention.constrained`: the weights nearest to 1 that keep the change
which 1 + α s makes to first order, under a cap, an effective sample size, and what else is not to move.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from patterning.core.arrays import as_array, as_floats, as_mask
from patterning.core.errors import PatterningError
from patterning.core.indexes import refuse_shuffled

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Policy = Literal["clip", "tilt", "rank", "rank-tilt", "linear"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
PairPolicy = Policy | Literal["swap"]
"""With the policy for data whose labels can be exchanged, which weights alone do not carry out."""


@dataclass(frozen=True)
class WeightSummary:
    """`effective_sample_size` of the free data as a share, extremes of ρ, and the base-weight share at zero."""

    effective_sample_size: float
    largest: float
    smallest: float
    share_at_zero: float


def gaussian_scores(s: Floats, base_weights: Floats, free: Bools) -> Floats:
    """Standard normal scores of the q-weighted ranks of s over the free samples; 0 elsewhere. Ties share a score."""
    result = np.zeros(len(s))
    values, place = np.unique(s[free], return_inverse=True)
    mass = np.bincount(place, weights=base_weights[free], minlength=len(values))
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    result[free] = ndtri(middle.clip(1e-300, 1 - 1e-16))[place]  # the ends have samples without a base weight
    return result


def standardise(s: Floats, base_weights: Floats, free: Bools) -> Floats:
    """s with mean 0 and root mean square 1 under q over the free samples, 0 elsewhere."""
    mass = base_weights[free].sum()
    if not mass > 0:
        raise PatterningError("no free sample has a base weight: nothing can move")
    if not np.isfinite(s[free]).all():
        raise PatterningError("the direction holds NaN or infinite entries")
    q = np.where(free, base_weights, 0.0) / mass
    s = np.where(free, s, 0.0)
    centred = np.where(free, s - (q * s).sum(), 0.0)
    size = np.sqrt((q * centred**2).sum())
    if not size > 0:
        raise PatterningError("the direction is the same for every free sample: it cannot change any weight")
    return centred / size


def make_weights(
    s: Floats,
    base_weights: Floats,
    *,
    policy: PairPolicy,
    alpha: float,
    free: Bools | None = None,
    within: NDArray[np.integer] | None = None,
) -> Floats:
    """Relative weights ρ (n,): frozen samples stay at 1 and the free ones keep their total weight.

    `within` (n,): groups (labels, say) that each keep their total weight: the policy acts in each group apart, and a
    group in which s is the same everywhere stays at 1. Raises `PatterningError` for an unknown policy, a NaN direction,
    or when nothing would be left.
    """
    if within is not None:
        return _group_by_group(s, base_weights, policy, alpha, free, within)
    if policy not in (*POLICIES, "swap"):
        raise PatterningError(f"policy {policy!r} is not one of {', '.join((*POLICIES, 'swap'))}")
    s, base_weights = as_floats("the direction", s, 1), _base_weights(base_weights, len(s))
    moving = as_mask("free", free, len(s))
    if isinstance(alpha, bool) or not (isinstance(alpha, int | float | np.number) and np.isfinite(alpha)):
        raise PatterningError(f"alpha is {alpha!r}: it must be a finite number")
    if not np.isfinite(s[moving]).all():
        raise PatterningError("the direction holds NaN or infinite entries")
    if not (base_weights[moving] > 0).any():
        raise PatterningError("no free sample has a base weight: nothing can move")
    s = np.where(moving, s, 0.0)  # what is not known of frozen samples must not spread
    if policy.startswith("rank"):
        s = gaussian_scores(s, base_weights, moving)
    z = alpha * standardise(s, base_weights, moving)
    if policy == "linear":
        z *= 1 / np.abs(standardise(s, base_weights, moving)[moving]).max()
    if policy == "swap":
        rho = np.abs(1 + z)
    else:
        rho = np.exp(z - z.max()) if policy.endswith("tilt") else np.maximum(0.0, 1 + z)
    total = (base_weights * rho)[moving].sum()
    if not total > 0:
        raise PatterningError(f"policy {policy} at alpha {alpha} leaves no weight on the free samples")
    return np.where(moving, rho * base_weights[moving].sum() / total, 1.0)


def swaps(
    s: Floats,
    base_weights: Floats,
    *,
    alpha: float,
    free: Bools | None = None,
    within: NDArray[np.integer] | None = None,
) -> Bools:
    """Where 1 + α s is negative, (n,) bool: the pairs whose labels the policy `swap` exchanges."""
    moving, result = as_mask("free", free, len(s)), np.zeros(len(s), dtype=bool)
    labels = np.zeros(len(s), dtype=np.int64) if within is None else group_labels(within, len(s))
    for group in np.unique(labels[moving]):
        own = moving & (labels == group)
        if np.ptp(s[own]) > 0:
            result |= own & (1 + alpha * standardise(s, base_weights, own) < 0)
    return result


def _group_by_group(
    s: Floats, base_weights: Floats, policy: PairPolicy, alpha: float, free: Bools | None, within: Any
) -> Floats:
    moving, result, labels = as_mask("free", free, len(s)), np.ones(len(s)), group_labels(within, len(s))
    for group in np.unique(labels[moving]):
        own = moving & (labels == group)
        if np.ptp(s[own]) > 0:
            result[own] = make_weights(s, base_weights, policy=policy, alpha=alpha, free=own)[own]
    return result


def group_labels(within: Any, count: int) -> NDArray[Any]:
    """A label for each of `count` samples, (count,), from a list, an array or a tensor of numbers or of text."""
    refuse_shuffled("within", within)
    labels = as_array("within", within)
    if labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels.ravel()):
        labels = labels.astype(str)  # a column of a data frame
    if labels.shape != (count,) or labels.dtype.kind == "O":
        raise PatterningError(
            f"within is an array of {labels.dtype} {labels.shape} for {count} samples: it names each one's group, by "
            "numbers or by text"
        )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise PatterningError("within holds NaN or infinite labels: every sample needs a group")
    return labels


def _base_weights(base_weights: Floats, count: int) -> Floats:
    q = as_floats("base_weights", base_weights, 1)
    if len(q) != count or not (np.isfinite(q).all() and (q >= 0).all() and q.any()):
        raise PatterningError(f"base_weights must be {count} finite numbers >= 0, not all 0")
    return q


def summarise(rho: Floats, base_weights: Floats, free: Bools | None = None) -> WeightSummary:
    """How hard the weights pull."""
    rho, base_weights = as_floats("the weights", rho, 1), _base_weights(base_weights, len(rho))
    moving = as_mask("free", free, len(rho))
    if not np.isfinite(rho[moving]).all() or (rho[moving] < 0).any():
        raise PatterningError("the weights are negative, NaN or infinite for some free samples")
    if not (base_weights * rho)[moving].sum() > 0:
        raise PatterningError("no free sample has any weight: there is no effective sample size")
    q, r = base_weights[moving] / base_weights[moving].sum(), rho[moving]
    return WeightSummary(
        effective_sample_size=float((q * r).sum() ** 2 / (q * r**2).sum()),
        largest=float(r.max()),
        smallest=float(r.min()),
        share_at_zero=float(q[r == 0].sum()),
    )
