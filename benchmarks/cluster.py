"""What a job costs beyond its work, on local processes and on Ray; and what the dispatcher costs a large cluster.

    python benchmarks/cluster.py             # needs the extra `cluster`; some minutes

Every figure has the wall clock and the CPU seconds of this process, which hands the jobs out. Repeats give the
intervals: ± 2 standard errors over `--repeats` stages of one session.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patterning.core.cluster import Answer, Machine, Needs
from patterning.core.dispatch import Dispatch
from patterning.core.executors import Executor, LocalProcesses, Ray, ThisProcess, executor_of
from patterning.core.progress import Progress
from patterning.core.rng import Stream, generator
from patterning.core.store import Arrays, RunFolder, Unit
from patterning.core.worker import DONE
from patterning.core.workers import Workers, default_workers

WARM = 24


def empty(number: int, scratch: Path) -> Arrays:
    """Nothing but a number to store."""
    del scratch
    return {"number": np.array(number)}


def busy(number: int, steps: int, scratch: Path) -> Arrays:
    """Products of small matrices, which stay in a core's cache; and the CPU seconds that they took."""
    del scratch
    begun, a = time.process_time(), torch.eye(128) + number * 1e-9
    for _ in range(steps):
        a = a @ a
        a = a / a.norm()
    return {"a": a.numpy(), "seconds": np.array(time.process_time() - begun)}


def timed(executor: Executor, stages: Sequence[Sequence[Unit]]) -> tuple[list[float], list[float], list[list[Arrays]]]:
    """Wall and CPU seconds of each stage in one session, whose start-up is not among them, and what came out."""
    wall, cpu, results = [], [], []
    with tempfile.TemporaryDirectory() as folder, Workers(RunFolder(Path(folder)), executor) as pool:
        warm = [Unit(f"warm{n}", busy, {"number": -n, "steps": 1000}) for n in range(WARM)]
        pool.compute(warm, "warm")  # long enough for every worker to have begun
        for units in stages:
            begun, own = time.perf_counter(), time.process_time()
            results.append(pool.compute(units, "timed"))
            wall.append(time.perf_counter() - begun)
            cpu.append(time.process_time() - own)
    return wall, cpu, results


