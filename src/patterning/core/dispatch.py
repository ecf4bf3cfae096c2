"""Jobs to the machines of a cluster and results back, with retries, progress and throughput.

Jobs depend on their fields alone, so that one whose process or machine died is sent again, and one that ran twice gives
the same result twice. What is finished is in the run folder: a caller that is killed and started again goes on there.
"""

import heapq
import itertools
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from patterning.core.cluster import OTHER, Answer, Cluster, Death, Needs, names_of, no_place, speeds_of
from patterning.core.errors import PatterningError
from patterning.core.pieces import Pieces
from patterning.core.processes import KeptHere
from patterning.core.progress import Progress
from patterning.core.store import RunFolder, Work
from patterning.core.worker import DONE, FAILED, UNREADABLE, raised

POLL = 0.5
"""Seconds between two looks at the progress of jobs in work."""
LOOK = 10.0
"""Seconds between two looks at which machines there are."""
AT_ONCE = 8
"""Jobs that are packed before the next look at results."""
LEAST_AHEAD = 16
"""Jobs that are handed over before they can all run, at least; otherwise twice as many as run at once."""
MOST_DEATHS_OF_MACHINES = 50
"""A job that has seen so many machines die is not sent again."""
LONGEST_WAIT = 30.0
"""Seconds before a job is started again after its second death and later ones, at most."""
APPEARS_WITHIN = 60.0
"""Seconds that a shared file system may take to show a file that another machine has written."""
_log = logging.getLogger("patterning")


