r"""Policy `constrained`: the weights nearest to 1 that make a wanted change, to first order, under constraints.

.. math:: \min_\rho\ \tfrac12 \sum_j q_j (\rho_j - 1)^2 \quad\text{s.t.}\quad
          \sum_j q_j (\rho_j - 1)\, b_{aj} = t_a,\quad \sum_{j \in g} q_j (\rho_j - 1) = 0,\quad 0 \le \rho_j \le cap

b are the kept directions of χ, and t is what 1 + α s does along them: wanted rows move as far as they would without
constraints, and held rows stay. Groups g (all free samples, by default) keep their total weight; frozen samples are
left out. The objective is half the chi-square distance of ρ from 1, and the effective sample size is
1 / (1 + 2 · objective): a floor under it is a ceiling over the objective.

The dual has one unknown for each direction and group, whatever n is: with multipliers λ, ν and z = λ·b + ν_g, the
minimum over ρ is clip(1 + z, 0, cap), and the dual function is concave and piecewise quadratic. Newton's method on it
(semismooth: Qi & Sun, Mathematical Programming 58, 1993) ends after a few passes over the samples. By weak duality any
value of the dual is a lower bound of the objective: one above the largest that constraints allow proves that there are
no such weights.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import Bools, Floats
from patterning.core.errors import PatterningError

MOST_STEPS = 200
"""Newton steps; a few dozen are usual."""
RESIDUAL = 1e-11
"""Largest error of a constraint, in units of the largest target (or 1)."""
MOST_GROUPS = 2_000
"""The dual has an unknown for each, and its Hessian is dense."""
PRECISION = 1e-3
"""Relative, of the largest strength that can be reached."""


@dataclass(frozen=True)
class Certificate:
    """That weights are optimal: `objective` ½ Σ q (ρ - 1)², `gap` to the value of the dual, a lower bound of it.

    `residual`: the largest error of a constraint; `steps` of Newton's method; shares of base weight `at_zero` and
    `at_cap`.
    """

    objective: float
    gap: float
    residual: float
    steps: int
    at_zero: float
    at_cap: float


@dataclass(frozen=True)
class Nearest:
    """The problem on free samples: `directions` b (r, n), shares `q` (n,) that sum to 1, `group` (n,) from 0 on.

    `cap` may be infinite; `ceiling` over the objective.
    """

    directions: Floats
    q: Floats
    group: NDArray[np.int64]
    cap: float = math.inf
    ceiling: float = math.inf

    def solve(self, target: Floats) -> tuple[Floats, Certificate] | None:
        """ρ (n,) for Σ q (ρ - 1) b = `target` (r,), with its certificate; None where there is none.

        Raises `PatterningError` where Newton's method does not end.
        """
        r, groups = len(self.directions), int(self.group.max()) + 1
        right = np.concatenate([target, np.zeros(groups)])
        limit, bound = RESIDUAL * max(1.0, float(np.abs(target).max(initial=0.0))), self._largest()
        y, z = np.zeros(r + groups), np.zeros(len(self.q))
        value, rho, slope = self._at(z, y, right)
        for steps in range(MOST_STEPS):
            if value > bound * (1 + 1e-9):
                return None
            if np.abs(slope).max() <= limit:
                objective = 0.5 * float(self.q @ (rho - 1) ** 2)
                if objective > bound * (1 + 1e-9):
                    return None
                shares = float(self.q[rho <= 0].sum()), float(self.q[rho >= self.cap].sum())
                return rho, Certificate(objective, objective - value, float(np.abs(slope).max()), steps, *shares)
            y, z, (value, rho, slope) = self._step(y, z, value, rho, slope, right)
        raise PatterningError(
            f"the constrained weights were not found in {MOST_STEPS} steps (constraints are off by "
            f"{np.abs(slope).max():.2g}): the strength is at the very edge of what can be reached; lower it a little"
        )

    def _largest(self) -> float:
        """The largest objective: Σ q ρ² <= max ρ, as Σ q ρ = 1, and max ρ <= cap and 1 / min q."""
        most = min(self.cap, 1 / float(self.q.min()))
        return min(self.ceiling, (most - 1) / 2)

    def _at(self, z: Floats, y: Floats, right: Floats) -> tuple[float, Floats, Floats]:
        """The dual's value, ρ and the dual's gradient: the errors of the constraints."""
        rho = np.clip(1 + z, 0.0, self.cap)
        moved = self.q * (rho - 1)
        value = float(moved @ ((rho - 1) / 2 - z) + y @ right)
        sums = np.concatenate(
            [self.directions @ moved, np.bincount(self.group, moved, len(right) - len(self.directions))]
        )
        return value, rho, right - sums

    def _step(
        self, y: Floats, z: Floats, value: float, rho: Floats, slope: Floats, right: Floats
    ) -> tuple[Floats, Floats, tuple[float, Floats, Floats]]:
        """A regularised Newton step, shortened until the dual rises by a part of what it promises.

        Near the end the rise is lost in rounding: there a step will do that halves the errors of the constraints.
        """
        curvature = self._curvature((rho > 0) & (rho < self.cap), len(right))
        curvature[np.diag_indices_from(curvature)] += 1e-4 * min(1.0, float(np.abs(slope).max())) + 1e-14
        step = np.linalg.solve(curvature, slope)
        along, size, promised = step[: len(self.directions)] @ self.directions, 1.0, float(slope @ step)
        along += step[len(self.directions) :][self.group]
        while True:
            found = self._at(z + size * along, y + size * step, right)
            halved = np.abs(found[2]).max() <= np.abs(slope).max() / 2
            if found[0] >= value + 1e-4 * size * promised or halved or size < 1e-12:
                return y + size * step, z + size * along, found
            size /= 2

    def _curvature(self, between: Bools, size: int) -> Floats:
        """Minus the dual's (generalised) Hessian: of the samples that no bound holds."""
        r, q, group = len(self.directions), self.q[between], self.group[between]
        b, result = self.directions[:, between], np.zeros((size, size))
        weighted = b * q
        result[:r, :r] = weighted @ b.T
        for a in range(r):
            result[a, r:] = result[r:, a] = np.bincount(group, weighted[a], size - r)
        result[range(r, size), range(r, size)] = np.bincount(group, q, size - r)
        return result


