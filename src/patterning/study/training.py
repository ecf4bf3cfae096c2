"""Training as jobs: one run, or several of the same weights, of a subject."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patterning.core.jobs import Job
from patterning.core.store import Arrays
from patterning.core.workers import Workers
from patterning.study.subject import Rho, Runs, Subject


@dataclass(frozen=True)
class TrainJob(Job):
    """Train `seeds` of a subject under weights `rho`, and keep parameters at the steps `keep`."""

    subject: Subject
    rho: Rho
    seeds: tuple[int, ...]
    keep: tuple[int, ...] = ()

    def run(self, scratch: Path) -> Arrays:
        """`Runs`, as arrays."""
        return self.subject.train(self.rho, self.seeds, self.keep, scratch).to_arrays()


@dataclass(frozen=True)
class Planned:
    """Runs to be: `weights` for each seed (the same array for all, or one each), and the `seeds`."""

    weights: Sequence[Rho]
    seeds: Sequence[int]
    keep: Sequence[int] = ()

    @classmethod
    def alike(cls, rho: Rho, seeds: Sequence[int], keep: Sequence[int] = ()) -> "Planned":
        """The same weights for every seed."""
        return cls([rho] * len(seeds), seeds, keep)


def train_all(subject: Subject, pool: Workers, plan: Mapping[str, Planned], stage: str) -> dict[str, Runs]:
    """The runs of every planned name, by name; seeds under the same weights share a job, as the subject allows."""
    jobs, counts = list[TrainJob](), dict[str, int]()
    for name, planned in plan.items():
        own = list(_jobs(subject, name, planned))
        jobs += own
        counts[name] = len(own)
    done = iter(pool.compute(jobs, stage))
    return {name: Runs.joined([Runs.from_arrays(next(done)) for _ in range(count)]) for name, count in counts.items()}


def unweighted(subject: Subject) -> Rho:
    """ρ = 1."""
    return np.ones(subject.base_weights.shape)


def _jobs(subject: Subject, name: str, planned: Planned) -> list[TrainJob]:
    jobs, start = [], 0
    while start < len(planned.seeds):
        stop = start + 1
        while (
            stop < len(planned.seeds)
            and stop - start < subject.seeds_at_once
            and planned.weights[stop] is planned.weights[start]
        ):
            stop += 1
        seeds = tuple(int(seed) for seed in planned.seeds[start:stop])
        jobs.append(TrainJob(subject, planned.weights[start], seeds, tuple(planned.keep), label=name))
        start = stop
    return jobs
