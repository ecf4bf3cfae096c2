"""Local worker processes of one thread each, fed with units of work through pipes.

For many small models on a CPU, several one-thread processes beat one process of several threads. The pool is its own,
not concurrent.futures': that one cannot say which unit a process died in, has no way for a fraction of a unit to come
back, imports the caller's `__main__` again in each worker, and waits for its processes when the program is stopped.
"""

import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import IO, Any, cast

from patterning.core.errors import PatterningError
from patterning.core.progress import Progress
from patterning.core.store import RunFolder, Work
from patterning.core.worker import DONE, FAILED, NOTE, PROGRESS, raised, read_frame, send_frame

START = """import sys
parent, sys.path[:], sys.argv[:] = eval(sys.argv[1])
from patterning.core.worker import serve
serve(parent)"""
"""What a worker process runs: it is given the process that started it, and that one's path and arguments."""
_log = logging.getLogger("patterning")


class KeptHere:
    """Says once which unit cannot be sent to another process, and why."""

    def __init__(self) -> None:
        self.noted = False

    def packed(self, unit: Work, value: object, **options: Any) -> Any:
        """`value` as `shipping.dump` makes it; None, with the note, where a part of it cannot leave this process."""
        from patterning.core.shipping import dump

        try:
            return dump(value, **options)
        except Exception as error:  # pickling runs code of whatever the unit holds
            self.note(unit, f"{type(error).__name__}: {' '.join(str(error).split())}")
            return None

    def note(self, unit: Work, why: str) -> None:
        """The note, the first time."""
        if not self.noted:
            _log.warning(f"{unit.name} cannot be sent to a worker process ({why}): such work is done in this one")
        self.noted = True


class ProcessSession:
    """Worker processes, at most `count`: they start with the first unit that needs them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.crew: list[_Process] = []
        self.kept = KeptHere()

    def compute(self, run: RunFolder, units: Sequence[Work], progress: Progress) -> list[Work]:
        """Compute and store the units; returns those that cannot leave this process."""
        waiting, kept = list(units), []
        for _ in range(min(self.count, len(units)) - len(self.crew)):
            self.crew.append(_Process())
        idle = list(self.crew)
        busy: dict[int, _Process] = {}
        while waiting or busy:
            while waiting and idle:
                unit = waiting.pop(0)
                frame = self.kept.packed(unit, (run, unit))
                if frame is None:
                    kept.append(unit)
                    continue
                process = idle.pop()
                process.give(unit, frame)
                busy[process.descriptor] = process
            heard = wait(list(busy)) if busy else []  # waiting for no one would take for ever
            for descriptor in cast("list[int]", heard):
                unit = self._heard(busy, descriptor, idle, progress)
                if unit is not None:
                    kept.append(unit)
        return kept

    def close(self) -> None:
        """End the processes at once: a finished unit is on the disk, and an unfinished one cannot be used."""
        crew, self.crew = self.crew, []
        for process in crew:
            process.end()

    def _heard(
        self, busy: "dict[int, _Process]", descriptor: int, idle: "list[_Process]", progress: Progress
    ) -> Work | None:
        """Take in one message of a process; returns its unit where it could not be unpacked there."""
        process = busy[descriptor]
        unit = process.hear()
        if unit is None:
            progress.within(_in_work(busy))
            return None
        del busy[descriptor]
        idle.append(process)
        if process.refused is not None:
            self.kept.note(unit, process.refused)
            return unit
        progress.within(_in_work(busy))
        progress.advance()
        return None


class _Process:
    """A worker process, seen from its parent: one unit at a time goes in, and word of it comes out.

    It has a session of its own, so that Ctrl-C reaches the parent alone, which then ends it.
    """

    def __init__(self) -> None:
        origin = (os.getpid(), [entry for entry in sys.path if isinstance(entry, str)], list(sys.argv))
        line = [sys.executable, "-P", "-c", START, repr(origin)]
        try:
            self.process = subprocess.Popen(
                line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
            )
        except OSError as error:
            raise PatterningError(f"no worker process could be started ({error}): use fewer --workers") from None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.inbox: IO[bytes] = self.process.stdin
        self.outbox: IO[bytes] = self.process.stdout
        self.descriptor = self.outbox.fileno()
        self.unit: Work | None = None
        self.fraction = 0.0
        self.refused: str | None = None

    def give(self, unit: Work, frame: bytes) -> None:
        """Start a unit."""
        self.unit, self.fraction, self.refused = unit, 0.0, None
        try:
            send_frame(self.inbox, frame)
        except OSError:
            raise self._death() from None

    def hear(self) -> Work | None:
        """Read one message; returns the unit where it is over. `refused`: why, where the worker could not unpack it."""
        data = read_frame(self.outbox)
        if data is None:
            raise self._death()
        word, *rest = pickle.loads(data)
        if word == PROGRESS:
            self.fraction = rest[0]
            return None
        if word == NOTE:
            _log.warning(rest[0])
            return None
        if word == FAILED:
            raise raised(rest, "in a worker process")
        self.refused = None if word == DONE else rest[0]
        unit, self.unit, self.fraction = self.unit, None, 0.0
        return unit

    def end(self) -> None:
        """Kill it, with what it may have started."""
        if self.process.poll() is None:  # else its number may be another's by now
            with suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pipe in (self.inbox, self.outbox):
            with suppress(OSError):
                pipe.close()

    def _death(self) -> PatterningError:
        code = self.process.wait()
        if code == -signal.SIGKILL:
            how = "was killed, most often because memory ran out"
        elif code < 0:
            how = f"died of {signal.Signals(-code).name}"
        else:
            how = f"left with exit code {code}"
        name = self.unit.name if self.unit is not None else "its start"
        return PatterningError(
            f"a worker process {how}, in {name}: give the same command again, with fewer --workers if memory is short; "
            "what is finished is kept"
        )


def _in_work(busy: dict[int, _Process]) -> float:
    """What is done of the units in work, in sum."""
    return sum(process.fraction for process in busy.values())