def nearest_weights(
    directions: Floats,
    target: Floats,
    q: Floats,
    moving: Bools,
    *,
    what: str,
    strength: float,
    within: NDArray[np.integer] | None = None,
    cap: float | None = None,
    min_ess: float | None = None,
) -> tuple[Floats, Certificate]:
    """ρ (n,) nearest to 1 with Σ q (ρ - 1) b = strength · `target` (r,) for `directions` b (r, n).

    Samples that are not `moving` stay at 1; the others keep their total weight, and each group of `within` its own.
    `min_ess`: the least effective sample size, as a share of the free samples. Raises `PatterningError`, with the
    largest strength that can be reached, where there are no such weights; `what`: what is wanted, in words.
    """
    place = np.flatnonzero(moving & (q > 0))
    mass, labels = float(q[place].sum()), np.zeros(len(place), dtype=np.int64)
    if within is not None:
        if np.shape(within) != (len(q),):
            raise PatterningError(
                f"within has shape {np.shape(within)} for {len(q)} samples: it names each one's group"
            )
        labels = np.unique(np.asarray(within)[place], return_inverse=True)[1]
        if labels.max() >= MOST_GROUPS:
            raise PatterningError(
                f"within names {labels.max() + 1} groups: the policy constrained takes {MOST_GROUPS} at the most; use "
                "clip or tilt, or coarser groups"
            )
    ceiling = math.inf if min_ess is None else (1 / min_ess - 1) / 2
    problem = Nearest(directions[:, place], q[place] / mass, labels, math.inf if cap is None else cap, ceiling)
    found = problem.solve(strength * target / mass)
    if found is None:
        limits = ["ρ >= 0", *([f"ρ <= {cap:g}"] if cap else []),
                  *([f"an effective sample size of {min_ess:g} or more"] if min_ess else []),
                  *(["frozen samples"] if len(place) < (q > 0).sum() else []),
                  *(["the groups' totals"] if within is not None else [])]  # fmt: skip
        largest = largest_strength(problem, target / mass, strength)
        remedy = "nothing of it can be" if largest == 0 else f"the largest strength is {largest:.3g}"
        raise PatterningError(f"{what}: strength {strength:g} cannot be reached with {', '.join(limits)}; {remedy}")
    rho, certificate = np.ones(len(q)), found[1]
    rho[place] = found[0]
    return rho, certificate


def largest_strength(problem: Nearest, target: Floats, above: float) -> float:
    """The largest multiple of `target` below `above` that can be reached, by halving, from below; 0 if it is tiny."""
    low, high = 0.0, above
    while high - low > PRECISION * high and high > 1e-6 * above:
        middle = (low + high) / 2
        try:
            reached = problem.solve(middle * target) is not None
        except PatterningError:
            reached = False
        low, high = (middle, high) if reached else (low, middle)
    return low


def constrained_weights(
    directions: Floats,
    s: Floats,
    q: Floats,
    moving: Bools,
    row: NDArray[np.int64] | None = None,
    within: NDArray[np.integer] | None = None,
    **settings: Any,
) -> tuple[Floats, Certificate]:
    """`nearest_weights` that move `directions` b (r, n) as far as 1 + strength · s would; `settings`: the rest of them.

    With `row` (n,), the row of each sample: all samples of a row have its one weight, and a row moves if one of them
    may. Groups must then hold whole rows.
    """
    target = directions @ (q * s)
    if row is None:
        return nearest_weights(directions, target, q, moving, within=within, **settings)
    _, first, place = np.unique(row, return_index=True, return_inverse=True)
    mass = np.bincount(place, q).astype(np.float64)
    means = np.stack([np.bincount(place, q * b) for b in directions]) / np.where(mass > 0, mass, 1.0)
    if within is not None:
        labels = np.asarray(within)[first]
        if not np.array_equal(labels[place], within):
            raise PatterningError("within parts the samples of a row: with one weight a row, a group holds whole rows")
        within = labels
    free = np.bincount(place, moving) > 0
    rho, certificate = nearest_weights(means, target, mass, free, within=within, **settings)
    return rho[place], certificate
