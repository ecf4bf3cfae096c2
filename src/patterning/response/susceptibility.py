r"""The susceptibility matrix with a standard error on every entry (estimator `covariance`).

.. math:: \chi_j(\phi) = -\mathrm{Cov}[\phi(w),\ \ell_j(w) - L(w)]

Units: [φ] · nats. χ_j > 0: moving data weight onto sample j raises ⟨φ⟩.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from patterning.core.arrays import as_mask, check_level
from patterning.core.errors import PatterningError
from patterning.response.base_weights import as_base_weights
from patterning.response.moments import Moments, batch_covariances, unbiased_covariances

Floats = NDArray[np.float64]

FEWEST_SAMPLES = 8
"""Of fewer samples a rank correlation between halves says nothing."""


@dataclass(frozen=True)
class Susceptibility:
    """χ and what is known of its accuracy.

    `chi`, `standard_error` (k, n), with `degrees_of_freedom`; `halves` (2, k, n), from the even and the odd chains;
    `by_chain` (c, k, n), where it is known: χ of each chain alone, the independent units;
    `mean_losses` E[ℓ_j] (n,) with `mean_losses_error` (n,); `base_weights` q (n,). `observables` names the k rows,
    `n_beta` is the nβ of the chains.
    """

    observables: tuple[str, ...]
    n_beta: float
    base_weights: Floats
    chi: Floats
    standard_error: Floats
    degrees_of_freedom: float
    halves: Floats
    mean_losses: Floats
    mean_losses_error: Floats
    by_chain: Floats | None = None

    def row(self, observable: str) -> Floats:
        """χ of one observable (n,)."""
        if observable not in self.observables:
            raise PatterningError(f"χ has no row {observable!r}: it has {', '.join(self.observables)}")
        return self.chi[self.observables.index(observable)]

    def half_width(self, level: float = 0.95) -> Floats:
        """χ ± this (k, n) is an interval for each entry: Student's t times the standard error."""
        check_level(level)
        return float(stdtrit(self.degrees_of_freedom, (1 + level) / 2)) * self.standard_error

    def half_difference(self) -> Floats:
        """An error sample of χ (k, n): half the difference of the two independent halves; the `noise` of `solve`."""
        return (self.halves[0] - self.halves[1]) / 2

    def reliability(self, free: NDArray[np.bool_] | None = None) -> dict[str, float]:
        """Split-half reliability of each row over the (free) samples, stepped up to all chains (Spearman-Brown).

        Rank correlation: χ is heavy-tailed, and a handful of samples would decide a plain correlation. Of fewer than
        `FEWEST_SAMPLES` samples a rank correlation says nothing (of 2 it is 1 or -1): there it is `from_errors`, and of
        a single sample NaN. Raises `PatterningError` where no sample is free.
        """
        keep = as_mask("free", free, self.chi.shape[1])
        if not keep.any():
            raise PatterningError("no sample is free: there is nothing whose reliability could be told")
        if keep.sum() < FEWEST_SAMPLES:
            chains = self.halves if self.by_chain is None else self.by_chain
            return {name: from_errors(chains[:, i, keep]) for i, name in enumerate(self.observables)}
        return {
            name: step_up(rank_correlation(self.halves[0, i, keep], self.halves[1, i, keep]))
            for i, name in enumerate(self.observables)
        }

    def how_reliability_is_made(self) -> str:
        """A clause where the samples are too few for a rank correlation, else nothing."""
        count = self.chi.shape[1]
        return "" if count >= FEWEST_SAMPLES else f" (a lower bound from errors over chains: {count} samples are few)"


def from_errors(chains: Floats) -> float:
    """A lower bound (95 %) on the reliability of a row's differences between samples, from χ of each chain (c, n).

    1 - F N / S with S the sum of squares of the centred row, N what chains that differ by noise alone add to it, and F
    the 95 % quantile of the F distribution with 1 and c - 1 degrees of freedom (a row of noise: above 0 in at most one
    of 20 cases). NaN where all samples have the same χ, or there is one.
    """
    count = len(chains)
    row = chains.mean(0)
    signal = float(((row - row.mean()) ** 2).sum())
    if count < 2 or not signal > 0:
        return float("nan")
    apart = chains - row
    apart = apart - apart.mean(1, keepdims=True)
    noise = float((apart**2).sum()) / (count * (count - 1))
    return max(0.0, 1 - float(stdtrit(count - 1, 0.975)) ** 2 * noise / signal)


