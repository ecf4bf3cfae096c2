"""What `core.dispatch` asks of a cluster, and what there is to say of its machines. `core.ray_cluster` is one."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from patterning.core.pieces import Bytes

OTHER = "other"
"""What a machine answers that cannot compute the job, with why."""
SHOWN = 3
"""Machines that are named one by one on the progress line."""


@dataclass(frozen=True)
class Needs:
    """What a job takes of a machine: CPUs, GPUs, and bytes of memory where they are known (else 0)."""

    memory: int = 0
    cpus: float = 1.0
    gpus: float = 0.0

    def fit(self, machine: "Machine") -> bool:
        """Whether a machine could hold it, were it free."""
        return self.cpus <= machine.cpus and self.gpus <= machine.gpus and self.memory <= machine.memory

    def __str__(self) -> str:
        """For a person."""
        return _amounts(self.cpus, self.gpus, self.memory)


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster: what it is called, and all that it has."""

    key: str
    name: str
    cpus: float
    gpus: float = 0.0
    memory: float = float("inf")

    def __str__(self) -> str:
        """For a person."""
        return f"{self.name} with {_amounts(self.cpus, self.gpus, self.memory)}"


@dataclass(frozen=True)
class Answer:
    """What a machine says of a job: notes of the package, and a message of `worker.answer`, or (OTHER, why)."""

    machine: str
    notes: Sequence[str]
    message: tuple[Any, ...]


@dataclass(frozen=True)
class Death:
    """A job was lost: its process died or, with `machine`, the machine it was on."""

    words: str
    machine: bool = False


class Cluster(Protocol):
    """What runs jobs. Tickets are its own; they can be keys of a dictionary."""

    needs: Needs
    """What every job takes; memory is added by job."""

    def submit(self, number: int, name: str, frame: bytes, pieces: Sequence[str], needs: Needs) -> Any:
        """Run a job that was packed with `pieces`, all of them kept; returns a ticket."""
        ...

    def keep(self, pieces: Mapping[str, Bytes]) -> None:
        """Hold memory for the jobs to come; what is held already costs nothing."""
        ...

    def drop(self, but: Iterable[str]) -> None:
        """Hold no other pieces than these any more."""
        ...

    def wait(self, tickets: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Those of the tickets whose jobs are over, after `seconds` at the most."""
        ...

    def take(self, ticket: Any) -> Answer | Death:
        """What became of a job that is over."""
        ...

    def heard(self) -> Mapping[int, float]:
        """How far jobs in work are, by number, as far as it is news."""
        ...

    def machines(self) -> Sequence[Machine]:
        """Those that are alive."""
        ...

    def cancel(self, tickets: Sequence[Any]) -> None:
        """Stop jobs; nobody will ask what became of them."""
        ...

    def close(self) -> None:
        """Let go of the cluster."""
        ...


def names_of(machines: Sequence[Machine]) -> dict[str, str]:
    """What machines are called, by key: where several have one name, they are numbered."""
    names, seen = dict[str, str](), Counter[str]()
    for machine in machines:
        seen[machine.name] += 1
        names[machine.key] = f"{machine.name} ({seen[machine.name]})" if seen[machine.name] > 1 else machine.name
    return names


def speeds_of(done_by: Mapping[str, int], seconds: float, deaths: int) -> str:
    """Jobs a minute by machine, in a few words; of many machines, the sum and the slowest."""
    speeds = {name: 60 * count / max(seconds, 1e-9) for name, count in sorted(done_by.items())}
    if not speeds:
        words = []
    elif len(speeds) <= SHOWN:
        words = [f"{name} {speed:.3g}/min" for name, speed in speeds.items()]
    else:
        slowest = min(speeds, key=speeds.__getitem__)
        total = sum(speeds.values())
        words = [f"{len(speeds)} machines {total:.3g}/min", f"slowest {slowest} {speeds[slowest]:.3g}/min"]
    return ", ".join([*words, *([f"{deaths} run again"] if deaths else [])])


def no_place(name: str, needs: Needs, machines: Sequence[Machine]) -> str:
    """The sentence for a job that no machine can ever hold."""
    if not machines:
        return f"the cluster has no machine left that could compute {name}: start one; what is finished is kept"
    largest = max(machines, key=lambda machine: (machine.gpus, machine.memory, machine.cpus))
    return (
        f"no machine of the cluster can hold {name}, which takes {needs}: the largest is {largest}; ask for less, or "
        "start larger ones (of a cluster that grows by itself, pt.Ray(wait=seconds) waits for them)"
    )


def _amounts(cpus: float, gpus: float, memory: float) -> str:
    parts = [f"{cpus:g} CPU{'' if cpus == 1 else 's'}"]
    parts += [f"{gpus:g} GPU{'' if gpus == 1 else 's'}"] if gpus else []
    parts += [f"{memory / 1e9:.3g} GB of memory"] if 0 < memory < float("inf") else []
    return ", ".join(parts)
