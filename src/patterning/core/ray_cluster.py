"""A Ray cluster, as `core.dispatch` uses one. Ray is imported here alone, when a cluster is asked for.

Ray runs a job once (`max_retries=0`): the dispatcher, which knows what is finished, starts lost jobs again. Remote
functions are sent by value, so that a machine can import nothing of this package and still say so.
"""

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from patterning.core.cluster import Answer, Death, Machine, Needs
from patterning.core.errors import PatterningError
from patterning.core.pieces import Bytes
from patterning.core.ray_connect import EXTRA, cause_of, connect, first_line, import_ray
from patterning.core.ray_job import remote_code, versions
from patterning.core.store import part_of, write_whole

PROBED_WITHIN = 60.0
"""Seconds for machines to say what they have."""
MOST_MEMORY = 10**14
"""Bytes that a job asks of Ray at most: Ray counts in 1/10,000 of a byte, in 64 bits."""
_log = logging.getLogger("patterning")


class RayCluster:
    """A connection to a Ray cluster (`cluster.Cluster`); one that this process has already is used, and left open."""

    def __init__(self, address: str | None, needs: Needs, shared: Path | None = None) -> None:
        """`needs` of every job; `shared`: the run folder, where workers write into it.

        Raises `PatterningError` where the cluster cannot be reached, or its machines cannot compute our jobs.
        """
        self.ray = ray = import_ray()
        self.needs = needs
        self.folder = None if shared is None else str(shared.resolve())
        path = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
        self.origin = (path, list(sys.argv), os.getcwd())
        self.wanted = versions()
        self.mine = not ray.is_initialized()
        if self.mine:
            connect(ray, address or os.environ.get("RAY_ADDRESS"))
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        On = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy  # noqa: N806 - a class

        job, probe, board = remote_code()
        self.job = self.ray.remote(max_retries=0)(job)
        self.pieces: dict[str, Any] = {}
        self.board: Any = None
        self._probe(probe, On)
        here = self.ray.get_runtime_context().get_node_id()
        make = self.ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=On(here, soft=True))(board)
        self.board = make.remote()
        self.asked: Any = None

    def _probe(self, probe: Any, on: Any) -> None:
        """Raise where a machine lacks this package, has other versions, or does not see the shared folder."""
        function = self.ray.remote(num_cpus=0, max_retries=3)(probe)
        with _token(self.folder) as token:
            asked = {
                function.options(scheduling_strategy=on(machine.key, soft=False)).remote(
                    self.origin, self.wanted, token
                ): machine.name
                for machine in self.machines()
            }
            ready, late = self.ray.wait(list(asked), num_returns=len(asked), timeout=PROBED_WITHIN)
        if late:
            names = ", ".join(sorted({asked[one] for one in late})[:3])
            _log.warning(
                f"{len(late)} machines did not say in time what they have ({names}): they are used all the same"
            )
        for one in ready:
            try:
                why = self.ray.get(one)
            except self.ray.exceptions.RayTaskError as error:
                why = f"{cause_of(error)}: {EXTRA} on all machines"
            except self.ray.exceptions.RayError:  # it has died since: jobs will not be given to it
                why = None
            if why is not None:
                raise PatterningError(f"machine {asked[one]} of the cluster cannot compute jobs of this process: {why}")

    def submit(self, number: int, name: str, frame: bytes, pieces: Sequence[str], needs: Needs) -> Any:
        """Run a job; the ticket is Ray's reference of its result."""
        options: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "name": name}
        if needs.memory:
            options["memory"] = min(needs.memory, MOST_MEMORY)
        return self.job.options(**options).remote(
            self.origin, number, frame, self.wanted, self.folder, self.board, list(pieces),
            *(self.pieces[piece] for piece in pieces),
        )  # fmt: skip

    def keep(self, pieces: Mapping[str, Bytes]) -> None:
        """Put memory into Ray's object store, once by name; machines fetch it from there, once each."""
        for name, memory in pieces.items():
            if name not in self.pieces:
                self.pieces[name] = self.ray.put(memory)

    def drop(self, but: Iterable[str]) -> None:
        """Let Ray free the other pieces."""
        self.pieces = {name: self.pieces[name] for name in but if name in self.pieces}

    def wait(self, tickets: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Whatever is over once one is, or after `seconds`."""
        ready, rest = self.ray.wait(list(tickets), num_returns=1, timeout=seconds)
        if ready and rest:
            ready += self.ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return ready

    def take(self, ticket: Any) -> Answer | Death:
        """The job's answer; Ray's own errors say that its process or its machine was lost."""
        errors = self.ray.exceptions
        try:
            machine, notes, message = self.ray.get(ticket)
        except errors.RayTaskError as error:  # outside of the user's code: this package cannot be imported, say
            if isinstance(error.cause, errors.RayError):  # what the job was given was lost with a machine
                return Death(first_line(error.cause), machine=True)
            raise PatterningError(f"a machine of the cluster cannot compute jobs: {cause_of(error)}: {EXTRA}") from None
        except errors.RuntimeEnvSetupError as error:
            raise PatterningError(f"Ray cannot set up its environment for jobs: {first_line(error)}") from None
        except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            return Death(first_line(error))
        except errors.RayError as error:
            return Death(first_line(error), machine=True)
        return Answer(machine, notes, message)

    def heard(self) -> Mapping[int, float]:
        """What jobs have told the board since it was last asked; asking does not wait."""
        news: Mapping[int, float] = {}
        if self.asked is not None:
            if not self.ray.wait([self.asked], timeout=0)[0]:
                return news
            with suppress(self.ray.exceptions.RayError):  # it was killed, and Ray makes another
                news = self.ray.get(self.asked)
        self.asked = self.board.take.remote()
        return news

    def machines(self) -> Sequence[Machine]:
        """Those that are alive, in the order of their names."""
        found = []
        for node in self.ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                amounts = (has.get("CPU", 0.0), has.get("GPU", 0.0), has.get("memory", float("inf")))
                found.append(Machine(node["NodeID"], node["NodeManagerHostname"], *amounts))
        return sorted(found, key=lambda machine: (machine.name, machine.key))

    def cancel(self, tickets: Sequence[Any]) -> None:
        """Kill the processes of jobs in work; the others do not begin."""
        for ticket in tickets:
            with suppress(Exception):
                self.ray.cancel(ticket, force=True)

    def close(self) -> None:
        """Free what the object store holds; the connection too, where it is ours."""
        self.pieces = {}
        with suppress(Exception):
            if getattr(self, "board", None) is not None:
                self.ray.kill(self.board)
        if self.mine:
            with suppress(Exception):
                self.ray.shutdown()


@contextmanager
def _token(folder: str | None) -> Iterator[str | None]:
    """A file in the run folder that machines are asked whether they see; None without a folder."""
    if folder is None:
        yield None
        return
    token = part_of(Path(folder) / "units" / "seen")
    write_whole(token, b"")
    try:
        yield str(token)
    finally:
        token.unlink(missing_ok=True)
