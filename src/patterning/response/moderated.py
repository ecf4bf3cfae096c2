r"""Variances of many entries from few chains each, shrunk towards what entries of their size have (empirical Bayes).

Two chains leave one degree of freedom an entry, and Student's t of one is 12.7. But an entry has thousands of others
beside it, and these tell what variances to expect (Smyth, Stat. Appl. Genet. Mol. Biol. 3, 2004, the moderated t):

.. math:: s_i^2 \sim \sigma_i^2\, \chi^2_d / d, \qquad 1/\sigma_i^2 \sim \chi^2_{d_0} / (d_0\, s_0^2)
.. math:: \tilde s_i^2 = \frac{d_0 s_0^2 + d\, s_i^2}{d_0 + d} \quad \text{with } d_0 + d \text{ degrees of freedom}

s₀ follows the size of an entry (Sartor et al., BMC Bioinformatics 7:538, 2006), which under normality is independent of
s_i. Whether the intervals cover is measured in docs/results/response.md.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, polygamma

Floats = NDArray[np.float64]
TINY = float(np.finfo(np.float64).tiny)

ENOUGH = 500
"""Entries from which a prior is read off them."""

KNOTS = (0.01, 0.25, 0.5, 0.75, 0.95)
"""log s₀ is a broken line in the logarithm of the size, with its corners at these quantiles."""


def moderate(variances: Floats, freedom: float, size: Floats) -> tuple[Floats, float]:
    """Moderated `variances` (n,), each of `freedom` d degrees before, and their degrees of freedom d₀ + d.

    `size` (n,): what the variance may follow, such as |χ|. An entry without variance is left alone, and so are all
    where fewer than `ENOUGH` have one. d₀ is infinite where variances differ by no more than chance.
    """
    found = np.flatnonzero(variances > 0)
    if len(found) < ENOUGH:
        return variances, freedom
    # log s² less what chance adds to it: its mean is log s₀² + log(d₀/2) - ψ(d₀/2), its variance ψ'(d/2) + ψ'(d₀/2)
    log = np.log(variances[found]) - digamma(freedom / 2) + math.log(freedom / 2)
    x = np.log(np.maximum(size[found], np.quantile(size[found], KNOTS[0]) + TINY))
    basis = np.stack([np.ones_like(x), *(np.maximum(x - knot, 0) for knot in np.quantile(x, KNOTS))], axis=1)
    coefficients, _, rank, _ = np.linalg.lstsq(basis, log)
    line = basis @ coefficients
    excess = float(((log - line) ** 2).sum() / (len(log) - rank) - polygamma(1, freedom / 2))
    result = variances.copy()
    prior = _inverse_trigamma(excess)
    if math.isinf(prior):
        result[found] = np.exp(line)
        return result, math.inf
    usual = np.exp(line + digamma(prior / 2) - math.log(prior / 2))
    result[found] = (prior * usual + freedom * variances[found]) / (prior + freedom)
    return result, prior + freedom


def _inverse_trigamma(value: float) -> float:
    """d₀ with ψ'(d₀/2) = `value`, which falls from infinity to 0; infinite past 10⁴. By Newton's method on 1/ψ'."""
    if value <= float(polygamma(1, 5e3)):
        return math.inf
    x, step = 0.5 + 1 / value, math.inf
    while abs(step) > 1e-9 * x:
        reached = float(polygamma(1, x))
        step = reached * (1 - reached / value) / float(polygamma(2, x))
        x += step
    return 2 * x
