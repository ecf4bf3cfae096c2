r"""Readings around solutions: the free-energy gap of two kinds of solutions, its parts, and χ of observables.

For two kinds of solutions A ("up") and B ("down"), sampled around each, the gap

.. math:: s_j \propto n\beta\,(\langle\ell_j\rangle_B - \langle\ell_j\rangle_A)

favours A by weight on samples that B fits worse (`response.free_energy`). It foretells training where runs were seen to
switch between the two, in both directions (docs/llc-responses.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError
from patterning.core.flat import evaluate
from patterning.core.plain import Facts, Plain
from patterning.intervention.solve import solve
from patterning.response.free_energy import SolutionGap, free_energy_gap
from patterning.response.solution_responses import FourResponses, four_responses
from patterning.response.susceptibility import rank_correlation, step_up
from patterning.study.bench import Bench, Found, Kind, Solution
from patterning.study.sampling import LLC, Sampled, Sampling, reliability_of, sample_around
from patterning.study.subject import Rho

Row = Literal["free-energy", "llc-posterior", "entropic", "llc-total"]


@dataclass(frozen=True)
class Gap:
    """The gap of a response between solutions `down` and solutions `up`: the free energy, or a part of it.

    `row`: "free-energy" is the gap that theory asks for; the other three are what else "the LLC of a solution" can mean
    (`response.solution_responses`). `loss_band`: the loss of a model that knows nothing.
    """

    up: Kind
    down: Kind
    sampling: Sampling
    loss_band: float
    names: tuple[str, str] = ("up", "down")
    row: Row = "free-energy"

    def read(self, name: str, bench: Bench) -> Found:
        """Refused where the gap of the even and the odd chains does not agree."""
        gap, solutions = bench.once(("gap", self.up, self.down, self.sampling), lambda: self._sample(bench))
        s = gap.free_energy.values if self.row == "free-energy" else getattr(gap, self.row.replace("-", "_")).values
        free = bench.subject.free.ravel()
        reliability = _reliability(gap, self.row, free)
        refused = None
        if not reliability >= bench.min_reliability:
            refused = f"its reliability over the chains is {reliability:.2f}"
        what = f"{self.row} of {self.names[1]} less that of {self.names[0]}, {_counted(gap)} solutions"
        facts = {"reliability": reliability, **_describe(gap, solutions, free)}
        direction = bench.direction(name, what, s, refused=refused, **facts)
        return Found(direction, Expected(gap) if self.row == "free-energy" else None)

    def _sample(self, bench: Bench) -> tuple[SolutionGap, dict[str, Solution]]:
        """The gap between the solutions whose chains stayed; the others are left out by name."""
        sides = [bench.solutions(name, kind) for name, kind in zip(self.names, (self.up, self.down), strict=True)]
        responses, left_out, warnings = dict[str, FourResponses](), dict[str, str](), list[str]()
        for solution in [one for side in sides for one in side]:
            anchor = {solution.name: solution.flat}
            try:
                (one,) = sample_around(bench.subject, bench.pool, self.sampling, anchor, self.loss_band).values()
                responses[solution.name] = four_responses(one.response, one.kernel, observable=LLC)
                warnings += one.warnings
            except PatterningError as error:
                left_out[solution.name] = str(error)
        stayed = [[one for one in side if one.name in responses] for side in sides]
        if not all(stayed):
            raise PatterningError("; ".join(left_out.values()))
        up, down = ([responses[one.name] for one in side] for side in stayed)
        gap = free_energy_gap(up, down)
        notes = (*warnings, *(f"left out: {why}" for why in left_out.values()))
        return replace(gap, notes=(*gap.notes, *notes)), {one.name: one for side in stayed for one in side}


@dataclass(frozen=True)
class Expected:
    """The change of F_down - F_up that weights ask for, Σ q (ρ - 1) gap, with its error over chains and solutions."""

    gap: SolutionGap

    def __call__(self, weights: Sequence[Rho]) -> Floats:
        """(arms, 3): value, low, high; 95 %, normal."""
        s = np.stack([np.asarray(rho, dtype=np.float64).ravel() - 1 for rho in weights])
        sides = [np.stack([one.along(s)["free-energy"].values for one in side]) for side in (self.gap.a, self.gap.b)]
        errors = [
            np.stack([one.along(s)["free-energy"].standard_error for one in side]) for side in (self.gap.a, self.gap.b)
        ]
        value = sides[1].mean(0) - sides[0].mean(0)
        within = sum((part**2).sum(0) / len(part) ** 2 for part in errors)
        between = sum(part.var(0, ddof=1) / len(part) for part in sides if len(part) > 1)
        error = np.sqrt(np.maximum(within, between))
        return np.stack([value, value - 1.96 * error, value + 1.96 * error], axis=1)


@dataclass(frozen=True)
class LossGap:
    """Losses at the solutions alone, `down` less `up`: the part of the free-energy gap that needs no sampling."""

    up: Kind
    down: Kind
    names: tuple[str, str] = ("up", "down")

    def read(self, name: str, bench: Bench) -> Found:
        """Exact, for these solutions."""
        up, down = (bench.solutions(name, kind) for name, kind in zip(self.names, (self.up, self.down), strict=True))
        what = f"loss at {self.names[1]} less loss at {self.names[0]}, without sampling"
        return Found(bench.direction(name, what, mean_losses(bench, down) - mean_losses(bench, up)))


@dataclass(frozen=True)
class Barrier:
    r"""Losses on the way out of a solution less those at it, which decide where a solution A is only left, once.

    .. math:: s_j \propto \ell_j(\text{way out}) - \ell_j(A)

    favours A: by weight on samples that the way out fits worse. The way out is the first kept checkpoint of a pilot
    after the last one that was pure; both are of one run, and the mean is over all times that a pilot left. `sign`: -1
    where the study's "up" is away from A.
    """

    kind: Kind
    name_of_kind: str = "solution"
    sign: float = 1.0

    def read(self, name: str, bench: Bench) -> Found:
        """Raises `PatterningError` where no pilot left a solution; refused where one did, or two halves disagree."""
        left = self._left(bench)
        if not left:
            raise PatterningError(
                f"no pilot was seen to leave a solution of the kind {self.name_of_kind!r} (a pure checkpoint, and then "
                "one that is not, both kept): there is no way out to read"
            )
        each = np.stack([mean_losses(bench, [out]) - mean_losses(bench, [at]) for at, out in left])
        free, refused, reliability = bench.subject.free.ravel(), None, None
        if len(left) == 1:
            refused = "one way out was seen, so that its error is not known"
        else:
            reliability = step_up(rank_correlation(*(each[half::2].mean(0)[free] for half in (0, 1))))
            if not reliability >= bench.min_reliability:
                refused = f"the ways out differ: reliability {reliability:.2f} (at least {bench.min_reliability:g})"
        ways: list[Plain] = [f"{at.name}, then step {out.step}" for at, out in left]
        what = f"loss on the way out of {self.name_of_kind} less loss at it, {len(left)} times that a pilot left"
        s = self.sign * each.mean(0)
        return Found(bench.direction(name, what, s, refused=refused, reliability=reliability, left=ways))

    def _left(self, bench: Bench) -> list[tuple[Solution, Solution]]:
        """Checkpoints of a pilot that are pure, each with the next one, which is not."""
        found = list[tuple[Solution, Solution]]()
        for settings, runs in bench.pilots.items():
            pure = runs.curves[self.kind.measure] >= self.kind.at_least
            if self.kind.guard:
                pure &= runs.curves[self.kind.guard] >= self.kind.guard_at_least
            kept = np.isin(runs.steps, list(runs.kept))
            for run, place in zip(*np.nonzero(pure[:, :-1] & ~pure[:, 1:] & kept[:-1] & kept[1:]), strict=True):
                at, out = (bench.checkpoint(self.name_of_kind, settings, int(run), int(place) + i) for i in (0, 1))
                found.append((at, out))
        return found


def mean_losses(bench: Bench, solutions: Sequence[Solution]) -> Floats:
    """Loss of every sample (n,) in the mean over solutions, nats."""
    task, flat = bench.subject.flat, np.stack([solution.flat for solution in solutions])
    losses = evaluate(task.losses, torch.from_numpy(flat).to(bench.subject.device), len(task.base_weights))
    return losses.double().cpu().numpy().mean(0)


@dataclass(frozen=True)
class Around:
    """χ† of observables around solutions of one kind: `wanted` changes of some, others held.

    Changes are in units of each row's own size, so that signs and ratios count.
    """

    kind: Kind
    wanted: Mapping[str, float]
    sampling: Sampling
    loss_band: float
    hold: Sequence[str] = ()
    name_of_kind: str = "solution"

    def read(self, name: str, bench: Bench) -> Found:
        """Refused where the first row is unreliable around a solution."""
        subject, free = bench.subject, bench.subject.free.ravel()
        solutions = bench.solutions(self.name_of_kind, self.kind)
        key = ("around", self.kind, self.sampling)
        sampled: dict[str, Sampled] = bench.once(
            key,
            lambda: sample_around(
                subject, bench.pool, self.sampling, {one.name: one.flat for one in solutions}, self.loss_band
            ),
        )
        names = [*self.wanted, *self.hold]
        rows = [one.response.susceptibility for one in sampled.values()]
        picks = [rows[0].observables.index(observable) for observable in names]
        chi = np.mean([row.chi[picks] for row in rows], axis=0)
        noise = np.mean([row.half_difference()[picks] for row in rows], axis=0) / np.sqrt(len(rows))
        reliability = {one: reliability_of(part, free)[names[0]] for one, part in sampled.items()}
        low = [f"{one} {value:.2f}" for one, value in reliability.items() if not value >= bench.min_reliability]
        q = subject.samples.weight
        size = np.sqrt((np.where(free, q, 0.0) * chi**2).sum(1))
        target = np.array([*self.wanted.values(), *[0.0] * len(self.hold)]) * size
        solution = solve(chi, q, target, self.sampling.n_beta, noise=noise, free=free)
        held = f", {', '.join(self.hold)} held" if self.hold else ""
        asked = ", ".join(f"{'more' if value > 0 else 'less'} {name}" for name, value in self.wanted.items())
        refused = f"{names[0]} is too noisy: reliability {', '.join(low)}" if low else None
        facts = {
            "reliability": min(reliability.values()),
            "rank": solution.rank,
            "condition": solution.condition,
            "notes": [line for one in sampled.values() for line in one.warnings],
        }
        what = f"{asked}{held}, around {len(sampled)} {self.name_of_kind}"
        return Found(bench.direction(name, what, solution.s, refused=refused, **facts))


def _reliability(gap: SolutionGap, row: Row, free: np.ndarray) -> float:
    """Rank correlation over the free samples of the gap from the even and from the odd chains, stepped up to all."""

    def half(one: FourResponses, part: slice) -> Floats:
        posterior, free_energy = one.posterior_by_chain, one.free_energy_by_chain
        assert posterior is not None
        assert free_energy is not None
        entropic = free_energy - one.energy
        rows = {"llc-posterior": posterior, "entropic": entropic, "llc-total": posterior + entropic}
        return rows.get(row, free_energy)[part].mean(0)

    halves = []
    for start in (0, 1):
        part = slice(start, None, 2)
        sides = [np.mean([half(one, part) for one in side], axis=0) for side in (gap.a, gap.b)]
        halves.append(sides[1] - sides[0])
    return step_up(rank_correlation(halves[0][free], halves[1][free]))


def _counted(gap: SolutionGap) -> str:
    return f"{len(gap.b)} and {len(gap.a)}"


def _describe(gap: SolutionGap, solutions: Mapping[str, Solution], free: np.ndarray) -> Facts:
    """What a table shows of a gap."""
    rows = {
        "llc-posterior": gap.llc_posterior.values, "entropic": gap.entropic.values,
        "llc-total": gap.llc_total.values, "energy": gap.energy,
    }  # fmt: skip
    total = gap.free_energy.values[free]
    ranks = {name: rank_correlation(values[free], total) for name, values in rows.items()}
    error = gap.free_energy.standard_error[free]
    between = gap.between_solutions
    return {
        "rank_correlation_with_free_energy": ranks,
        "cosine_of_energy_and_free_energy": gap.cosine.value,
        "median_z": float(np.median(np.abs(total) / np.where(error > 0, error, np.inf))),
        "median_z_between_solutions": None
        if between is None
        else float(np.median(np.abs(total) / np.maximum(between[free], 1e-300))),
        "solutions": [
            {"name": name, "seed": one.seed, "step": one.step, **one.measures} for name, one in solutions.items()
        ],
        "coefficients": {
            name: [response.coefficient, response.coefficient_error]
            for name, response in zip(solutions, (*gap.a, *gap.b), strict=True)
        },
        "settings": {
            name: [response.localization, response.step_size]
            for name, response in zip(solutions, (*gap.a, *gap.b), strict=True)
        },
        "notes": list(gap.notes),
    }