def susceptibility(
    moments: Moments, observables: Sequence[str], base_weights: Floats, n_beta: float, *, unbiased: bool = False
) -> Susceptibility:
    """χ from the sums of at least two chains. Raises `PatterningError` with fewer.

    Chains are centred one by one, so that an offset between them cannot pass for covariance. The price is a known
    shrinkage: χ is low by about (autocorrelation time / draws of a chain), which the standard error does not include.
    `unbiased` puts it back from the batch means (two batches at least, each several autocorrelation times long).

    `half_width` has Student's t of (chains · batches - 1) degrees of freedom. Its 95 % intervals fall short where a
    chain is worth fewer than some 300 independent draws of φ (docs/results/zoo.md).
    """
    chains = len(moments.count)
    if chains < 2:
        raise PatterningError(f"{chains} chain is left: χ needs at least 2 for its error and its reliability")
    covariances = unbiased_covariances(moments) if unbiased else batch_covariances(moments)
    q = as_base_weights(base_weights, len(moments.at_anchor))

    def centre(covariance: Floats) -> Floats:
        # Cov(φ, ℓ_j - L) = Cov(φ, ℓ_j) - Σ_i q_i Cov(φ, ℓ_i): the sums of φL are sums of φℓ.
        # Row by row, as a matrix product rounds a row by how many there are: χ must not depend on other observables.
        return covariance - np.einsum("...n,n->...", covariance, q)[..., None]

    parts = -centre(covariances)  # (c, b, k, n)
    weight = moments.count / moments.count.sum()
    chi = np.einsum("cb,cbkn->kn", weight, parts)
    batches = weight.size
    error = np.sqrt(np.einsum("cb,cbkn->kn", weight, (parts - chi) ** 2) / (batches - 1))
    halves = []
    for half in (range(0, chains, 2), range(1, chains, 2)):
        share = weight[list(half)] / weight[list(half)].sum()
        halves.append(np.einsum("cb,cbkn->kn", share, parts[list(half)]))
    means = moments.losses / moments.count[:, :, None] + moments.at_anchor  # (c, b, n)
    mean_losses = np.einsum("cb,cbn->n", weight, means)
    # chains, not batches, are the independent units of a mean: slow drift within a chain is shared by its batches
    by_chain = moments.losses.sum(1) / moments.count.sum(1)[:, None] + moments.at_anchor
    return Susceptibility(
        observables=tuple(observables),
        n_beta=n_beta,
        base_weights=q,
        chi=chi,
        standard_error=error,
        degrees_of_freedom=batches - 1,
        halves=np.stack(halves),
        mean_losses=mean_losses,
        mean_losses_error=by_chain.std(axis=0, ddof=1) / np.sqrt(chains),
        by_chain=np.einsum("cb,cbkn->ckn", weight / weight.sum(1, keepdims=True), parts),
    )


def rank_correlation(a: Floats, b: Floats) -> float:
    """Spearman's ρ; NaN where one side is constant."""
    x, y = _ranks(a) - (len(a) + 1) / 2, _ranks(b) - (len(b) + 1) / 2
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else float("nan")


def _ranks(values: Floats) -> Floats:
    """1 for the least; equal values share the mean of their ranks; all NaN where one value is.

    As `scipy.stats.rankdata`, whose import takes as long as a small χ.
    """
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def step_up(correlation: float, factor: float = 2.0) -> float:
    """Spearman-Brown: the reliability of a measurement `factor` times as long. Nothing is gained from none (<= 0)."""
    return correlation if correlation <= 0 else factor * correlation / (1 + (factor - 1) * correlation)
