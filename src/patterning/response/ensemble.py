r"""χ over an ensemble of training runs instead of one localized posterior: the free-energy gap over many basins.

A chain around w* sees the fluctuations inside one basin. Which basin training ends in fluctuates between seeds, and to
first order the same formula reads it,

.. math:: \chi_j(\phi) = -\mathrm{Cov}_{\text{runs}}[\phi,\ \ell_j - L]

with φ an outcome of each run and ℓ_j its loss on sample j. For two basins it is the free-energy gap
(`free_energy.py`) up to a factor. It is exact where runs are draws of a posterior p(w) ∝ exp(-nβ L); for runs of an
optimiser nβ is unknown, so it gives a direction and not a size.
"""

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import as_floats
from patterning.core.errors import PatterningError
from patterning.response.base_weights import as_base_weights
from patterning.response.susceptibility import Susceptibility

Floats = NDArray[np.float64]


def ensemble_susceptibility(
    name: str, outcome: Floats, losses: NDArray[np.floating], base_weights: Floats
) -> Susceptibility:
    """One row of χ from `outcome` φ (runs,) and `losses` ℓ (runs, n); halves are the even and the odd runs.

    The standard error is over runs. Recorded with nβ = 1. Raises `PatterningError` with fewer than 6 runs, or when all
    outcomes are equal.
    """
    outcome, losses = as_floats("outcome", outcome, 1), as_floats("losses", losses, 2)
    if len(losses) != len(outcome):
        raise PatterningError(f"{len(outcome)} outcomes for losses of {len(losses)} runs: one for each run is needed")
    base_weights = as_base_weights(base_weights, losses.shape[1])
    if not (np.isfinite(outcome).all() and np.isfinite(losses).all()):
        raise PatterningError("an outcome or a loss is NaN or infinite: leave out the runs that failed, by name")
    if len(outcome) < 6:
        raise PatterningError(f"{len(outcome)} runs are too few for a covariance over runs: use at least 6")
    if np.ptp(outcome) == 0:
        raise PatterningError("every run has the same outcome: nothing can be read from their differences")
    ell = losses
    relative = ell - (ell @ base_weights)[:, None]

    def terms(runs: slice) -> Floats:
        x, y = outcome[runs], relative[runs]
        return -(x - x.mean())[:, None] * (y - y.mean(0)) * (len(x) / (len(x) - 1))

    all_terms = terms(slice(None))
    runs = len(outcome)
    return Susceptibility(
        observables=(name,),
        n_beta=1.0,
        base_weights=base_weights,
        chi=all_terms.mean(0)[None],
        standard_error=(all_terms.std(0, ddof=1) / np.sqrt(runs))[None],
        degrees_of_freedom=runs - 1,
        halves=np.stack([terms(slice(0, None, 2)).mean(0)[None], terms(slice(1, None, 2)).mean(0)[None]]),
        mean_losses=ell.mean(0),
        mean_losses_error=ell.std(0, ddof=1) / np.sqrt(runs),
    )
