r"""The fundamental equation: the smallest change of the data weights that makes a wanted change.

.. math:: s = \tfrac{1}{n\beta}\,\chi^\dagger d\mu, \qquad \chi^\dagger d\mu = \chi^T (\chi Q \chi^T)^{-1} d\mu

solved in float64 by SVD, with the directions that the Monte Carlo error could have made cut away.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import as_floats, as_mask
from patterning.core.errors import PatterningError
from patterning.response.base_weights import as_base_weights

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """`s` (n,), with Σ q s = 0 and zero on frozen samples; `wanted` and `predicted` dμ (k,) in the units of φ.

    `singular_values` (k,) of the row-standardised matrix, `noise_floor` in the same units, `rank` kept, `condition`
    the ratio of the largest to the smallest kept singular value.
    """

    s: Floats
    wanted: Floats
    predicted: Floats
    singular_values: Floats
    noise_floor: float
    rank: int
    condition: float


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
    if not np.isfinite(target).all():
        raise PatterningError("the target holds NaN or infinite entries")
    if target.shape != (k,):
        raise PatterningError(f"the target has shape {target.shape}, but there are {k} observables")
    if not np.isfinite(chi[:, keep]).all():
        raise PatterningError("χ holds NaN or infinite entries: a chain diverged or an observable is undefined")
    if noise is not None and not np.isfinite(noise[:, keep]).all():
        raise PatterningError("the noise of χ holds NaN or infinite entries: a chain diverged")
    chi = np.where(keep, chi, 0.0)  # what is not known of frozen samples must not spread
    if isinstance(n_beta, bool | str) or not (np.isfinite(n_beta) and n_beta > 0):
        raise PatterningError(f"n_beta is {n_beta}: the response is proportional to it, so it must be positive")
    q = np.where(keep, base_weights, 0.0)
    root = np.sqrt(q)

    def weighted(matrix: Floats) -> Floats:
        centred = np.where(keep, matrix - (matrix * q).sum(1, keepdims=True) / q.sum(), 0.0)
        return centred * root

    # Rows are compared in units of their own size: observables may be accuracies, nats or nβ-scaled nats.
    scale = np.linalg.norm(weighted(chi), axis=1)
    if (scale == 0).any():
        raise PatterningError("an observable does not respond to any free sample: its row of χ is zero")
    rows = weighted(chi) / scale[:, None]
    u, singular, v = np.linalg.svd(rows, full_matrices=False)
    floor = 0.0
    if noise is not None:
        floor = float(np.linalg.svd(weighted(np.where(keep, noise, 0.0)) / scale[:, None], compute_uv=False)[0])
    kept = singular > max(floor, singular[0] * n * np.finfo(np.float64).eps)
    if not kept.any():
        raise PatterningError(
            f"no direction of χ is above its noise (largest singular value {singular[0]:.3g}, noise {floor:.3g}): "
            "sample longer"
        )
    coefficients = (u.T @ (target / scale))[kept] / singular[kept]
    tilted = (coefficients @ v[kept]) / n_beta  # √q s
    s = np.divide(tilted, root, out=np.zeros(n), where=root > 0)
    return Solution(
        s=s,
        wanted=target,
        predicted=n_beta * (chi * q) @ s,
        singular_values=singular,
        noise_floor=floor,
        rank=int(kept.sum()),
        condition=float(singular[kept][0] / singular[kept][-1]),
    )
