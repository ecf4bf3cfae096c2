r"""The data that favours one solution over another, from their free energies (SPEC §7).

.. math:: \frac{d(F_A - F_B)}{d\alpha} = n\beta \sum_j q_j s_j\,(E_A[\ell_j] - E_B[\ell_j])

A difference of means, not a covariance: far less noisy than weights that target the LLC.
"""

import numpy as np
from numpy.typing import NDArray

from patterning.errors import PatterningError
from patterning.response.susceptibility import Susceptibility

Floats = NDArray[np.float64]


def gap_direction(a: Susceptibility, b: Susceptibility) -> tuple[Floats, float]:
    """s (n,) that favours solution A to first order, s_j = E_B[ℓ_j] - E_A[ℓ_j] in nats, and its median |s| / error.

    Raises `PatterningError` when the two were not sampled on the same data at the same nβ.
    """
    if a.n_beta != b.n_beta or not np.array_equal(a.base_weights, b.base_weights):
        raise PatterningError("the two solutions were sampled on different data or at different n_beta")
    s = b.mean_losses - a.mean_losses
    error = np.hypot(a.mean_losses_error, b.mean_losses_error)
    z = np.abs(s) / np.where(error > 0, error, np.inf)
    return s, float(np.median(z))
