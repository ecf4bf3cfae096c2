"""Where units of work are computed: one contract, and three that keep it: this process, local processes, a Ray cluster.

An executor is a setting, without state; `open` gives the session that computes. Every session runs a unit on one thread
of torch, so that all executors give the same bits on processors of the same kind.
"""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from patterning.core.errors import PatterningError, check_whole
from patterning.core.progress import Progress, listening
from patterning.core.store import RunFolder, Work
from patterning.core.threads import one_thread


class Session(Protocol):
    """What computes units, between `Executor.open` and `close`."""

    def compute(self, run: RunFolder, units: Sequence[Work], progress: Progress) -> list[Work]:
        """Compute `units`, and store each result in the run folder, whole or not at all, as soon as it is there.

        Returns the units that cannot leave this process; the caller computes them. `progress` is told of every finished
        unit. Raises the error of the first unit that fails; `PatterningError` where it cannot be computed at all.
        """
        ...

    def close(self) -> None:
        """End it at once, with what is still being computed."""
        ...


class Executor(Protocol):
    """Where units of work are computed."""

    def open(self, run: RunFolder) -> Session:
        """Take hold of what computes units into `run`; raises `PatterningError` where that cannot be had."""
        ...


@dataclass(frozen=True)
class ThisProcess:
    """One unit after the other, in this process."""

    def open(self, run: RunFolder) -> "ThisProcess":
        """Itself: there is nothing to take hold of."""
        del run
        return self

    def compute(self, run: RunFolder, units: Sequence[Work], progress: Progress) -> list[Work]:
        """Compute and store them all."""
        for unit in units:
            with one_thread(), listening(progress.within):
                run.compute(unit)
            progress.within(0.0)
            progress.advance()
        return []

    def close(self) -> None:
        """Nothing is open."""

    def __str__(self) -> str:
        """For a page."""
        return "1"


@dataclass(frozen=True)
class LocalProcesses:
    """`count` processes of this machine, of one thread each."""

    count: int

    def open(self, run: RunFolder) -> Session:
        """Processes start with the first unit."""
        from patterning.core.processes import ProcessSession

        del run
        return ProcessSession(self.count)

    def __str__(self) -> str:
        """For a page."""
        return str(self.count)


@dataclass(frozen=True)
class Ray:
    """The machines of a Ray cluster (extra `cluster`; docs/cluster.md): `pt.verify(…, executor=pt.Ray("head:6379"))`.

    `address`: host:port of the cluster's head; None is the one that RAY_ADDRESS names, else the one that was started on
    this machine, else a Ray of this machine alone, for as long as the command runs. `cpus`, `gpus`: what a job takes of
    a machine; torch computes on one thread all the same, so that numbers do not depend on it. `retries`: how often a
    job is started again after its process has died; deaths of whole machines do not count. `shared`: the run folder
    lies at the same path on all machines, and workers write into it; otherwise results travel to this process, which
    writes them. `wait`: seconds to wait for a machine that can hold a job, where the cluster grows by itself.

    Raises `PatterningError` for settings that cannot be.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = 5
    shared: bool = False
    wait: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        check_whole("retries", self.retries, 0)
        for name, value, least in (("cpus", self.cpus, 0.001), ("gpus", self.gpus, 0.0), ("wait", self.wait, 0.0)):
            number = not isinstance(value, bool) and isinstance(value, int | float)
            if not number or not math.isfinite(value) or value < least:
                raise PatterningError(f"{name} is {value!r}: it must be a number, at least {least:g}")
        for name, value in (("cpus", self.cpus), ("gpus", self.gpus)):
            if value > 1 and value != int(value):
                raise PatterningError(f"{name} is {value!r}: above 1, Ray hands out whole ones")
        if self.address is not None and (not isinstance(self.address, str) or not self.address):
            raise PatterningError(f"address is {self.address!r}: it must be host:port of the cluster's head, or None")

    def open(self, run: RunFolder) -> Session:
        """Connect. Raises `PatterningError` where Ray is missing, cannot be reached, or differs from this process."""
        from patterning.core.cluster import Needs
        from patterning.core.dispatch import Dispatch
        from patterning.core.ray_cluster import RayCluster

        needs = Needs(cpus=float(self.cpus), gpus=float(self.gpus))
        cluster = RayCluster(self.address, needs, run.path if self.shared else None)
        return Dispatch(cluster, retries=self.retries, patience=self.wait, shared=self.shared)

    def __str__(self) -> str:
        """For a page."""
        return "Ray"


def executor_of(given: Executor | int) -> Executor:
    """The executor itself, or the one for a number of workers: one is this process.

    Without POSIX's pipes and process groups (on Windows), and without an interpreter to start, all numbers are.
    """
    if not isinstance(given, int):
        return given
    return LocalProcesses(given) if given > 1 and os.name == "posix" and sys.executable else ThisProcess()


def chosen(executor: Executor | None, workers: int) -> Executor | int:
    """What a caller asked for by `executor` or by a number of `workers`; raises `PatterningError` for both at once."""
    if executor is None:
        return workers
    if not hasattr(executor, "open"):
        raise PatterningError(f"executor is {executor!r}: give pt.Ray(…), or none and a number of workers")
    if workers > 1:
        raise PatterningError(
            f"workers={workers} says how many processes of this machine: leave it out beside an executor"
        )
    return executor
