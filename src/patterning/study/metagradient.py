"""The metagradient as a reading: reverse mode through training, averaged over seeds (`training.metagradient`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from patterning.core.arrays import Floats
from patterning.core.flat import FlatTask
from patterning.core.jobs import Job
from patterning.core.store import Arrays
from patterning.intervention.solve import solve
from patterning.response.susceptibility import rank_correlation, step_up
from patterning.study.bench import Bench, Found
from patterning.study.subject import FlatObservable
from patterning.training.metagradient import metagradient, metasmoothness
from patterning.training.weighted import TrainConfig

STRENGTH = 0.4
"""The largest change of a weight on the way to the second of the two steps that metasmoothness is measured over."""


class Trained(Protocol):
    """A subject that trains by `training.weighted`."""

    @property
    def settings(self) -> TrainConfig:
        """How."""
        ...

    @property
    def flat(self) -> FlatTask:
        """What."""
        ...

    def observables(self) -> Mapping[str, FlatObservable]:
        """φ by name."""
        ...


@dataclass(frozen=True)
class MetagradientJob(Job):
    """`chi` (n,) of an observable at the end of the unweighted run of one seed; `value` and `growth` (1,)."""

    subject: Trained
    observable: str
    seed: int

    def run(self, scratch: Path) -> Arrays:
        """About five times the cost of the run."""
        del scratch
        phi = self.subject.observables()[self.observable]
        found = metagradient(self.subject.flat, self.subject.settings, self.seed, phi)
        return {"chi": found.chi.numpy(), "value": np.array([found.value]), "growth": np.array([found.growth])}


@dataclass(frozen=True)
class SmoothnessJob(Job):
    """Metasmoothness (1,) of training along a direction s (n,), for one seed."""

    subject: Trained
    s: Floats
    seed: int

    def run(self, scratch: Path) -> Arrays:
        """Three runs."""
        del scratch
        size = STRENGTH / float(np.abs(self.s).max())
        s: Tensor = torch.from_numpy(self.s)
        return {"smoothness": np.array([metasmoothness(self.subject.flat, self.subject.settings, self.seed, s, size)])}


@dataclass(frozen=True)
class OfGradient:
    """χ of `observable` at the end of training under `subject`'s settings, over the pilots' seeds.

    `sign`: +1 where more of the observable is what the main outcome calls up. `seeds`: how many are averaged.
    """

    subject: Trained
    observable: str
    sign: float
    seeds: int = 4

    def read(self, name: str, bench: Bench) -> Found:
        """Refused where the even and the odd seeds do not agree."""
        free, q = bench.subject.free.ravel(), bench.subject.samples.weight
        seeds = bench.seeds.pilots[: self.seeds]
        jobs = [MetagradientJob(self.subject, self.observable, seed, label=f"metagradient-{seed}") for seed in seeds]
        parts = bench.pool.compute(jobs, "metagradient, through training")
        chi = np.stack([part["chi"] for part in parts])
        reliability = step_up(rank_correlation(chi[::2].mean(0)[free], chi[1::2].mean(0)[free]))
        s = solve(self.sign * chi.mean(0)[None], q, np.array([1.0]), 1.0, free=free).s
        smooth = bench.pool.compute(
            [SmoothnessJob(self.subject, s, seeds[0], label="metasmoothness")], "metasmoothness"
        )
        refused = None
        if not reliability >= bench.min_reliability:
            refused = f"the metagradient of {len(seeds)} seeds has reliability {reliability:.2f}"
        direction = bench.direction(
            name,
            f"{self.observable} at the end of training, by reverse mode through {self.subject.settings.steps} steps",
            s,
            refused=refused,
            reliability=reliability,
            growth=[float(part["growth"][0]) for part in parts],
            metasmoothness=float(smooth[0]["smoothness"][0]),
        )
        return Found(direction)
