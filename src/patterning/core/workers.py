"""Run units of work on worker processes of one thread each, with progress; finished units are never run again.

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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import wait
from types import TracebackType
from typing import IO, Self, cast

from patterning.core.errors import PatterningError
from patterning.core.progress import Progress, listening, report_progress
from patterning.core.store import Arrays, RunFolder, Work
from patterning.core.worker import DONE, FAILED, NOTE, PROGRESS, read_frame, send_frame

__all__ = ["Progress", "Workers", "default_workers", "one_thread", "report_progress"]

START = """import sys
parent, sys.path[:], sys.argv[:] = eval(sys.argv[1])
from patterning.core.worker import serve
serve(parent)"""
"""What a worker process runs: it is given the process that started it, and that one's path and arguments."""
_log = logging.getLogger("patterning")


def default_workers() -> int:
    """One worker for each CPU this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool that computes units into a run folder. With one worker, units run in this process, on one thread.

    Use it as a context: it keeps other processes out of the folder, and leaving it ends its own. What cannot be sent to
    another process (an open file, a lock inside the user's loss) is computed in this one, and a note says so. Without
    POSIX's pipes and process groups (on Windows) all units are. A worker is a fresh Python with torch's defaults (type,
    device, precision) of this one; what else a script has changed in other modules it does not have.
    """

    def __init__(self, run: RunFolder, count: int, progress: Progress | None = None) -> None:
        """`count` processes at most; they start with the first unit."""
        self.run = run
        self.count = max(1, count) if os.name == "posix" and sys.executable else 1
        self.progress = progress or Progress()
        self._crew: list[_Process] = []
        self._open = ExitStack()
        self._locked = False
        self._noted = False

    def __enter__(self) -> Self:
        """Take the run folder; raises `PatterningError` where another process has it."""
        self._take_folder()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes at once: a finished unit is on the disk, and an unfinished one cannot be used."""
        self._end_processes()
        self._locked = False
        self._open.close()

    def compute(self, units: Sequence[Work], stage: str) -> list[Arrays]:
        """Results in the order of `units`. The first unit that fails ends the stage with its error.

        Raises `PatterningError` where a worker process dies.
        """
        self._take_folder()
        with one_thread():  # a key may be made of sums as well
            for unit in units:
                _ = unit.key
        results = {unit.key: arrays for unit in units if (arrays := self.run.load(unit)) is not None}
        self._compute_pending(units, set(results), stage)
        return [results[unit.key] if unit.key in results else self.run.compute(unit) for unit in units]

    def complete(self, units: Sequence[Work], stage: str) -> None:
        """As `compute`, of results that are too many to be held: each is on the disk afterwards (`self.run.load`)."""
        self._take_folder()
        with one_thread():
            done = {unit.key for unit in units if self.run.load(unit) is not None}
        self._compute_pending(units, done, stage)

    def _compute_pending(self, units: Sequence[Work], done: set[str], stage: str) -> None:
        pending = list({unit.key: unit for unit in units if unit.key not in done}.values())
        self.progress.start(stage, len(units), len(units) - len(pending))
        try:
            left = pending if self.count == 1 else self._compute_there(pending)
            for unit in left:
                self._compute_here(unit)
        except BaseException:
            self._end_processes()  # the others are still at work on units that nobody waits for
            raise
        finally:
            self.progress.finish()

    def _end_processes(self) -> None:
        crew, self._crew = self._crew, []
        for process in crew:
            process.end()

    def _take_folder(self) -> None:
        if not self._locked:
            self._open.enter_context(self.run.lock())
            self._locked = True
            self.run.create()

    def _compute_here(self, unit: Work) -> None:
        with one_thread(), listening(self.progress.within):
            self.run.compute(unit)
        self._finished(0.0)

    def _compute_there(self, pending: Sequence[Work]) -> list[Work]:
        """Compute the units on processes; returns those that cannot leave this one."""
        waiting, kept = list(pending), []
        missing = min(self.count, len(pending)) - len(self._crew)
        for _ in range(missing):
            self._crew.append(_Process())
        idle = list(self._crew)
        busy: dict[int, _Process] = {}
        while waiting or busy:
            while waiting and idle:
                unit = waiting.pop(0)
                frame = self._packed(unit)
                if frame is None:
                    kept.append(unit)
                    continue
                process = idle.pop()
                process.give(unit, frame)
                busy[process.descriptor] = process
            heard = wait(list(busy)) if busy else []  # waiting for no one would take for ever
            for descriptor in cast("list[int]", heard):
                unit = self._heard(busy, descriptor, idle)
                if unit is not None:
                    kept.append(unit)
        return kept

    def _heard(self, busy: "dict[int, _Process]", descriptor: int, idle: "list[_Process]") -> Work | None:
        """Take in one message of a process; returns its unit where it could not be unpacked there."""
        process = busy[descriptor]
        unit = process.hear()
        if unit is None:
            self.progress.within(_in_work(busy))
            return None
        del busy[descriptor]
        idle.append(process)
        if process.refused is not None:
            self._note_kept(unit, process.refused)
            return unit
        self._finished(_in_work(busy))
        return None

    def _packed(self, unit: Work) -> bytes | None:
        """The unit as bytes; None where a part of it cannot leave this process."""
        from patterning.core.shipping import dump

        try:
            return dump((self.run, unit))
        except Exception as error:  # pickling runs code of whatever the unit holds
            self._note_kept(unit, f"{type(error).__name__}: {' '.join(str(error).split())}")
            return None

    def _note_kept(self, unit: Work, why: str) -> None:
        if not self._noted:
            _log.warning(f"{unit.name} cannot be sent to a worker process ({why}): such work is done in this one")
        self._noted = True

    def _finished(self, in_work: float) -> None:
        self.progress.within(in_work)
        self.progress.advance()


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
            raise _unpacked(*rest)
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


def _unpacked(data: bytes, sentence: str | None, trace: str) -> BaseException:
    """The error of a unit as it is raised here: with the worker's traceback, or a sentence about the user's code."""
    if sentence is not None:
        return PatterningError(sentence)
    error = pickle.loads(data)
    error.add_note(f"\nin a worker process:\n{trace}")
    return error


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread of torch, as workers do: a sum over two threads has other bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
