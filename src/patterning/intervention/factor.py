r"""What inversion needs of χ, taken in from chunks of samples: a triangular matrix of k + 1 rows, whatever n is.

With A (n, k + 1) the columns √q and √q χ_k of the free samples, A = Z R (Z orthonormal). The first row of R holds the
means of the rows of χ under q; the rest R' is the factor of the centred matrix X = √q (χ - mean), with XᵀX = R'ᵀR'. R
is carried from block to block: that of a block below the R so far is the R of both (Golub & Van Loan, Matrix
Computations, §5.2; the sequential form of TSQR, Demmel et al., SIAM J. Sci. Comput. 34, 2012).

The Gram matrix χ Q χᵀ would take fewer operations. But it squares the condition number: singular values below 1e-8 of
the largest are lost in it. R keeps them to 1e-16 of the largest, as the singular value decomposition of all of χ does,
so that one formula serves small problems and those that do not fit in memory. From R and χ, s = X R'⁻¹ R'⁻ᵀ dμ ("semi-
normal equations") is as exact as from Z: its error grows with the condition number and not with its square (Demmel &
Higham, SIAM J. Matrix Anal. Appl. 14, 1993).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from patterning.core.arrays import Bools, Floats
from patterning.core.errors import PatterningError

BLOCK = 2048
"""Samples that are taken in at a time: with 50 rows they stay in a CPU's cache."""


class Factor:
    """The triangular factor of the samples that were added so far: `triangle` (k + 1, k + 1), columns √q and √q χ_k."""

    def __init__(self, rows: int) -> None:
        self.rows, self.samples = rows, 0
        self.triangle = np.zeros((rows + 1, rows + 1))

    def add(self, values: Floats, q: Floats) -> None:
        """Take in samples with `values` (k, m) and weights `q` (m,); those of weight 0 count for nothing."""
        size = self.rows + 1
        for first in range(0, len(q), BLOCK):
            part, root = values[:, first : first + BLOCK], np.sqrt(q[first : first + BLOCK])
            stacked = np.empty((size, size + len(root)))  # its transpose is in Fortran's order, and is overwritten
            stacked[:, :size] = self.triangle.T
            stacked[0, size:] = root
            np.multiply(np.where(root > 0, part, 0.0), root, out=stacked[1:, size:])
            reduced = lapack.dgeqrf(stacked.T, overwrite_a=True)[0]  # pyright: ignore[reportAttributeAccessIssue]
            self.triangle = np.triu(reduced[:size])
        self.samples += len(q)

    @property
    def weight(self) -> float:
        """Σ q."""
        return float(self.triangle[0, 0] ** 2)

    @property
    def mean(self) -> Floats:
        """Of each row under q (k,)."""
        return self.triangle[0, 1:] / self.triangle[0, 0]

    @property
    def centred(self) -> Floats:
        """R' (k, k): R'ᵀR' is Σ q (χ - mean)(χ - mean)ᵀ."""
        return self.triangle[1:, 1:]


@dataclass(frozen=True)
class Inverse:
    """The solution of the fundamental equation, without its n numbers: s_j = Σ_k θ_k (χ_kj - mean_k) on free samples.

    `theta`, `mean`, `wanted` and `predicted` dμ (k,) in the units of φ; `root_mean_square` of s under q over the free
    samples. `singular_values` (k,) of the row-standardised matrix and `noise_floor` in the same units; `rank` kept,
    `condition` the ratio of the largest to the smallest kept singular value. `basis` (rank, k): b_a = Σ_k basis_ak
    (χ_k - mean_k) are the kept directions, orthonormal under q over the free samples. `spread` (k,) of each row
    over the free samples, root of Σ q (χ - mean)² / Σ q of all.
    """

    theta: Floats
    mean: Floats
    wanted: Floats
    predicted: Floats
    root_mean_square: float
    singular_values: Floats
    noise_floor: float
    rank: int
    condition: float
    basis: Floats
    spread: Floats

    def scores(self, chi: Floats, free: Bools | None = None) -> Floats:
        """s (m,) of samples with `chi` (k, m); 0 for those that are not free."""
        if free is None or free.all():
            return self.theta @ chi - self.theta @ self.mean
        return np.where(free, self.theta @ np.where(free, chi, 0.0) - self.theta @ self.mean, 0.0)

    def blocks(self, chi: Floats, free: Bools) -> Iterator[tuple[slice, Floats]]:
        """`scores` a block at a time, so that no copy of χ is made."""
        for first in range(0, chi.shape[1], BLOCK):
            place = slice(first, first + BLOCK)
            yield place, self.scores(chi[:, place], free[place])


def invert_factor(factor: Factor, target: Floats, n_beta: float, total: float, noise: Factor | None = None) -> Inverse:
    """The fundamental equation for `target` dμ (k,). `factor` of χ over free samples; `total`: Σ q of all samples.

    `noise`: the factor of an error sample of χ; singular values under its largest one are cut, as are those that
    rounding could have made. Raises `PatterningError` for a row without response, and when nothing is above the noise.
    """
    centred, rounding = factor.centred / np.sqrt(total), factor.samples * np.finfo(np.float64).eps
    # Rows are compared in units of their own size: observables may be accuracies, nats or nβ-scaled nats.
    scale = np.linalg.norm(centred, axis=0)
    if (scale <= rounding * np.abs(factor.mean) * np.sqrt(factor.weight / total)).any():
        raise PatterningError("an observable does not respond to any free sample: its row of χ is zero")
    _, singular, v = np.linalg.svd(centred / scale)
    floor = 0.0 if noise is None else float(np.linalg.svd(noise.centred / np.sqrt(total) / scale, compute_uv=False)[0])
    kept = singular > max(floor, singular[0] * rounding)
    if not kept.any():
        raise PatterningError(
            f"no direction of χ is above its noise (largest singular value {singular[0]:.3g}, noise {floor:.3g}): "
            "sample longer"
        )
    v, sizes = v[kept] / scale, singular[kept]  # of the rows as they are: v χ is √(Σ q of all) σ times orthonormal
    theta = (v @ target / sizes**2) @ v / n_beta
    response = centred @ theta  # √q s in the orthonormal coordinates
    return Inverse(
        theta=theta,
        mean=factor.mean,
        wanted=target,
        predicted=n_beta * response @ centred,
        root_mean_square=float(np.linalg.norm(response) * np.sqrt(total / factor.weight)),
        singular_values=singular,
        noise_floor=floor,
        rank=int(kept.sum()),
        condition=float(sizes[0] / sizes[-1]),
        basis=v / sizes[:, None] * np.sqrt(factor.weight / total),
        spread=scale,
    )
