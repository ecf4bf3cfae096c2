"""Control weights: what an intervention must be told apart from (SPEC §8.3)."""

import numpy as np
from numpy.typing import NDArray

from patterning.errors import PatterningError
from patterning.rng import Stream, generator

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def permuted(rho: Floats, base_weights: Floats, free: Bools, seed: int) -> Floats:
    """The same weights dealt to other free samples (n,): the histogram stays, the meaning goes.

    The free samples keep their total weight Σ q ρ, as in the arm that this controls.
    """
    result = rho.copy()
    result[free] = generator(seed, Stream.CONTROL).permutation(rho[free])
    q = base_weights
    result[free] *= (q * rho)[free].sum() / (q * result)[free].sum()
    return result


def thinned(classes: Bools, base_weights: Floats, free: Bools, keep: float) -> Floats:
    """Oracle weights (n,): samples of `classes` weigh `keep` times the other free samples, at the same total weight.

    Raises `PatterningError` when `classes` leaves no other free sample, or none at all: nothing would move.
    """
    if not (classes & free).any() or not (free & ~classes).any():
        raise PatterningError("the classes to thin out hold no free sample, or every one: nothing would move")
    rho = np.where(classes & free, keep, 1.0)
    rho[free] *= base_weights[free].sum() / (base_weights * rho)[free].sum()
    return rho
