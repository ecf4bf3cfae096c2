r"""The fundamental equation: the smallest change of the data weights that makes a wanted change.

.. math:: s = \tfrac{1}{n\beta}\,\chi^\dagger d\mu, \qquad \chi^\dagger d\mu = \chi^T (\chi Q \chi^T)^{-1} d\mu

(Wang & Murfet, arXiv 2601.13548), solved in float64 from the triangular factor of χ (`intervention.factor`), with the
directions that the Monte Carlo error could have made cut away. For χ that does not fit in memory: `chunked`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import as_floats, as_mask
from patterning.core.errors import PatterningError
from patterning.intervention.factor import Factor, Inverse, invert_factor
from patterning.response.base_weights import as_base_weights

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """`s` (n,), with Σ q s = 0 and zero on frozen samples; `wanted` and `predicted` dμ (k,) in the units of φ.

    `singular_values` (k,) of the row-standardised matrix, `noise_floor` in the same units, `rank` kept, `condition`
    the ratio of the largest to the smallest kept singular value. `inverse`: the same in the coordinates of the rows.
    """

    s: Floats
    wanted: Floats
    predicted: Floats
    singular_values: Floats
    noise_floor: float
    rank: int
    condition: float
    inverse: Inverse


def solve(
    chi: Floats,
    base_weights: Floats,
    target: Floats,
    n_beta: float,
    *,
    noise: Floats | None = None,
    free: NDArray[np.bool_] | None = None,
) -> Solution:
    """Weights change `s` (n,) for a wanted change `target` dμ (k,) of the observables, at α = 1.

    `chi` (k, n), `base_weights` q (n,), scaled to sum to 1. `noise` (k, n) is an error sample of χ (half
    the difference of two independent halves, or the standard errors themselves): singular values under its largest one
    are cut. `free` (n,) marks samples that may move; the others keep ρ = 1, and the free ones keep their total weight.
    Raises `PatterningError` when nothing is above the noise.
    """
    chi, target = as_floats("χ", chi, 2), as_floats("the target", target, 1)
    k, n = chi.shape
    base_weights, keep = as_base_weights(base_weights, n), as_mask("free", free, n)
    noise = None if noise is None else as_floats("the noise of χ", noise)
    if noise is not None and np.shape(noise) != (k, n):
        raise PatterningError(f"the noise has shape {np.shape(noise)} for χ of {chi.shape}")
    if not (base_weights[keep] > 0).any():
        raise PatterningError("no free sample has a base weight: nothing can move")
    check_wish(target, k, n_beta)
    q = np.where(keep, base_weights, 0.0)
    factor = factor_of(chi, q, keep, "χ holds NaN or infinite entries: a chain diverged or an observable is undefined")
    error = None
    if noise is not None:
        error = factor_of(noise, q, keep, "the noise of χ holds NaN or infinite entries: a chain diverged")
    inverse = invert_factor(factor, target, n_beta, 1.0, error)
    s, predicted = np.empty(n), np.zeros(k)
    for place, own in inverse.blocks(chi, keep & (base_weights > 0)):
        s[place] = own
        predicted += np.where(keep[place], chi[:, place], 0.0) @ (q[place] * own)
    return Solution(
        s=s,
        wanted=target,
        predicted=n_beta * predicted,
        singular_values=inverse.singular_values,
        noise_floor=inverse.noise_floor,
        rank=inverse.rank,
        condition=inverse.condition,
        inverse=inverse,
    )


def check_wish(target: Floats, rows: int, n_beta: float) -> None:
    """Raise `PatterningError` for a target that is not one finite number a row, and for nβ that is not positive."""
    if not np.isfinite(target).all():
        raise PatterningError("the target holds NaN or infinite entries")
    if target.shape != (rows,):
        raise PatterningError(f"the target has shape {target.shape}, but there are {rows} observables")
    if isinstance(n_beta, bool | str) or not (np.isfinite(n_beta) and n_beta > 0):
        raise PatterningError(f"n_beta is {n_beta}: the response is proportional to it, so it must be positive")


def factor_of(values: Floats, q: Floats, keep: NDArray[np.bool_], undefined: str) -> Factor:
    """The factor of `values` (k, n) where `keep`; raises `PatterningError` with `undefined` where one is not finite."""
    factor = Factor(len(values))
    add_checked(factor, values, q, keep, undefined)
    return factor


def add_checked(factor: Factor, values: Floats, q: Floats, keep: NDArray[np.bool_], undefined: str) -> None:
    """Add samples to a factor; what is not known of frozen samples does not matter."""
    whole = bool(keep.all())
    if not np.isfinite(values if whole else values[:, keep]).all():
        raise PatterningError(undefined)
    factor.add(values, q)
