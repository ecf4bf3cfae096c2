"""Weights dealt out again: the same histogram without the meaning."""

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import Bools, Floats, as_floats, as_mask
from patterning.core.errors import PatterningError
from patterning.core.rng import Stream, generator

Ints = NDArray[np.int64]


def permuted(rho: Floats, base_weights: Floats, free: Bools | None, seed: int) -> Floats:
    """The same weights dealt to other free samples (n,): the histogram stays, the meaning goes.

    `free` (n,) bool; None means all. The free samples keep their total weight Σ q ρ, as in the arm that this controls.
    """
    rho, q = as_floats("the weights", rho, 1), as_floats("base_weights", base_weights, 1)
    if rho.shape != q.shape:
        raise PatterningError(f"{rho.shape} weights for {q.shape} base weights: one for each sample is needed")
    free = as_mask("free", free, len(rho))
    result = rho.copy()
    result[free] = generator(seed, Stream.CONTROL).permutation(rho[free])
    result[free] *= (q * rho)[free].sum() / (q * result)[free].sum()
    return result


def permuted_within(rho: Floats, strata: Ints, seed: int) -> Floats:
    """The same weights dealt out again (n,), each within its own stratum: a stratum keeps its histogram and its total.

    `strata` (n,): any whole number a sample, e.g. its frequency band; samples have equal base weights. A control for
    "the weights act through the strata alone".
    """
    rho, strata = as_floats("the weights", rho, 1), np.asarray(strata)
    if strata.dtype.kind not in "biu":
        raise PatterningError(f"strata are {strata.dtype}: they must be whole numbers, one a sample")
    if strata.shape != rho.shape:
        raise PatterningError(f"{strata.shape} strata for {rho.shape} weights: one for each sample is needed")
    source = np.argsort(strata, kind="stable")
    target = np.lexsort((generator(seed, Stream.CONTROL).random(len(rho)), strata))
    result = np.empty_like(rho)
    result[target] = rho[source]
    return result
