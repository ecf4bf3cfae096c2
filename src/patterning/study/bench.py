"""What readings work with: the subject, its unweighted pilot runs, the solutions among their checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError
from patterning.core.plain import Plain
from patterning.core.workers import Workers
from patterning.intervention.data_weights import Weights
from patterning.intervention.direction import Direction
from patterning.intervention.weights import standardise
from patterning.study.seeds import Seeds
from patterning.study.settings import Strength, Way
from patterning.study.subject import Parameters, Rho, Runs, Subject
from patterning.study.training import Planned, train_all

ROUND = "round "
"""What the names of pilots start with that were trained under weights (`study.iterated`)."""


@dataclass(frozen=True)
class Solution:
    """A checkpoint that is a solution: `flat` parameters (P,), of pilot `seed` after `step` steps, and its measures."""

    kind: str
    seed: int
    step: int
    flat: Parameters
    measures: Mapping[str, float]
    settings: str = ""

    @property
    def name(self) -> str:
        """For people and files; with the `settings` of the pilot, as one seed is trained under several."""
        return "-".join([self.kind, *self.settings.split(), str(self.seed), str(self.step)])


@dataclass(frozen=True)
class Kind:
    """Which checkpoints of the pilot runs count as a solution: `measure` is at least `at_least`, by the `most` best.

    `settings`: the unweighted pilots to look at, by the name of their settings; "" for all. `guard`: a measure that
    must be at least `guard_at_least` as well, such as the accuracy on the training law: a model that has learned
    nothing may agree with a rule on the strings that tell rules apart.
    """

    measure: str
    at_least: float
    most: int = 3
    settings: str = ""
    guard: str = ""
    guard_at_least: float = 0.99


@dataclass
class Bench:
    """The subject and its pilots: `pilots` by the name of their settings ("" are the subject's own).

    `min_reliability`: a row of χ under it is refused, unless `force`. `chosen`: the strength of each direction and way,
    once it is chosen. `round_seeds`: of pilots under weights, by their name.
    """

    subject: Subject
    pool: Workers
    seeds: Seeds
    pilots: Mapping[str, Runs]
    min_reliability: float = 0.5
    force: bool = False
    chosen: Mapping[tuple[str, Way], Strength] = field(default_factory=dict)
    round_seeds: Mapping[str, Sequence[int]] = field(default_factory=dict)
    _kept: dict[Any, Any] = field(default_factory=dict)

    def train(self, plan: Mapping[str, Planned], stage: str) -> dict[str, Runs]:
        """Runs of the subject under weights."""
        return train_all(self.subject, self.pool, plan, stage)

    def once(self, key: Any, compute: Any) -> Any:
        """`compute()`, or what it gave before: readings share samples."""
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def solutions(self, name: str, kind: Kind) -> list[Solution]:
        """The solutions of a kind among the pilots' checkpoints, the best of each run, best first.

        Raises `PatterningError` where there is none, with what was seen.
        """
        best, seen = self._best_of_runs(name, kind)
        pure = [solution for solution in best if solution.measures[kind.measure] >= kind.at_least]
        if not pure:
            guard = f", {kind.guard} at least {kind.guard_at_least}" if kind.guard else ""
            raise PatterningError(
                f"no checkpoint of the pilot runs is a solution of the kind {name!r} ({kind.measure} at least "
                f"{kind.at_least}{guard}): {'; '.join(seen)}"
            )
        return pure[: kind.most]

    def purest(self, name: str, kind: Kind) -> Solution:
        """The checkpoint that comes nearest to a kind; raises `PatterningError` where none passes its guard."""
        best, seen = self._best_of_runs(name, kind)
        if not best:
            raise PatterningError(f"no checkpoint has {kind.guard} of {kind.guard_at_least}: {'; '.join(seen)}")
        return best[0]

    def checkpoint(self, name: str, settings: str, run: int, place: int) -> Solution:
        """Checkpoint number `place` of pilot number `run` under `settings`, as a solution of the kind `name`."""
        runs = self.pilots[settings]
        step = int(runs.steps[place])
        measures = {key: float(curve[run, place]) for key, curve in runs.curves.items() if curve.ndim == 2}
        seed = self.seeds_of(settings)[run]
        return Solution(name, seed, step, runs.kept[step][run], measures, settings)

    def seeds_of(self, settings: str) -> Sequence[int]:
        """The seeds of the pilots under `settings`."""
        return self.round_seeds.get(settings, self.seeds.pilots)

    def _best_of_runs(self, name: str, kind: Kind) -> tuple[list[Solution], list[str]]:
        """The checkpoint of every run that comes nearest to a kind, best first; and what was seen, in words."""
        found, seen = list[Solution](), list[str]()
        for settings, runs in self.pilots.items():
            if kind.settings and settings != kind.settings and not settings.startswith(ROUND):
                continue
            values = runs.curves[kind.measure]
            if kind.guard:
                values = np.where(runs.curves[kind.guard] >= kind.guard_at_least, values, -np.inf)
            seen.append(f"{settings or 'pilots'}: best {values.max():.3f}")
            for r, row in enumerate(values):
                place = int(np.flatnonzero(row == row.max())[-1])
                if row[place] > -np.inf and int(runs.steps[place]) in runs.kept:
                    found.append(self.checkpoint(name, settings, r, place))
        return sorted(found, key=lambda one: (one.measures[kind.measure], one.step), reverse=True), seen

    def direction(
        self,
        name: str,
        what: str,
        s: Floats,
        *,
        refused: str | None = None,
        wanted: Mapping[str, float] | None = None,
        **facts: Plain,
    ) -> Direction:
        """A direction along s (n,), positive where weight moves the main outcome up; s is standardised."""
        subject = self.subject
        target = {subject.outcomes[0].measure: 1.0} if wanted is None else dict(wanted)
        scaled = s if refused else standardise(s.ravel(), subject.samples.weight, subject.free.ravel())
        return Direction(
            scaled.ravel(), target, {}, None if self.force else refused, subject.samples, subject.data,
            name=name, what=what, facts=facts,
        )  # fmt: skip


class Forecast(Protocol):
    """What a reading expects of any weights, before training."""

    def __call__(self, weights: Sequence[Rho]) -> Floats:
        """Expected change (arms, 3) of the outcome up, or share of runs: value, low and high."""
        ...


@dataclass(frozen=True)
class Found:
    """What a reading gives: a direction (its `refused` says why it is not used), and a forecast where it has one.

    The forecast is of the measure that the direction asks for: a change in units of the reading, or, `of_shares`, the
    share of runs for which a yes-or-no measure is true.
    """

    direction: Direction
    forecast: Forecast | None = None
    of_shares: bool = False

    @property
    def measure(self) -> str:
        """What it is about."""
        return next(iter(self.direction.wanted))


class Reading(Protocol):
    """A way to find which samples an outcome answers to."""

    def read(self, name: str, bench: Bench) -> Found:
        """Find it; what cannot be found raises `PatterningError`, and the study goes on without."""
        ...


def weights_of(subject: Subject, rho: Rho, **facts: Plain) -> Weights:
    """ρ as `Weights` of the subject's data."""
    data = subject.data
    return Weights(np.asarray(rho, dtype=np.float64), data.ids, subject.base_weights, subject.free, data.fingerprint,
                   facts)  # fmt: skip
