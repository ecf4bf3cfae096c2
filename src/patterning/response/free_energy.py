r"""The data that favours one solution over another, from their free energies.

.. math:: \frac{d(F_B - F_A)}{d\alpha} = n\beta \sum_j q_j s_j\,(\langle\ell_j\rangle_B - \langle\ell_j\rangle_A)

under the weights ρ = 1 + α s, Σ q s = 0. Weight on samples that B fits worse than A raises the free energy of B beside
that of A. It is a difference of means, not a covariance. Training follows it where runs were seen to switch between
the two solutions, in both directions; where a solution is only left, once, the barrier decides
(docs/llc-responses.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patterning.core.errors import PatterningError
from patterning.response.chain_errors import Cosine, Estimate, cosine, jackknife, weighted, weighted_sum
from patterning.response.solution_responses import NAMES, FourResponses
from patterning.response.susceptibility import Susceptibility

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SolutionGap:
    """Responses of solutions B less those of solutions A, (n,) each: what weight on a sample does to their difference.

    `free_energy`, F_B - F_A, is positive where more weight on sample j favours A: s_j ∝ `free_energy.values` is the
    direction towards A. It is the sum of `energy` E (losses at the two w*, exact) and `entropic` X; `cosine` is that of
    E and F, `cosine_parts` that of E and X. Errors are over chains. `between_solutions` (n,): standard error of
    `free_energy` over solutions, None with a single A or B; where it is much larger, the gap is one of these runs
    rather than of two kinds of solutions. `notes`: what limits the numbers.
    """

    llc_posterior: Estimate
    entropic: Estimate
    llc_total: Estimate
    free_energy: Estimate
    energy: Floats
    cosine: Cosine
    cosine_parts: Cosine
    between_solutions: Floats | None
    a: tuple[FourResponses, ...]
    b: tuple[FourResponses, ...]
    notes: tuple[str, ...] = ()


def free_energy_gap(
    a: FourResponses | Sequence[FourResponses], b: FourResponses | Sequence[FourResponses]
) -> SolutionGap:
    """F_B - F_A for every sample, between solutions A and B, or means of several (docs/llc-responses.md).

    Raises `PatterningError` when they were not sampled on the same data at the same nβ, by one sampler at one γ: the
    entropic part depends on these, and a difference of it would be of settings as much as of solutions.
    """
    sides = [(side,) if isinstance(side, FourResponses) else tuple(side) for side in (a, b)]
    every = [solution for side in sides for solution in side]
    if not all(sides):
        raise PatterningError("a gap needs at least one solution A and one solution B")
    for solution in every[1:]:
        _check_same_data(every[0], solution)
        _check_same_posterior(every[0], solution)
    q = every[0].base_weights
    weights = [sign / len(side) for side, sign in zip(sides, (-1, 1), strict=True) for _ in side]
    rows = {name: weighted_sum([solution.row(name) for solution in every], weights) for name in NAMES}
    energy = weighted([solution.energy for solution in every], weights)
    by_chain = [solution.free_energy_by_chain for solution in every]
    groups = [chains for chains in by_chain if chains is not None]
    if len(groups) == len(every):
        both = jackknife(lambda means: cosine(energy, weighted(means, weights), q), groups)
        parts = jackknife(lambda means: cosine(energy, weighted(means, weights) - energy, q), groups)
    else:
        both = Cosine(cosine(energy, rows["free-energy"].values, q), float("nan"))
        parts = Cosine(cosine(energy, rows["entropic"].values, q), float("nan"))
    return SolutionGap(
        llc_posterior=rows["llc-posterior"],
        entropic=rows["entropic"],
        llc_total=rows["llc-total"],
        free_energy=rows["free-energy"],
        energy=energy,
        cosine=both,
        cosine_parts=parts,
        between_solutions=_between(sides),
        a=sides[0],
        b=sides[1],
        notes=_notes(sides),
    )


def _between(sides: Sequence[tuple[FourResponses, ...]]) -> Floats | None:
    if min(len(side) for side in sides) < 2:
        return None
    values = [np.stack([solution.free_energy.values for solution in side]) for side in sides]
    return np.sqrt(sum(part.var(0, ddof=1) / len(part) for part in values))


def _notes(sides: Sequence[tuple[FourResponses, ...]]) -> tuple[str, ...]:
    notes = []
    for name, side in zip("AB", sides, strict=True):
        for number, solution in enumerate(side):
            which = f"solution {name}{number if len(side) > 1 else ''}"
            notes += [f"{which}: {why}" for why in (*solution.two_state.values(), *solution.notes)]
    every = [solution for side in sides for solution in side]
    if len({solution.step_size for solution in every}) > 1:
        stated = ", ".join(f"{solution.step_size:g}" for solution in every)
        notes.append(f"the solutions were sampled with different steps ε ({stated}), whose biases do not cancel")
    return tuple(notes)


def _check_same_posterior(a: FourResponses, b: FourResponses) -> None:
    if (a.localization, a.sampler) != (b.localization, b.sampler):
        raise PatterningError(
            f"the solutions were sampled at different γ or by different samplers ({a.sampler} at γ {a.localization:g}, "
            f"{b.sampler} at γ {b.localization:g}), and the entropic part depends on both: sample them alike"
        )


def _check_same_data(a: FourResponses | Susceptibility, b: FourResponses | Susceptibility) -> None:
    if a.n_beta != b.n_beta or not np.array_equal(a.base_weights, b.base_weights):
        raise PatterningError("the two solutions were sampled on different data or at different n_beta")


def gap_direction(a: Susceptibility, b: Susceptibility) -> tuple[Floats, float]:
    """s (n,) that favours solution A to first order, s_j = E_B[ℓ_j] - E_A[ℓ_j] in nats, and its median |s| / error.

    It is `SolutionGap.free_energy` over nβ, less a constant. Raises `PatterningError` when the two were not sampled on
    the same data at the same nβ.
    """
    _check_same_data(a, b)
    s = b.mean_losses - a.mean_losses
    error = np.hypot(a.mean_losses_error, b.mean_losses_error)
    z = np.abs(s) / np.where(error > 0, error, np.inf)
    return s, float(np.median(z))
