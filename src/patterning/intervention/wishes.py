"""What is asked of the rows of χ: a change for each, 0 for those that are held; and whether it is to be expected."""

from collections.abc import Mapping, Sequence

import numpy as np

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError
from patterning.intervention.change import Change


def wished(names: Sequence[str], wanted: Mapping[str, float], hold: Sequence[str]) -> dict[str, float]:
    """The wanted change of each row that is asked for or held, 0 for these; raises `PatterningError` for no wish."""
    if not isinstance(wanted, Mapping):
        raise PatterningError(f"wanted is {wanted!r}: give a change for each row, {{{names[0]!r}: -1}}")
    hold = [hold] if isinstance(hold, str) else list(hold)
    for name in (*wanted, *hold):
        if name not in names:
            raise PatterningError(f"χ has no row {name!r}: it has {', '.join(names)}")
    if both := set(wanted) & set(hold):
        raise PatterningError(f"{', '.join(sorted(both))}: asked for and held at the same time")
    for name, value in wanted.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise PatterningError(f"the wanted change of {name!r} is {value!r}: it must be a number, +1 or -1 say")
    target = {name: float(value) for name, value in wanted.items()} | dict.fromkeys(hold, 0.0)
    if not all(np.isfinite(value) for value in target.values()) or not any(target.values()):
        raise PatterningError("the wanted change must be finite and not 0 for some row")
    return target


NOT_HELD = 0.5
"""A held row that moves at least so much as one that was asked for, each in units of its own size, is not held."""


def not_held(target: Mapping[str, float], moved: Floats, spread: Floats) -> str | None:
    """Why no weights can hold what was to be held; None where they can.

    By χ of the rows in `target` itself: how much the direction `moved` each (k,), and the `spread` (k,) of each over
    the samples that may move. Where two rows of χ are alike, none moves without the other.
    """
    moves = np.abs(moved) / np.where(spread > 0, spread, np.inf)
    asked = max(move for move, value in zip(moves, target.values(), strict=True) if value)
    for name, value, move in zip(target, target.values(), moves, strict=True):
        if not value and move > NOT_HELD * asked:
            return (
                f"{name} cannot be held: the samples that move what was asked for move it as well "
                f"({move / asked:.0%} as much, each in units of its own spread)"
            )
    return None


def unconfirmed(target: Mapping[str, float], predicted: Mapping[str, Change]) -> str:
    """Rows whose interval does not lie on the side that was asked for, in words."""
    return ", ".join(
        f"{name} is expected at {predicted[name]} for each unit of strength, which "
        f"{'includes 0' if predicted[name].low <= 0 <= predicted[name].high else 'is the other way'}"
        for name, value in target.items()
        if value and not min(end * value for end in predicted[name].ends()) > 0
    )


def in_words(name: str, value: float) -> str:
    """What is asked of a row."""
    return f"{name} held" if value == 0 else f"{'higher' if value > 0 else 'lower'} {name} ({value:+g})"


def plan_in_words(wanted: Mapping[str, float], predicted: Mapping[str, Change], refused: str | None) -> str:
    """What a direction asks for, and what is expected of it, or why it was refused."""
    asked = ", ".join(in_words(name, value) for name, value in wanted.items())
    if refused:
        return f"{asked}: refused, {refused}"
    expected = "; ".join(f"{name} {change}" for name, change in predicted.items())
    return f"{asked}. Expected for each unit of strength, by linear response: {expected}"
