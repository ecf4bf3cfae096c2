r"""Weights dealt out again: the same values without the meaning.

Base weights q may be uneven. Dealing the values of ρ to other samples then changes their total, and so the dealt values
are multiplied by one factor,

.. math:: \rho'_j = c\,\rho_{\pi(j)}, \quad c = \sum_j q_j \rho_j \Big/ \sum_j q_j \rho_{\pi(j)}

over the free samples (of each stratum, where there are strata), so that Σ q ρ = 1 still holds. With equal q, c is 1 and
the histogram of the weights is kept; with uneven q it is kept up to this factor.
"""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import Bools, Floats, as_floats, as_mask
from patterning.core.errors import PatterningError, PatterningWarning
from patterning.core.indexes import refuse_shuffled
from patterning.core.rng import Stream, generator
from patterning.intervention.row_ids import as_labels, numbered

Ints = NDArray[np.int64]

LEAST_MOVED = 0.2
"""A control that moves less than this share of the weight that dealing at random moves on average is said to."""


def permuted(rho: Floats, base_weights: Floats, free: Bools | None, seed: int) -> Floats:
    """The same weights dealt to other free samples (n,), scaled to the same total Σ q ρ of the free samples.

    `free` (n,) bool; None means all. Samples of base weight 0 take no part. Every permutation is as likely, the one
    that moves nothing as well: of a few samples it may be drawn, which is warned of (`PatterningWarning`). Raises
    `PatterningError` where nothing can be moved: all free weights are equal, or there is one free sample.
    """
    rho, q = _checked(rho, base_weights)
    moving = np.flatnonzero(as_mask("free", free, len(rho)) & (q > 0))
    if not len(moving):
        raise PatterningError("no free sample has a base weight: there is nothing to deal out")
    rng, own, mass = generator(seed, Stream.CONTROL), rho[moving], q[moving]
    if not np.ptp(own) > 0:
        raise PatterningError(
            f"the {len(own)} free weights are all equal: dealt out again they are the same weights, and no control"
        )
    dealt = rng.permutation(own)
    _warn_of_little(moved(own, dealt, mass), f"dealing {len(own)} weights by seed {seed}")
    return _scaled(rho, moving, dealt, mass)


def permuted_within(rho: Floats, strata: Ints, seed: int, base_weights: Floats | None = None) -> Floats:
    """The same weights dealt out again (n,), each within its own stratum, which keeps its histogram and its total.

    `strata` (n,): any whole number a sample, e.g. its frequency band. `base_weights` q (n,); None: all equal. With
    uneven q a stratum keeps its total Σ q ρ, and its histogram up to a factor. A control for "the weights act through
    the strata alone". Warns (`PatterningWarning`) where strata are so small, or weights within them so alike, that
    hardly anything is moved; raises `PatterningError` where nothing can be.
    """
    rho, q = _checked(rho, np.ones(np.shape(rho)) if base_weights is None else base_weights)
    strata = np.asarray(strata)
    if strata.dtype.kind not in "biu":
        raise PatterningError(f"strata are {strata.dtype}: they must be whole numbers, one a sample")
    if strata.shape != rho.shape:
        raise PatterningError(f"{strata.shape} strata for {rho.shape} weights: one for each sample is needed")
    source = np.argsort(strata, kind="stable")
    if all(np.ptp(part) == 0 for part in np.split(rho[source], np.flatnonzero(np.diff(strata[source])) + 1)):
        raise PatterningError(
            "within each stratum all weights are equal (or it holds one sample): dealt out again they are the same "
            "weights, and no control; use coarser strata"
        )
    target = np.lexsort((generator(seed, Stream.CONTROL).random(len(rho)), strata))
    result = np.empty_like(rho)
    result[target] = rho[source]
    _warn_of_little(moved(rho, result, q), f"dealing within {len(np.unique(strata))} strata by seed {seed}")
    if base_weights is None or not np.ptp(q) > 0:
        return result
    _, place = np.unique(strata, return_inverse=True)
    before, after = np.bincount(place, q * rho), np.bincount(place, q * result)
    if ((after == 0) & (before > 0)).any():
        raise PatterningError("in a stratum all weight would go to samples of base weight 0: leave these out")
    return result * np.where(after > 0, before / np.where(after > 0, after, 1.0), 1.0)[place]


