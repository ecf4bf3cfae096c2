"""How far a long computation is: from inside a unit of work, across processes, to whoever shows it.

Code that runs for minutes calls `report_progress(fraction)`; nobody need listen. `Progress` is what a pool of workers
tells: stages, finished units, and how much of the units in work is done. `patterning.core.terminal` shows it.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERVAL = 0.2
"""Seconds between two reports that are passed on: a loop may call `report_progress` at every step."""


class Progress:
    """What `Workers` tells of its progress; the command line shows it as a bar, a library call need not."""

    def start(self, stage: str, total: int, done: int) -> None:
        """A stage of `total` units begins, `done` of them found on disk."""

    def advance(self) -> None:
        """One more unit is done."""

    def within(self, units: float) -> None:
        """The units in work are done by this much in sum: 1.5 where one is at 0.7 and another at 0.8."""

    def where(self, words: str) -> None:
        """Where the units are computed, and how fast, in a few words; told anew while a stage is in work."""

    def finish(self) -> None:
        """The stage is over."""


class _Listener:
    """Who hears of progress in this process; calls that come too soon after the last are dropped."""

    def __init__(self, hear: Callable[[float], None]) -> None:
        self.hear = hear
        self.process = os.getpid()
        self.due = 0.0
        self.lock = threading.Lock()

    def report(self, fraction: float) -> None:
        if os.getpid() != self.process:
            return  # a forked child has its parent's listener, and no business with it
        now = time.monotonic()
        with self.lock:
            if now < self.due and fraction < 1:
                return
            self.due = now + INTERVAL
        self.hear(fraction)


_listeners: list[_Listener] = []
_portions: list[tuple[float, float]] = []


def report_progress(fraction: float) -> None:
    """Say that this `fraction` (0 to 1) of the unit of work that is being computed is done.

    In a worker process it goes to the process that started it, at most five times a second; with one worker, straight
    to the bar. Where nobody listens it costs a look-up. It may be called from any thread, at every step; it never
    raises, and a value that is no number is left out.
    """
    if not _listeners:
        return
    try:
        value = float(fraction)
        if math.isfinite(value):
            value = min(max(value, 0.0), 1.0)
            for first, last in reversed(_portions):
                value = first + (last - first) * value
            _listeners[-1].report(value)
    except Exception:  # a bar that cannot be drawn must not cost the result
        return


@contextmanager
def portion(first: float, last: float) -> Iterator[None]:
    """Inside this context a fraction of 0 means `first` and 1 means `last` of what is around it; may be nested."""
    _portions.append((first, last))
    try:
        yield
    finally:
        _portions.pop()


@contextmanager
def listening(hear: Callable[[float], None]) -> Iterator[None]:
    """Inside this context `report_progress` of this process calls `hear`."""
    listener = _Listener(hear)
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