class Dispatch:
    """A session on a cluster (`executors.Session`).

    `retries`: deaths of its process that a job survives. `patience`: seconds to wait for a machine that can hold a job.
    `shared`: workers write the results into the run folder themselves.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        retries: int,
        patience: float = 0.0,
        shared: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cluster, self.retries, self.patience, self.shared, self.clock = cluster, retries, patience, shared, clock
        self.kept = KeptHere()
        self.numbers = itertools.count()

    def compute(self, run: RunFolder, units: Sequence[Work], progress: Progress) -> list[Work]:
        """Compute and store the units; returns those that cannot leave this process."""
        stage = _Stage(self, run, units, progress)
        try:
            while stage.goes_on:
                stage.send()
                stage.collect()
                stage.tell()
                stage.check_machines()
        except BaseException:
            self.cluster.cancel(list(stage.flying))
            raise
        self.cluster.drop(but=stage.pieces.by_name)
        return stage.left

    def close(self) -> None:
        """Let go of the cluster."""
        self.cluster.close()


@dataclass
class _Try:
    """A job as it was packed, under way for the `number`-th time of all jobs."""

    unit: Work
    frame: bytes
    pieces: tuple[str, ...]
    needs: Needs
    number: int = -1


@dataclass
class _Stage:
    """One call of `compute`: `flying` jobs by ticket, those that wait for their next try by when it is due."""

    session: Dispatch
    run: RunFolder
    units: Sequence[Work]
    progress: Progress
    flying: dict[Any, _Try] = field(default_factory=dict)
    left: list[Work] = field(default_factory=list)
    pieces: Pieces = field(default_factory=Pieces)

    def __post_init__(self) -> None:
        self.cluster, self.clock = self.session.cluster, self.session.clock
        self.waiting = deque(self.units)
        self.again: list[tuple[float, int, _Try]] = []
        self.deaths: Counter[tuple[str, bool]] = Counter()
        self.fractions: dict[int, float] = {}
        self.done_by: Counter[str] = Counter()
        self.names: dict[str, str] = {}
        self.begun = self.due = self.look = self.clock()
        self.unfit_since: float | None = None
        self.ahead = LEAST_AHEAD

    @property
    def goes_on(self) -> bool:
        """Whether a job is still to be computed."""
        return bool(self.waiting or self.again or self.flying)

    def send(self) -> None:
        """Hand over jobs, a few, as far as there is room."""
        for _ in range(AT_ONCE):
            if len(self.flying) >= self.ahead:
                return
            if self.again and self.again[0][0] <= self.clock():
                self._submit(heapq.heappop(self.again)[2])
            elif self.waiting:
                attempt = self._packed(self.waiting.popleft())
                if attempt is not None:
                    self._submit(attempt)
            else:
                return

    def _packed(self, unit: Work) -> _Try | None:
        self.pieces.used.clear()
        frame = self.session.kept.packed(unit, unit, pieces=self.pieces)
        if frame is None:
            self.left.append(unit)
            return None
        memory, own = getattr(unit, "memory", None), self.cluster.needs
        taken = int(memory(**getattr(unit, "arguments", {}))) if memory is not None else 0
        used = tuple(self.pieces.used)
        self.cluster.keep({name: self.pieces.by_name[name] for name in used})
        return _Try(unit, frame, used, Needs(taken, own.cpus, own.gpus))

    def _submit(self, attempt: _Try) -> None:
        attempt.number = next(self.session.numbers)
        ticket = self.cluster.submit(attempt.number, attempt.unit.name, attempt.frame, attempt.pieces, attempt.needs)
        self.flying[ticket] = attempt

    def collect(self) -> None:
        """Take in what is over; waits for news where there is nothing to hand over."""
        if not self.flying:
            if self.again and not self.waiting:
                time.sleep(min(POLL, max(0.0, self.again[0][0] - self.clock())))
            return
        room = len(self.flying) < self.ahead and bool(self.waiting)
        for ticket in self.cluster.wait(list(self.flying), 0.0 if room else POLL):
            attempt = self.flying.pop(ticket)
            self.fractions.pop(attempt.number, None)
            outcome = self.cluster.take(ticket)
            if isinstance(outcome, Death):
                self._died(attempt, outcome)
            else:
                self._answered(attempt, outcome)

    def _answered(self, attempt: _Try, answer: Answer) -> None:
        for note in answer.notes:
            _log.warning(note)
        word, *rest = answer.message
        name = self._name_of(answer.machine)
        if word == FAILED:
            raise raised(rest, f"in a worker process on {name}")
        if word == OTHER:
            raise PatterningError(f"machine {name} cannot compute jobs of this process: {rest[0]}")
        if word == UNREADABLE:
            raise PatterningError(
                f"{attempt.unit.name} cannot be unpacked on machine {name} ({rest[0]}): install there what it needs, "
                "or put your files on a disk that all machines see at the same path"
            )
        assert word == DONE
        if self.session.shared:
            self._await_file(attempt.unit, name)
        else:
            self.run.store(attempt.unit, rest[0])
        self.done_by[name] += 1
        self.progress.within(sum(self.fractions.values()))
        self.progress.advance()

    def _await_file(self, unit: Work, machine: str) -> None:
        """A shared file system may show a new file late; raises where it does not show it at all."""
        path, end = self.run.file_of(unit), time.monotonic() + APPEARS_WITHIN
        while not path.exists():
            os.listdir(path.parent)  # makes a network file system look again
            if time.monotonic() > end:
                raise PatterningError(
                    f"machine {machine} has written {path}, which is not to be seen here: the folder is not on a disk "
                    "that all machines share; leave out shared=True"
                )
            time.sleep(0.2)

    def _died(self, attempt: _Try, death: Death) -> None:
        """Start the job again, later with each death; raises where it has died too often."""
        kind = (attempt.unit.key, death.machine)
        self.deaths[kind] += 1
        count, most = self.deaths[kind], MOST_DEATHS_OF_MACHINES if death.machine else self.session.retries
        if count > most:
            what = "machines" if death.machine else "worker processes"
            raise PatterningError(
                f"{count} {what} died in {attempt.unit.name}, one after the other ({death.words}): most often memory "
                "ran out there; give the same command again, with fewer jobs to a machine (more CPUs for each); what "
                "is finished is kept"
            )
        pause = 0.0 if count == 1 else min(LONGEST_WAIT, 0.5 * 2.0 ** (count - 2))
        heapq.heappush(self.again, (self.clock() + pause, next(self.session.numbers), attempt))
        self.look = self.clock()  # machines may have gone

    def tell(self) -> None:
        """How far the jobs in work are, and what each machine does."""
        now = self.clock()
        if now < self.due:
            return
        self.due = now + POLL
        numbers = {attempt.number for attempt in self.flying.values()}
        self.fractions |= {number: part for number, part in self.cluster.heard().items() if number in numbers}
        self.progress.within(sum(self.fractions.values()))
        self.progress.where(speeds_of(self.done_by, now - self.begun, sum(self.deaths.values())))

    def check_machines(self) -> None:
        """How many jobs can run at once; raises `PatterningError` where no machine can ever hold one, for too long."""
        now = self.clock()
        if now < self.look or not self.flying:
            return
        self.look = now + LOOK
        machines = self.cluster.machines()
        self.names = names_of(machines)
        slots = sum(int(machine.cpus / self.cluster.needs.cpus) for machine in machines)
        self.ahead = max(LEAST_AHEAD, 2 * slots)
        unfit = next((a for a in self.flying.values() if not any(a.needs.fit(machine) for machine in machines)), None)
        if unfit is None:
            self.unfit_since = None
            return
        self.unfit_since = now if self.unfit_since is None else self.unfit_since
        if now - self.unfit_since >= self.session.patience:
            raise PatterningError(no_place(unfit.unit.name, unfit.needs, machines))

    def _name_of(self, key: str) -> str:
        if key not in self.names:
            self.names |= names_of(self.cluster.machines())
        return self.names.get(key, key)
