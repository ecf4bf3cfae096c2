"""Run units of work into a run folder, with progress, where an executor says; finished units are never run again.

`core.executors` says where: in this process, on processes of this machine, on the machines of a Ray cluster.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from patterning.core.executors import Executor, Session, ThisProcess, executor_of
from patterning.core.progress import Progress, report_progress
from patterning.core.store import Arrays, RunFolder, Work
from patterning.core.threads import default_workers, one_thread

__all__ = ["Progress", "Workers", "default_workers", "one_thread", "report_progress"]


class Workers:
    """Computes units into a run folder: with one worker in this process, with several on processes, or by an executor.

    Use it as a context: it keeps other processes out of the folder, and leaving it ends its own. What cannot be sent to
    another process (an open file, a lock inside the user's loss) is computed in this one, and a note says so. A worker
    is a fresh Python with torch's defaults (type, device, precision) of this one; what else a script has changed in
    other modules it does not have.
    """

    def __init__(
        self,
        run: RunFolder,
        executor: Executor | int,
        progress: Progress | None = None,
        parts: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        """`executor`: a number means that many processes of this machine, at most; they start with the first unit.

        `parts`: what the units depend on, by name. With these, a folder that holds finished units of which none fits
        says which part differs (`core.dependencies`).
        """
        self._parts = parts
        self._to_keep: Mapping[str, str] | None = None
        self.run = run
        self.executor = executor_of(executor)
        self.progress = progress or Progress()
        self.session: Session | None = None
        self._open = ExitStack()
        self._locked = False

    def __enter__(self) -> Self:
        """Take the run folder, and hold of what computes; raises `PatterningError` where either cannot be had."""
        self._take_folder()
        try:
            self._begin()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what computes, at once: a finished unit is on the disk, and an unfinished one cannot be used."""
        self._leave()

    def compute(self, units: Sequence[Work], stage: str) -> list[Arrays]:
        """Results in the order of `units`. The first unit that fails ends the stage with its error.

        Raises `PatterningError` where a worker process dies and running its unit again does not help.
        """
        self._take_folder()
        with one_thread():  # a key may be made of sums as well
            for unit in units:
                _ = unit.key
        self.explain_misses(units)
        results = {unit.key: arrays for unit in units if (arrays := self.run.load(unit)) is not None}
        self._compute_pending(units, set(results), stage)
        return [results[unit.key] if unit.key in results else self.run.compute(unit) for unit in units]

    def complete(self, units: Sequence[Work], stage: str) -> None:
        """As `compute`, of results that are too many to be held: each is on the disk afterwards (`self.run.load`)."""
        self._take_folder()
        with one_thread():
            done = {unit.key for unit in units if self.run.load(unit) is not None}
        self.explain_misses(units)
        self._compute_pending(units, done, stage)

    def _compute_pending(self, units: Sequence[Work], done: set[str], stage: str) -> None:
        pending = list({unit.key: unit for unit in units if unit.key not in done}.values())
        self.progress.start(stage, len(units), len(units) - len(pending))
        try:
            left = self._begin().compute(self.run, pending, self.progress) if pending else []
            ThisProcess().open(self.run).compute(self.run, left, self.progress)
        except BaseException:
            self._end()  # the others are still at work on units that nobody waits for
            raise
        finally:
            self.progress.finish()
        if self._to_keep is not None:
            from patterning.core.dependencies import remember

            remember(self.run, self._to_keep)
            self._to_keep = None

    def explain_misses(self, units: Sequence[Work]) -> None:
        """Say why what the folder holds does not fit, where it holds none of `units`; once, with the first of them."""
        if self._parts is None:
            return
        from patterning.core.dependencies import say_what_differs

        self._to_keep, self._parts = self._parts(), None
        say_what_differs(self.run, units, self._to_keep)

    def _begin(self) -> Session:
        if self.session is None:
            self.session = self.executor.open(self.run)
        return self.session

    def _end(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            session.close()

    def _leave(self) -> None:
        try:
            self._end()
        finally:
            self._locked = False
            self._open.close()

    def _take_folder(self) -> None:
        if not self._locked:
            self._open.enter_context(self.run.lock())
            self._locked = True
            self.run.create()
