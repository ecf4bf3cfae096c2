"""What is asked of the rows of χ: a change for each, 0 for those that are held; and whether it is to be expected."""

from collections.abc import Mapping, Sequence

import numpy as np

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