def plus_minus(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± 2 standard errors."""
    error = 2 * np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"


def overhead(jobs: int, repeats: int, workers: int) -> None:
    """Empty jobs: all that they take is overhead."""
    print(f"\n{jobs} empty jobs, {repeats} times, ms a job\n\n| executor | wall | CPU of this process |\n|---|---|---|")
    for name, executor in (
        ("this process", ThisProcess()), (f"{workers} local processes", LocalProcesses(workers)),
        (f"Ray, {workers} CPUs", Ray("local")),
    ):  # fmt: skip
        stages = [[Unit(f"empty{r}", empty, {"number": n + jobs * r}) for n in range(jobs)] for r in range(repeats)]
        wall, cpu, _ = timed(executor, stages)
        per_job = [[1000 * value / jobs for value in values] for values in (wall, cpu)]
        print(f"| {name} | {plus_minus(per_job[0], 2)} | {plus_minus(per_job[1], 2)} |", flush=True)


def efficiency(jobs: int, steps: int, repeats: int, counts: Sequence[int]) -> None:
    """The same jobs on more workers: their CPU seconds over the wall clock's times the workers that had a core."""
    cores = default_workers()
    print(f"\n{jobs} jobs of {steps} products, {repeats} times, on {cores} cores\n")
    print("| executor | workers | wall, s | CPU of the jobs, s | jobs' CPU / (wall × cores in use) |")
    print("|---|---|---|---|---|")
    for count in counts:
        share = cores // count if count <= cores else cores / count
        for name, executor in (("local", executor_of(count)), ("Ray", Ray("local", cpus=share))):
            stages = [
                [Unit(f"busy{r}", busy, {"number": n + jobs * r, "steps": steps}) for n in range(jobs)]
                for r in range(repeats)
            ]
            wall, _, results = timed(executor, stages)
            taken = [sum(float(arrays["seconds"]) for arrays in stage) for stage in results]
            shares = [cpu / (seconds * min(count, cores)) for cpu, seconds in zip(taken, wall, strict=True)]
            print(
                f"| {name} | {count} | {plus_minus(wall)} | {plus_minus(taken)} | {plus_minus(shares, 2)} |", flush=True
            )


class SimulatedCluster:
    """Machines on a simulated clock: jobs last as long as they are said to, and cost nothing but the dispatcher's time.

    The dispatcher's real seconds are added to the clock, so that jobs wait for it as they would.
    """

    def __init__(self, machines: int, workers: int, lengths: Mapping[str, float]) -> None:
        self.needs = Needs()
        self.all = [Machine(str(n), f"machine{n}", workers) for n in range(machines)]
        self.free = [(0.0, machine.key) for machine in self.all for _ in range(workers)]
        self.lengths, self.over = lengths, dict[int, tuple[float, str]]()
        self.waited, self.begun = 0.0, time.perf_counter()

    def clock(self) -> float:
        """Seconds: the dispatcher's own, and those in which it waited."""
        return self.waited + time.perf_counter() - self.begun

    def submit(self, number: int, name: str, frame: bytes, pieces: Sequence[str], needs: Needs) -> int:
        """The worker that is free first takes it, as Ray hands out tasks."""
        del frame, pieces, needs
        at, machine = min(self.free)
        end = max(at, self.clock()) + self.lengths[name]
        self.free[self.free.index((at, machine))] = (end, machine)
        self.over[number] = (end, machine)
        return number

    def wait(self, tickets: Sequence[int], seconds: float) -> Sequence[int]:
        """Time passes at once."""
        first, now = min(self.over[ticket][0] for ticket in tickets), self.clock()
        self.waited += max(0.0, min(first - now, seconds))
        now = self.clock()
        return [ticket for ticket in tickets if self.over[ticket][0] <= now]

    def take(self, ticket: int) -> Answer:
        """A result like an empty job's."""
        return Answer(self.over.pop(ticket)[1], (), (DONE, {"number": np.array(ticket)}))

    def heard(self) -> Mapping[int, float]:
        """All are half done."""
        return dict.fromkeys(self.over, 0.5)

    def machines(self) -> Sequence[Machine]:
        """All of them, always."""
        return self.all

    def keep(self, pieces: Any) -> None:
        """Nothing is sent."""

    def drop(self, but: Any) -> None:
        """Nothing is kept."""

    def cancel(self, tickets: Any) -> None:
        """Nothing fails."""

    def close(self) -> None:
        """Nothing is open."""


def simulation(jobs: int, machines: int, workers: int, repeats: int, mean: float, spread: float) -> None:
    """Jobs of mixed length: how near the dispatcher comes to workers that never wait."""
    total = machines * workers
    print(
        f"\n{jobs} jobs of mixed length (log-normal, σ {spread:g}, mean {mean:g} s), {total} workers, {repeats} draws,"
        " simulated clock with this process's real seconds added\n"
    )
    print("| wall, s | at least, s | efficiency | of it without a dispatcher | CPU of the dispatcher, ms a job |")
    print("|---|---|---|---|---|")
    rows = []
    for draw in range(repeats):
        lengths = mean * np.exp(spread * generator(0, Stream.DATA, draw).standard_normal(jobs) - spread**2 / 2)
        units = [Unit(f"job{n}", empty, {"number": n}) for n in range(jobs)]
        cluster = SimulatedCluster(machines, workers, {f"job{n}": float(s) for n, s in enumerate(lengths)})
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(Path(folder))
            run.create()
            for unit in units:
                _ = unit.key
            begun, own = cluster.clock(), time.process_time()
            Dispatch(cluster, retries=0, clock=cluster.clock).compute(run, units, Progress())
            wall, cpu = cluster.clock() - begun, time.process_time() - own
        free = np.zeros(total)
        for length in lengths:
            free[free.argmin()] += length
        rows.append(
            (wall, max(lengths.sum() / total, lengths.max()), lengths.sum() / (wall * total),
             lengths.sum() / (free.max() * total), 1000 * cpu / jobs)
        )  # fmt: skip
    columns = list(zip(*rows, strict=True))
    print(f"| {' | '.join(plus_minus(column, 2 if max(column) < 10 else 1) for column in columns)} |", flush=True)


def main() -> None:
    """Print all three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--only", choices=("overhead", "efficiency", "simulation"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only in (None, "simulation"):
        for mean, spread in ((60.0, 0.5), (60.0, 1.0), (1.0, 1.0)):
            simulation(1000, 16, 4, options.repeats, mean, spread)
    if options.only in (None, "overhead"):
        overhead(options.jobs, options.repeats, default_workers())
    if options.only in (None, "efficiency"):
        efficiency(16, options.steps, options.repeats, (1, 2, 4))


if __name__ == "__main__":
    main()
