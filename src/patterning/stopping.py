"""Ctrl-C and `kill`: the first asks the program to stop, the second does not ask.

Whatever a run has finished is whole on the disk at any moment, so a stop loses only what is in work.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RESUMES = "stopped: the same command goes on from here"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h"


class Stopped(BaseException):
    """The program was asked to stop by signal `number`; no `except Exception` on the way catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(RESUMES)
        self.number = number

    @property
    def status(self) -> int:
        """What a shell reports of a program that died of the signal: 130 for Ctrl-C, 143 for `kill`."""
        return 128 + self.number


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside this context SIGINT and SIGTERM raise `Stopped`; a second one ends the process on the spot.

    A signal that the shell had made ignored, as SIGINT is for a job in the background of a script, stays so. Threads
    other than the first cannot ask for signals: there this does nothing.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        del frame
        if asked:
            leave(128 + number)
        asked = True
        raise Stopped(number)

    first = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS if first}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(status: int) -> None:
    """End the process now, without waiting for threads or for what is registered to be done at exit."""
    if os.isatty(2):
        os.write(2, _SHOW_CURSOR)  # a bar may have hidden it
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError, RuntimeError):  # closed, its reader gone, or in the middle of it
            continue
    os._exit(status)
