"""The arms of a study: every set of weights that is trained on the claim's seeds, and what each is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from patterning.core.plain import Facts
from patterning.intervention.data_weights import Weights
from patterning.intervention.direction import Direction
from patterning.study.bench import Bench, weights_of
from patterning.study.settings import SIGN, StudySettings, Way
from patterning.study.strength import Chosen, weigh
from patterning.study.subject import Rho
from patterning.study.training import Planned, unweighted
from patterning.verification.arms import UNWEIGHTED, permuted_name

ASKED = ", asked"
"""Follows the name of an arm whose direction is called as the measure that it asks for."""


@dataclass(frozen=True)
class Rival:
    """Weights to compare with that no reading made: `rho` for all seeds, or one for each (`by_seed`).

    `kind`: "heuristic", "control" (weights that mean nothing), or what else a table shall say; `way`: what it is
    supposed to do, "" for nothing. `seeds`: how many; None: as many as side arms have.
    """

    rho: Rho | None = None
    by_seed: tuple[Rho, ...] = ()
    kind: str = "heuristic"
    way: Way | str = ""
    seeds: int | None = None
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedArm:
    """An arm to be trained. `wanted`: the sign of the change asked for, by measure; `controls`: its permuted arms."""

    name: str
    kind: str
    planned: Planned
    shown: Rho | None
    controls: tuple[str, ...] = ()
    wanted: Mapping[str, float] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)


def plan_arms(
    config: StudySettings,
    bench: Bench,
    directions: Mapping[str, Direction],
    chosen: Chosen,
    rivals: Mapping[str, Rival],
) -> list[PlannedArm]:
    """Unweighted; each direction each way, with its permuted weights; the rivals."""
    subject, claims = bench.subject, bench.seeds.claims
    side = claims[: config.side_seeds or len(claims)]
    plain = unweighted(subject)
    arms = [PlannedArm(UNWEIGHTED, "base", Planned.alike(plain, claims), plain)]
    lead = next(iter(directions), None)
    for name, direction in directions.items():
        seeds = claims if name == lead else side
        for way in config.ways:
            weights = weigh(bench, direction, way, chosen[name, way])
            label = arm_name(bench, name, way, direction)
            has_control = config.permuted is None or name in config.permuted
            wanted = {measure: SIGN[way] * sign for measure, sign in direction.wanted.items()}
            facts = {"strength": str(chosen[name, way]), "effective_sample_size": _size(weights)}
            dealt = sum(arm.kind == "control" for arm in arms)
            controls = permuted_arms(config, bench, weights, label, seeds, dealt) if has_control else []
            names = tuple(arm.name for arm in controls)
            planned = Planned.alike(weights.rho, seeds)
            arms.append(PlannedArm(label, "arm", planned, weights.rho, names, wanted, facts))
            arms += [replace(arm, facts=facts) for arm in controls]
    for name, rival in rivals.items():
        own = claims[: rival.seeds] if rival.seeds else side
        rhos = list(rival.by_seed[: len(own)]) if rival.by_seed else [rival.rho] * len(own)
        facts = {"effective_sample_size": _size(weights_of(subject, rhos[0])), **rival.facts}  # pyright: ignore[reportArgumentType]
        shown = None if rival.by_seed else rival.rho
        wanted = {subject.outcomes[0].measure: SIGN[rival.way]} if rival.way in SIGN else {}
        arms.append(PlannedArm(name, rival.kind, Planned(rhos, own), shown, wanted=wanted, facts=facts))  # pyright: ignore[reportArgumentType]
    return arms


def permuted_arms(
    config: StudySettings, bench: Bench, weights: Weights, label: str, seeds: Sequence[int], dealt: int
) -> list[PlannedArm]:
    """The same weights on other samples: dealt anew for each seed, or in `permuted_draws` that each serve all seeds.

    `dealt`: controls that there are already, so that every draw has a seed of its own.
    """
    name = permuted_name(label.removesuffix(ASKED))
    if not config.permuted_draws:
        return [PlannedArm(name, "control", Planned([_dealt(bench, weights, seed) for seed in seeds], seeds), None)]
    rhos = [_dealt(bench, weights, dealt + draw) for draw in range(config.permuted_draws)]
    return [
        PlannedArm(f"{name}, draw {draw + 1}", "control", Planned.alike(rho, seeds), rho)
        for draw, rho in enumerate(rhos)
    ]


def arm_name(bench: Bench, direction: str, way: Way, asked: Direction) -> str:
    """For tables: the direction, and what it asks for in the outcome's words."""
    measure = next(iter(asked.wanted))
    outcome = next(one for one in bench.subject.outcomes if one.measure == measure)
    sign = SIGN[way] * asked.wanted[measure]
    if sign > 0 and direction == measure:
        return f"{direction}{ASKED}"
    return f"{direction} → {outcome.up if sign > 0 else outcome.down}"


def _dealt(bench: Bench, weights: Weights, seed: int) -> Rho:
    """The same weights on other samples, within the strata."""
    return weights.permuted(seed, within=bench.subject.permuted_within).rho


def _size(weights: Weights) -> float:
    return weights.summary().effective_sample_size
