r"""The two-chain estimator of devinterp 2.x, exactly, for comparison ([SI] App. C.4; estimator `devinterp2`).

.. math:: \chi_j = E_C[\phi L] - E_C[\phi\,\ell_j] - E_C[\phi]\,(E_{full}[L] - E_{full}[\ell_j])

with E the mean over all draws of all chains, pooled. It is -Cov less a term E_C[φ] (E_C[ℓ_j - L] - E_full[ℓ_j - L]),
which is nearly one vector for all components and has no error bar here.
"""

import numpy as np
from numpy.typing import NDArray

from patterning.core.errors import PatterningError
from patterning.response.moments import Moments

Floats = NDArray[np.float64]


def devinterp2_susceptibility(component: Moments, full: Moments, base_weights: Floats) -> Floats:
    """χ (k, n) from the sums of the component's chains and of the chains in which everything is free.

    Both must stand around the same checkpoint, or `PatterningError` is raised.
    """
    if not np.allclose(component.at_anchor, full.at_anchor, rtol=1e-4, atol=1e-4):  # float32, in another order
        raise PatterningError("the component and the full model were sampled around different checkpoints or samples")
    phi, _, product = pooled(component)
    excess = pooled(full)[1] @ base_weights - pooled(full)[1]  # E_full[L] - E_full[ℓ_j]
    return (product @ base_weights)[:, None] - product - phi[:, None] * excess


def pooled(moments: Moments) -> tuple[Floats, Floats, Floats]:
    """E[φ] (k,), E[ℓ] (n,) and E[φℓ] (k, n) over all draws of all chains."""
    count = moments.count.sum()
    x, y = moments.phi.sum((0, 1)) / count, moments.losses.sum((0, 1)) / count
    xy = moments.products.sum((0, 1)) / count
    phi0, loss0 = moments.phi_anchor, moments.at_anchor
    return x + phi0, y + loss0, xy + phi0[:, None] * y + (x + phi0)[:, None] * loss0
