"""Lines for a person: what a measurement will take, and what was found on the way."""

import sys


class Say:
    """Prints a line for a person on standard error, or nothing."""

    def __init__(self, loud: bool) -> None:
        self._loud = loud

    def __call__(self, line: str) -> None:
        """Print it."""
        if self._loud and line:
            print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """In the unit that people would use."""
    if seconds < 1:
        return "a second"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
