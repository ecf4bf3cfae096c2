"""From outcomes by arm and seed to evidence: paired effects, the permuted control, and a verdict by the one rule."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from patterning.core.arrays import Floats
from patterning.core.plain import Facts
from patterning.verification.arms import Arm
from patterning.verification.effects import Effect, paired_effect
from patterning.verification.evidence import Evidence
from patterning.verification.proportions import paired_share_difference
from patterning.verification.rule import Verdict, judge, level_for

FEWEST = 3
"""Fewer pairs have no interval."""


@dataclass(frozen=True)
class Range:
    """What a measure can be: `low` to `high`, or yes or no (1 or 0)."""

    low: float = -np.inf
    high: float = np.inf
    yes_or_no: bool = False


@dataclass(frozen=True)
class ArmRuns:
    """Outcomes of one set of weights: `values` by measure (seeds,), the first seeds of those of the unweighted arm.

    `kind`: base (unweighted, the first arm), arm, control or extra. `control`: name of the arm of its permuted weights.
    `wanted`: the sign of the change that was asked for, by measure. `held`: measures that were asked not to change.
    """

    name: str
    kind: str
    values: Mapping[str, Floats]
    control: str | None = None
    wanted: Mapping[str, float] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)
    held: Collection[str] = ()


def assemble(
    arms: Sequence[ArmRuns], ranges: Mapping[str, Range], seeds: Sequence[int], *, judge_all: bool = False
) -> Evidence:
    """Evidence of `arms`, the unweighted one first, on the measures named in `ranges`.

    An arm gets a verdict for each measure that it was asked to move, at the level that allows for as many arms as were
    asked for the same. With `judge_all` it gets one for every measure, and all have the level that allows for all that
    was asked: arms × measures that they were asked to move.
    """
    named = {arm.name: arm for arm in arms}
    base = arms[0]
    asked = [float(np.sign(arm.wanted.get(name, 0.0))) for arm in arms if arm.kind == "arm" for name in ranges]
    in_all = max(sum(sign != 0 for sign in asked), 1)
    table, verdicts = [], dict[tuple[str, str], Verdict]()
    for arm in arms:
        control = named.get(arm.control or "")
        effects, beyond = dict[str, Effect](), dict[str, Effect]()
        for name, span in ranges.items():
            if arm is not base:
                _put(effects, name, difference(arm.values[name], base.values[name], span))
            if control is not None:
                _put(beyond, name, difference(arm.values[name], control.values[name], span))
            sign = float(np.sign(arm.wanted.get(name, 0.0)))
            if arm.kind == "arm" and (sign or judge_all):
                same = sum(o.kind == "arm" and np.sign(o.wanted.get(name, 0.0)) == sign for o in arms)
                tried = in_all if judge_all else same
                level = level_for(tried)
                against = difference(arm.values[name], base.values[name], span, level)
                strict = None if control is None else difference(arm.values[name], control.values[name], span, level)
                if against is not None:
                    verdict = judge(against, strict, tried=tried, wanted=sign)
                    verdicts[arm.name, name] = replace(verdict, held=not sign and name in arm.held)
        table.append(Arm(arm.name, arm.kind, arm.values, effects, beyond, arm.facts))
    yes_or_no = {name: span.yes_or_no for name, span in ranges.items()}
    return Evidence(tuple(ranges), yes_or_no, tuple(int(seed) for seed in seeds), tuple(table), verdicts)


def difference(arm: Floats, baseline: Floats, span: Range, level: float = 0.95) -> Effect | None:
    """The paired difference over the seeds that both have, with an interval that stays in what the range allows.

    None for fewer than 3 pairs.
    """
    pairs = min(len(arm), len(baseline))
    if pairs < FEWEST:
        return None
    mine, other = arm[:pairs], baseline[:pairs]
    if span.yes_or_no:
        return paired_share_difference(mine > 0.5, other > 0.5, level=level)
    effect = paired_effect(mine, other, level=level)
    # the mean of the arm lies in the range, so the mean difference cannot leave it, less the baseline's mean
    least, most = span.low - other.mean(), span.high - other.mean()
    low, high = float(np.clip(effect.low, least, most)), float(np.clip(effect.high, least, most))
    return Effect(effect.difference, low, high, effect.pairs, level)


def _put(effects: dict[str, Effect], name: str, effect: Effect | None) -> None:
    if effect is not None:
        effects[name] = effect
