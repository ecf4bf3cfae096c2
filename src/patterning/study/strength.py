"""How strongly to weight along each direction: chosen on tuning seeds, which serve no claim."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from patterning.intervention.data_weights import Weights
from patterning.intervention.direction import Direction
from patterning.intervention.weights import summarise
from patterning.study.bench import Bench
from patterning.study.settings import SIGN, Strength, StudySettings, Way
from patterning.study.training import Planned, unweighted


@dataclass(frozen=True)
class Tried:
    """What a strength did on the tuning seeds: mean change of the outcome, and the guarded measure (NaN without one).

    `standard_error` of the change (NaN for a single seed); `effective_sample_size`; `keeps`: whether the guarded
    measure was left alone enough; `chosen`.
    """

    direction: str
    way: Way
    strength: Strength
    change: float
    standard_error: float
    guard: float
    keeps: bool
    effective_sample_size: float
    chosen: bool = False


Chosen = Mapping[tuple[str, Way], Strength]


def weigh(bench: Bench, direction: Direction, way: Way, strength: Strength) -> Weights:
    """Weights along a direction, up or down, within the subject's strata."""
    asked = direction if way == "up" else direction.reversed()
    subject = bench.subject
    return asked.weights(
        strength.alpha, strength.policy, free=subject.free.ravel(), within=subject.strata, force=bench.force
    )


def choose_strengths(
    config: StudySettings, bench: Bench, directions: Mapping[str, Direction]
) -> tuple[list[Tried], Chosen]:
    """Every candidate of every direction, tried both ways; and the choice, by direction and way.

    Among candidates that leave the guarded measure alone, the one that moves the outcome most the way that is asked
    for; with `config.together`, the one that parts the two ways most. Where none does, the one that leaves it alone
    best. A direction of one candidate is not tried.
    """
    settled = {name: config.candidates(name)[0] for name in directions if len(config.candidates(name)) == 1}
    chosen: dict[tuple[str, Way], Strength] = {(name, way): settled[name] for name in settled for way in config.ways}
    open_ones = {name: direction for name, direction in directions.items() if name not in settled}
    if not open_ones:
        return [], chosen
    subject, seeds = bench.subject, bench.seeds.tuning
    plan = {"tuning-unweighted": Planned.alike(unweighted(subject), seeds)}
    keys: list[tuple[str, Way, Strength]] = [
        (name, way, strength) for name in open_ones for strength in config.candidates(name) for way in config.ways
    ]
    weights = [weigh(bench, open_ones[name], way, strength) for name, way, strength in keys]
    for (name, way, strength), own in zip(keys, weights, strict=True):
        plan[_label(name, way, strength)] = Planned.alike(own.rho, seeds)
    runs = bench.train(plan, "strength, on tuning seeds")
    measure, guarded = subject.outcomes[0].measure, subject.guarded
    base = runs["tuning-unweighted"].measures
    tried = []
    for (name, way, strength), own in zip(keys, weights, strict=True):
        mine = runs[_label(name, way, strength)].measures
        change = mine[measure] - base[measure]
        guard = float(mine[guarded].mean()) if guarded else float("nan")
        keeps = subject.keeps(way, guard, float(base[guarded].mean())) if guarded else True
        error = float(change.std(ddof=1) / np.sqrt(len(change))) if len(change) > 1 else float("nan")
        size = summarise(own.rho.ravel(), own.base_weights.ravel(), own.free.ravel()).effective_sample_size
        tried.append(Tried(name, way, strength, float(change.mean()), error, guard, keeps, size))
    for name in open_ones:
        rows = [row for row in tried if row.direction == name]
        chosen |= _choose(config, name, rows, lambda row: subject.guard_score(row.guard, float(base[guarded].mean())))
    marked = [Tried(**{**vars(row), "chosen": chosen[row.direction, row.way] == row.strength}) for row in tried]
    return marked, chosen


def _choose(
    config: StudySettings, name: str, rows: Sequence[Tried], guard_score: Callable[[Tried], float]
) -> dict[tuple[str, Way], Strength]:
    candidates = config.candidates(name)

    def worth(strength: Strength, ways: tuple[Way, ...]) -> tuple[bool, float]:
        own = [row for row in rows if row.strength == strength and row.way in ways]
        if all(row.keeps for row in own):
            return True, sum(SIGN[row.way] * row.change for row in own)
        return False, min(guard_score(row) for row in own)

    together: list[tuple[Way, ...]] = [config.ways] if config.together else [(way,) for way in config.ways]
    return {
        (name, way): max(candidates, key=lambda strength, ways=ways: worth(strength, ways))
        for ways in together
        for way in ways
    }


def _label(name: str, way: Way, strength: Strength) -> str:
    return f"tuning-{name}-{way}-{strength.policy}-{strength.alpha:g}"
