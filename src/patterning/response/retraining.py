r"""The response of training itself: how an outcome of retraining moves with the weights of groups of samples.

A finite difference where χ of a posterior is a fluctuation. Runs with groups up- and down-weighted are paired by seed,
and the contrasts of their outcomes φ fitted by

.. math:: d\phi = \sum_g m_g\, \chi_g\, d\log\rho_g, \qquad \sum_g m_g \chi_g = 0

with m_g = Σ_{j in g} q_j, so that χ_g means what χ_j means for a posterior (at nβ = 1), averaged over the group. It
costs two trainings a pair and needs few groups; it assumes neither a posterior nor that training stays near a solution.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import as_floats
from patterning.core.errors import PatterningError
from patterning.response.base_weights import as_base_weights

Floats = NDArray[np.float64]
MOST_GROUPS = 8


@dataclass(frozen=True)
class TrainingResponse:
    """`chi` and `standard_error` (G,), [φ] for each unit of relative weight; `mass` m (G,); `pairs` of runs used.

    `reliability` is the share of Σ m χ² that is not Monte Carlo error, 1 - Σ m se² / Σ m χ²; negative means noise.
    """

    chi: Floats
    standard_error: Floats
    mass: Floats
    pairs: int

    @property
    def reliability(self) -> float:
        """1 - (expected noise) / (size), both under m."""
        size = float(self.mass @ self.chi**2)
        return float(1 - (self.mass @ self.standard_error**2) / size) if size > 0 else float("nan")


def half_splits(groups: int) -> Floats:
    """Every way to raise one half of the groups and lower the other, up to sign: (splits, groups) of ±1.

    A balanced design: each group is raised against each other one equally often. Raises `PatterningError` for an odd
    number of groups or more than 8 (35 splits).
    """
    if groups % 2 or not 2 <= groups <= MOST_GROUPS:
        raise PatterningError(f"{groups} groups cannot be split into halves: use an even number up to {MOST_GROUPS}")
    rows = []
    for others in combinations(range(1, groups), groups // 2 - 1):
        row = np.full(groups, -1.0)
        row[[0, *others]] = 1.0
        rows.append(row)
    return np.array(rows)


def split_weights(signs: Floats, groups: NDArray[np.int64], base_weights: Floats, step: float) -> Floats:
    """ρ (n,) ∝ exp(step · sign) of each sample's group at unchanged total; group -1 is frozen at ρ = 1."""
    free = groups >= 0
    rho = np.where(free, np.exp(step * signs[np.maximum(groups, 0)]), 1.0)
    rho[free] *= base_weights[free].sum() / (base_weights * rho)[free].sum()
    return rho


def _check_groups(weights: Floats, groups: NDArray[np.int64], count: int) -> None:
    """Raise `PatterningError` unless every group from 0 to `count` - 1 has members of one positive weight."""
    missing = set(range(max(count, 1))) - set(groups.tolist())
    if missing:
        raise PatterningError(f"groups {sorted(missing)} have no members: number them from 0 on")
    for group in range(count):
        own = weights[:, :, groups == group]
        if not (np.isfinite(own).all() and (own > 0).all()):
            raise PatterningError(f"the weights of group {group} are not all finite and > 0: they have no logarithm")
        if not np.allclose(own, own[:, :, :1], rtol=1e-6, atol=0):
            raise PatterningError(f"the weights differ within group {group}: the response of a group needs one for it")


def training_response(
    outcomes: NDArray[np.floating], weights: NDArray[np.floating], groups: NDArray[np.int64], base_weights: Floats
) -> TrainingResponse:
    """χ of groups from `outcomes` φ (pairs, 2) of retraining under `weights` ρ (pairs, 2, n), constant in each group.

    Pairs share a seed. Raises `PatterningError` when the pairs do not determine every group and leave an error bar.
    """
    outcomes, weights = as_floats("outcomes", outcomes, 2), as_floats("weights", weights, 3)
    groups = np.asarray(groups)
    base_weights = as_base_weights(base_weights, len(groups))
    if outcomes.shape[1] != 2 or weights.shape != (*outcomes.shape, len(groups)):
        shapes = f"outcomes {outcomes.shape} and weights {weights.shape}"
        raise PatterningError(f"{shapes} are not (pairs, 2) and (pairs, 2, n)")
    if not np.isfinite(outcomes).all():
        raise PatterningError("an outcome is NaN or infinite: a run that failed has no place in a paired response")
    free = groups >= 0
    count = int(groups.max()) + 1
    _check_groups(weights, groups, count)
    mass = np.bincount(groups[free], base_weights[free], minlength=count).astype(np.float64)
    first = np.array([np.flatnonzero(groups == g)[0] for g in range(count)])
    log_weights = np.log(weights[:, :, first])
    design = (log_weights[:, 0] - log_weights[:, 1]) * mass
    change = outcomes[:, 0] - outcomes[:, 1]
    basis = np.linalg.svd(mass[None])[2][1:].T  # (G, G-1): the χ with Σ m χ = 0
    reduced = design @ basis
    spare = len(change) - (count - 1)
    if spare < 1 or np.linalg.matrix_rank(reduced) < count - 1:
        raise PatterningError(f"{len(change)} pairs of runs do not determine the response of {count} groups")
    inverse = np.linalg.pinv(reduced)
    theta = inverse @ change
    residual = change - reduced @ theta
    spread = basis @ inverse
    error = np.sqrt((spread**2).sum(1) * (residual @ residual) / spare)
    return TrainingResponse(basis @ theta, error, mass, len(change))
