"""The one rule for "steers", used by the code, the README and every page.

An arm *steers* a measure when, over paired seeds,

1. it differs from the unweighted arm, and
2. it differs from its own permuted control (the same weights dealt to other samples), in the same direction,

each interval excluding 0 at the level that allows for the number of directions tried (Bonferroni: 1 - 0.05 / tried),
and the change goes the way that was asked for. `verify` counts every measure that an arm was asked to move as one
direction tried; a study, whose claims are stated beforehand, counts the arms that compete for the same one. Where
nothing was asked, nothing can be obtained: the same two intervals then say "moved beyond permuted". Fewer than 6 pairs
are a look: the verdict says so, and is no evidence. Where all differences over seeds are equal to the last bit, there
is no error bar and nothing is claimed.
"""

from dataclasses import dataclass
from typing import Literal

from patterning.verification.effects import Effect

ENOUGH_PAIRS = 6
LEVEL = 0.95

Finding = Literal[
    "steers",
    "steers the other way",
    "moved beyond permuted",
    "moves, not shown beyond permuted",
    "no clear change",
    "a look",
    "no error bar",
]


@dataclass(frozen=True)
class Verdict:
    """What is found for one arm and measure, with the two effects it rests on, at the allowed-for level.

    `wanted`: the sign of the change that was asked for, 0 where none was. `held`: no change was asked for.
    """

    finding: Finding
    against_unweighted: Effect
    against_permuted: Effect | None
    tried: int
    wanted: float = 0.0
    held: bool = False

    @property
    def steers(self) -> bool:
        """Whether the arm steers, the way it was asked to."""
        return self.finding == "steers"

    def __str__(self) -> str:
        """One sentence."""
        base = f"against unweighted {_interval(self.against_unweighted)}"
        control = (
            f", against its permuted weights {_interval(self.against_permuted)}"
            if self.against_permuted
            else ", without a permuted control"
        )
        allowed = (
            f", {100 * self.against_unweighted.level:.4g} % intervals, {self.tried} tried" if self.tried > 1 else ""
        )
        against = (
            self.wanted * self.against_unweighted.difference < 0 and self.finding == "moves, not shown beyond permuted"
        )
        other = ", and the other way than was asked" if against else ""
        return f"{self.finding}{other}: {base}{control} ({self.against_unweighted.pairs} pairs{allowed})"


def level_for(tried: int) -> float:
    """The level of each interval when `tried` directions compete for a claim: 1 - 0.05 / tried."""
    return 1 - (1 - LEVEL) / max(tried, 1)


def judge(
    against_unweighted: Effect, against_permuted: Effect | None, *, tried: int = 1, wanted: float = 0.0
) -> Verdict:
    """Whether an arm steers a measure, by the one rule (docs/interpretation.md) and its two paired effects.

    `wanted`: the sign of the change that was asked for, 0 where none was. `tried`: the number of directions that
    competed. The effects must have been computed at `level_for(tried)`.
    """
    if against_unweighted.pairs < ENOUGH_PAIRS:
        return Verdict("a look", against_unweighted, against_permuted, tried, wanted)
    if any(effect is not None and without_width(effect) for effect in (against_unweighted, against_permuted)):
        return Verdict("no error bar", against_unweighted, against_permuted, tried, wanted)
    moved = against_unweighted.excludes_zero
    beyond = (
        against_permuted is not None
        and against_permuted.excludes_zero
        and against_permuted.difference * against_unweighted.difference > 0
    )
    if not moved:
        finding: Finding = "no clear change"
    elif not beyond:
        finding = "moves, not shown beyond permuted"
    elif wanted == 0:
        finding = "moved beyond permuted"
    else:
        finding = "steers" if wanted * against_unweighted.difference > 0 else "steers the other way"
    return Verdict(finding, against_unweighted, against_permuted, tried, wanted)


def without_width(effect: Effect) -> bool:
    """Whether an effect has no error bar: a difference that is the same, to the last bit, for every seed."""
    return effect.difference != 0 and effect.low == effect.high


def _interval(effect: Effect) -> str:
    return f"{effect.difference:+.3g} [{effect.low:+.3g}, {effect.high:+.3g}]"
