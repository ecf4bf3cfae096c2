"""Ctrl-C and `kill`: the first asks the program to stop, the second does not ask.

Whatever a run has finished is whole on the disk at any moment, so a stop loses only what is in work.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

RESUMES = "stopped: the same command goes on from here"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 0.5
"""Seconds after which another signal is a second one."""


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
    """Inside this context SIGINT and SIGTERM raise `Stopped`; another one, half a second later, ends the process.

    The first waits for what is computed outside of Python at the moment, the second does not. A signal that the shell
    had made ignored, as SIGINT is for a job in the background of a script, stays so. Threads other than the first
    cannot ask for signals: there this does nothing.
    """
    first = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS if first}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    with _watch() if before else nullcontext():
        for number in before:
            signal.signal(number, _Ask())
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Ask:
    """A handler that raises `Stopped`, once: a second signal is the watcher's."""

    asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        if not self.asked:
            self.asked = True
            raise Stopped(number)


@contextmanager
def _watch() -> Iterator[None]:
    """A thread that hears of signals even while the first thread is busy outside of Python."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_leave_at_second, args=(reading,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)


def _leave_at_second(reading: int) -> None:
    """End the process at the second signal; ones that come at once are the same, sent by a shell as well, say."""
    asked: float | None = None
    while numbers := os.read(reading, 1):
        if numbers[0] not in SIGNALS:
            continue
        now = time.monotonic()
        if asked is not None and now - asked > PATIENCE:
            _show_cursor()
            os._exit(128 + numbers[0])
        asked = now if asked is None else asked
    os.close(reading)


def leave(status: int) -> None:
    """End the process now, without waiting for threads or for what is registered to be done at exit."""
    _show_cursor()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, or its reader is gone
            continue
    os._exit(status)


def _show_cursor() -> None:
    """A bar may have hidden it."""
    if os.isatty(2):
        os.write(2, b"\x1b[?25h")