def dealt(rho: Floats, base_weights: Floats, free: Bools, seed: int, labels: NDArray[Any] | None) -> Floats:
    """ρ (n,) dealt to other free samples, within each of `labels` (n,) where there are some."""
    if labels is None:
        return permuted(rho, base_weights, free, seed)
    if not free.any():
        raise PatterningError("no free sample has a base weight: there is nothing to deal out")
    _, strata = np.unique(labels, return_inverse=True)
    result = rho.copy()
    result[free] = permuted_within(rho[free], strata[free], seed, base_weights[free])
    return result


def dealt_order(base_weights: Floats, free: Bools, seed: int, labels: NDArray[Any] | None) -> Ints:
    """Which sample's weight each sample is dealt (n,), for what is more than a number; base weights must be equal."""
    if np.ptp(base_weights[free]) > 0:
        raise PatterningError("weights with exchanged labels can be dealt out under equal base weights only")
    places = np.arange(len(free), dtype=np.float64)
    return np.rint(dealt(places, np.ones(len(free)), free, seed, labels)).astype(np.int64)


def labels_of_cells(within: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """The number of each sample's label, (n·t,), for weights of `shape`, from labels of rows or of tokens."""
    refuse_shuffled("within", within)
    labels = as_labels(within)
    if labels.shape not in (shape, shape[:1], (shape[0], 1)):
        raise PatterningError(f"labels {labels.shape} for weights {shape}: give one for each row, or for each token")
    _, number = numbered("within", labels.ravel())
    wide = (shape[0], int(np.prod(shape[1:], dtype=np.int64)))
    return np.broadcast_to(number.reshape(shape[0], -1), wide).ravel()


def moved(rho: Floats, dealt: Floats, base_weights: Floats) -> float:
    """How much weight `dealt` moves, Σ q |ρ' - ρ|, as a share of what dealing at random moves on average."""
    q = base_weights / base_weights.sum()
    order = np.argsort(rho)
    ranked, count = rho[order], len(rho)
    below = np.arange(count) * ranked - np.concatenate([[0.0], np.cumsum(ranked)[:-1]])  # Σ_{k<i} (ρ_i - ρ_k)
    above = (np.cumsum(ranked[::-1])[::-1] - ranked) - np.arange(count)[::-1] * ranked
    expected = float((q[order] * (below + above)).sum() / max(count, 1))
    return float((q * np.abs(dealt - rho)).sum()) / expected if expected > 0 else 0.0


def _warn_of_little(share: float, what: str) -> None:
    if share < LEAST_MOVED:
        warnings.warn(
            f"{what} moves {share:.0%} of the weight that dealing at random moves on average: this control is nearly "
            "the treatment itself; use more samples, or coarser strata",
            PatterningWarning,
            stacklevel=3,
        )


def _checked(rho: Floats, base_weights: Floats) -> tuple[Floats, Floats]:
    rho, q = as_floats("the weights", rho, 1), as_floats("base_weights", base_weights, 1)
    if rho.shape != q.shape:
        raise PatterningError(f"{rho.shape} weights for {q.shape} base weights: one for each sample is needed")
    if not np.isfinite(rho).all():
        raise PatterningError(f"{int((~np.isfinite(rho)).sum())} of {len(rho)} weights are NaN or infinite")
    if not (np.isfinite(q).all() and (q >= 0).all() and q.any()):
        raise PatterningError("base_weights must be finite and >= 0, not all 0")
    return rho, q


def _scaled(rho: Floats, moving: Ints, dealt: Floats, mass: Floats) -> Floats:
    """ρ with `dealt` at the samples `moving`, at their total; equal base weights need no factor."""
    before, after = float((mass * rho[moving]).sum()), float((mass * dealt).sum())
    result = rho.copy()
    result[moving] = dealt * (before / after)
    return result
