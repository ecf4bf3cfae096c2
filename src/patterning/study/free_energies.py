r"""The table of free energies: where every solution of a small model is known, which share of runs ends in each.

Noisy training that moves between solutions ends in solution B with probability ∝ exp(-F_B), and weights change F_B by
nβ Σ q (ρ - 1) E_B[ℓ] (`response.solutions`). Chains around each solution give E_B[ℓ]; unweighted pilot runs give the
shares at ρ = 1, in which solutions that are alike by symmetry share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError
from patterning.core.plain import Document
from patterning.core.settings import Frozen
from patterning.posterior.around import CHECK_EVERY, Around, Schedule, judge_chains
from patterning.posterior.sgld import SGLD
from patterning.response.solutions import gap_direction, gap_parts, predict_shares, prediction_intervals
from patterning.response.solutions import symmetric_shares as shares_of
from patterning.response.susceptibility import rank_correlation, step_up
from patterning.study.bench import Bench, Found
from patterning.study.solution_chains import SolutionChains, SolvedSubject
from patterning.study.subject import Ints, Rho


class ChainSettings(Frozen):
    """The localized posterior around each solution, by exact gradients: γ, ε, and the length of the chains."""

    localization: float = Field(gt=0)
    step_size: float = Field(gt=0)
    chains: int = Field(ge=4)
    steps: int = Field(ge=100)
    burn_in: int = Field(ge=0)
    steps_between_draws: int = Field(ge=1)
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _enough_draws(self) -> "ChainSettings":
        if (self.steps - self.burn_in) // self.steps_between_draws < 2 * CHECK_EVERY:
            raise ValueError(f"sampling.steps must leave at least {2 * CHECK_EVERY} draws after burn_in")
        return self


@dataclass(frozen=True)
class FreeEnergies:
    """The chains around each solution, and how many unweighted pilot runs ended in each: `counts` (B,)."""

    solutions: Sequence[Around]
    counts: Ints
    classes: Sequence[Ints]
    base_weights: Floats
    n_beta: float

    @property
    def shares(self) -> Floats:
        """Of unweighted runs, (B,)."""
        return shares_of(self.classes, self.counts)

    def gap(self, target: int) -> Document:
        """The gap that favours a solution against its rivals, each weighted by its share, with its parts."""
        at_minimum = np.stack([solution.at_minimum for solution in self.solutions])
        means = np.stack([solution.mean_losses for solution in self.solutions])
        return gap_parts(at_minimum, means, self.shares, target, self.base_weights)

    def reliability(self, target: int) -> float:
        """Rank correlation of the gap of the even and of the odd chains, stepped up to all chains."""
        halves = [np.stack([solution.chain_means[start::2].mean(0) for solution in self.solutions]) for start in (0, 1)]
        gaps = [gap_direction(half, self.shares, target, self.base_weights) for half in halves]
        return step_up(rank_correlation(*gaps))

    def facts(self) -> Document:
        """For results: the pilots' end states, each solution's chains, and a note of the chains that were left out."""
        excluded = [reason.partition(":")[0] for solution in self.solutions for reason in solution.excluded]
        told = f"chains left out, having visited another solution or overflowed: {'; '.join(excluded)}"
        return {
            "notes": [f"{len(excluded)} {told}"] if excluded else [],
            "pilot_counts": self.counts,
            "solutions": [solution.summary() for solution in self.solutions],
        }

    def predicted(self, weights: Sequence[Rho]) -> tuple[Floats, Floats, Floats]:
        """Shares of the solutions under weights, (arms, B), and their limits over chains and pilot runs."""
        rhos = np.stack([np.asarray(rho, dtype=np.float64) for rho in weights])
        means = np.stack([solution.mean_losses for solution in self.solutions])
        value = [predict_shares(self.shares, means, rho, self.base_weights, self.n_beta) for rho in rhos]
        chains = [solution.chain_means for solution in self.solutions]
        limits = prediction_intervals(self.classes, self.counts, chains, rhos, self.base_weights, self.n_beta)
        return np.stack(value), *limits


@dataclass(frozen=True)
class ShareForecast:
    """The share of runs that end in one solution, under any weights."""

    table: FreeEnergies
    target: int

    def __call__(self, weights: Sequence[Rho]) -> Floats:
        """(arms, 3): share, low, high; 95 %, bootstrap over chains and pilot runs."""
        return np.stack([part[:, self.target] for part in self.table.predicted(weights)], axis=1)


@dataclass(frozen=True)
class ShareGap:
    """The free-energy gap of one solution against all others, and the share of runs that it foretells.

    `target`: the solution, which is a measure of the subject as well: 1 for a run that ends in it.
    """

    target: str
    sampling: ChainSettings

    def read(self, name: str, bench: Bench) -> Found:
        """Refused where the even and the odd chains do not agree."""
        table = free_energies(bench, self.sampling)
        place = [solution.name for solution in table.solutions].index(self.target)
        parts, reliability = table.gap(place), table.reliability(place)
        refused = None
        if not reliability >= bench.min_reliability:
            refused = f"its reliability over the chains is {reliability:.2f}"
        what = f"free-energy gap: the mean loss around the others, by their shares, less that around {self.target}"
        gap = parts.pop("s")
        direction = bench.direction(
            name, what, gap, refused=refused, wanted={self.target: 1.0}, reliability=reliability, gap=gap, **parts
        )
        return Found(direction, ShareForecast(table, place), of_shares=True)


def free_energies(bench: Bench, sampling: ChainSettings) -> FreeEnergies:
    """Sampled once for all readings. Raises `PatterningError` where chains left their solution or do not agree."""
    return bench.once(("free energies", sampling), lambda: _sample(bench, sampling))


def _sample(bench: Bench, sampling: ChainSettings) -> FreeEnergies:
    subject = bench.subject
    if not isinstance(subject, SolvedSubject):
        raise PatterningError(f"the solutions of the subject {subject.name!r} are not known")
    kernel = SGLD(n_beta=subject.n_beta, localization=sampling.localization, step_size=sampling.step_size)
    schedule = Schedule(sampling.steps, sampling.burn_in, sampling.steps_between_draws)
    halves = np.array_split(np.arange(sampling.chains), 2)  # so that two workers share them
    jobs = [
        SolutionChains(subject, kernel, schedule, sampling.seed, tuple(half.tolist()), label="chains")
        for half in halves
    ]
    parts = bench.pool.compute(jobs, "sampling around every solution")
    losses, states = (np.concatenate([part[name] for part in parts], axis=2) for name in ("losses", "states"))
    landscape = subject.landscape
    solutions = [
        judge_chains(landscape, k, w, losses[:, k], states[:, k], subject.n_beta, force=bench.force)
        for k, w in enumerate(parts[0]["minima"])
    ]
    ends = np.bincount(subject.end_states(bench.pilots[""]), minlength=len(solutions) + 1)[: len(solutions)]
    return FreeEnergies(solutions, ends, subject.classes, subject.base_weights, subject.n_beta)
