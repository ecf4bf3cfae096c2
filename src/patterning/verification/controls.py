"""Control weights: what an intervention must be told apart from (SPEC §8.3)."""

import numpy as np
from numpy.typing import NDArray

from patterning.rng import Stream, generator

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def permuted(rho: Floats, base_weights: Floats, free: Bools, seed: int) -> Floats:
    """The same weights dealt to other free samples: the histogram stays, the meaning goes. (n,)

    The free samples keep their total weight, as in the arm that this controls.
    """
    result = rho.copy()
    result[free] = generator(seed, Stream.CONTROL).permutation(rho[free])
    q = base_weights
    result[free] *= q[free].sum() / (q * result)[free].sum()
    return result


def thinned(classes: Bools, base_weights: Floats, free: Bools, keep: float) -> Floats:
    """Oracle weights: the samples of `classes` at a share `keep` of their weight, given to the other free samples."""
    rho = np.where(classes & free, keep, 1.0)
    rho[free] *= base_weights[free].sum() / (base_weights * rho)[free].sum()
    return rho
