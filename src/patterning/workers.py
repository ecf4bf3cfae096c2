"""Run units of work on worker processes of one thread each, with progress; finished units are never run again.

For many small models on a CPU, several one-thread processes beat one process of several threads.
"""

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from types import TracebackType
from typing import Self

import torch

from patterning.store import Arrays, RunFolder, Unit


def default_workers() -> int:
    """One worker for each CPU this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool that computes units into a run folder. With one worker, units run in this process."""

    def __init__(self, run: RunFolder, count: int, progress: "Progress | None" = None) -> None:
        """`count` processes; they start with the first unit."""
        self.run = run
        self.count = max(1, count)
        self.progress = progress
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Use as a context: leaving it ends the processes."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes; after an error, without waiting for what is queued."""
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
            if kind is not None:
                for process in list((self._pool._processes or {}).values()):
                    process.terminate()

    def compute(self, units: Sequence[Unit], stage: str) -> list[Arrays]:
        """Results in the order of `units`. The first unit that fails ends the stage with its error."""
        pending = [unit for unit in units if self.run.load(unit) is None]
        if self.progress is not None:
            self.progress.start(stage, len(units), len(units) - len(pending))
        try:
            self._compute(pending)
        finally:
            if self.progress is not None:
                self.progress.finish()
        return [self.run.compute(unit) for unit in units]

    def _compute(self, pending: Sequence[Unit]) -> None:
        if self.count == 1:
            for unit in pending:
                self.run.compute(unit)
                self._advance()
        elif pending:
            if self._pool is None:
                # spawn: a forked child of a process that has used torch threads can hang.
                self._pool = ProcessPoolExecutor(
                    self.count, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(),)
                )
            futures = {self._pool.submit(_compute, self.run, unit) for unit in pending}
            while futures:
                done, futures = wait(futures, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    self._advance()

    def _advance(self) -> None:
        if self.progress is not None:
            self.progress.advance()


class Progress:
    """What `Workers` tells of its progress; the command line shows it as a bar, a library call need not."""

    def start(self, stage: str, total: int, done: int) -> None:
        """A stage of `total` units begins, `done` of them found on disk."""

    def advance(self) -> None:
        """One more unit is done."""

    def finish(self) -> None:
        """The stage is over."""


def _compute(run: RunFolder, unit: Unit) -> None:
    run.compute(unit)


def _start_worker(parent: int) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, args=(parent,), daemon=True).start()


def _leave_with_parent(parent: int) -> None:
    """A worker whose parent was killed must not go on alone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
