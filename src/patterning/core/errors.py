"""What a user is meant to see: what was wrong, where, and what to do."""

from typing import Any

import numpy as np


class PatterningError(ValueError):
    """Bad input or an impossible request, found before the expensive part.

    The command line prints the message as one sentence and exits with code 2.
    """


class PatterningWarning(UserWarning):
    """Something that a result depends on, and that its reader should know."""


def check_whole(name: str, value: Any, least: int, largest: int | None = None) -> None:
    """Raise `PatterningError` unless `value` is a whole number (Python's or numpy's) from `least` to `largest`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise PatterningError(f"{name} is {value!r}: it must be a whole number")
    if value < least:
        raise PatterningError(f"{name} is {value}: it must be at least {least}")
    if largest is not None and value > largest:
        raise PatterningError(f"{name} is {value}: it must be at most {largest}")
