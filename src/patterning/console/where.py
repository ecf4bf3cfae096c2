"""Where a command's jobs are computed: the options for it, and the executor that they name."""

from collections.abc import Callable
from typing import Annotated

import typer

from patterning.core.errors import PatterningError
from patterning.core.executors import Executor, Ray
from patterning.core.workers import default_workers

MOST_WORKERS = 4
"""Most worker processes a CPU: more only cost memory."""
KINDS = ("local", "ray")

Count = Annotated[int, typer.Option("--workers", min=0, help="Worker processes of one thread each; 0: one a CPU.")]
Kind = Annotated[str, typer.Option("--executor", help="local: processes of this machine; ray: a Ray cluster.")]
Address = Annotated[
    str | None, typer.Option("--address", help="With ray: host:port of its head; none: the one on this machine.")
]
Cpus = Annotated[float, typer.Option("--cpus", help="With ray: CPUs that a job takes of a machine.")]
Gpus = Annotated[float, typer.Option("--gpus", help="With ray: GPUs that a job takes of a machine.")]


def place_of(
    workers: int, kind: str, address: str | None, cpus: float, gpus: float, note: Callable[[str], None]
) -> Executor | int:
    """The executor, or a number of workers; raises `PatterningError` for options that do not go together."""
    if kind not in KINDS:
        raise PatterningError(f"--executor {kind}: there are {' and '.join(KINDS)}")
    if kind == "ray":
        if workers:
            raise PatterningError(f"--workers {workers} counts processes of this machine: leave it out with ray")
        return Ray(address, cpus=cpus, gpus=gpus)
    given = {"--address": address is not None, "--cpus": cpus != 1, "--gpus": gpus != 0}
    if alone := [name for name, there in given.items() if there]:
        raise PatterningError(f"{alone[0]} is of a cluster: give --executor ray as well, or leave it out")
    most = MOST_WORKERS * default_workers()
    if workers > most:
        note(f"--workers {workers}: this machine has {default_workers()} CPUs, {most} workers are used")
    return min(workers, most) or default_workers()
