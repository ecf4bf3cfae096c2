"""One component of a χ that is read in shards: what every estimator's jobs have in common."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.samples import Samples
from patterning.core.store import Arrays, Unit
from patterning.core.task import Task
from patterning.core.workers import Workers
from patterning.models.components import Component
from patterning.models.probe import shard_rows
from patterning.posterior.band import advise
from patterning.posterior.chains import ChainConfig, Kernel
from patterning.posterior.short_chain import step_warnings, try_chain
from patterning.response.draws import Chains, Sampled
from patterning.response.one_component import LostError, Settings, short_of, whose_phi
from patterning.response.sample import SampledResponse
from patterning.response.settling import add_warnings, settling_of
from patterning.response.shards import Shard


@dataclass(frozen=True)
class ShardedPlan:
    """What all components share."""

    task: Task
    anchor: Tensor
    kernel: Kernel
    config: ChainConfig
    settings: Settings
    key: str
    shards: int


NoteOf = Callable[[SampledResponse, Settings, int], str | None]
"""Why sampling stops after so many rounds, or None where it goes on."""


@dataclass(frozen=True)
class Leaving:
    """A unit of work, and the file that it leaves beside its result, if it leaves one."""

    unit: Unit
    file: Path | None = None


class ShardedComponent(ABC):
    """One component: its shards, its rounds of chains, and the units of the last round.

    `stages`: what follows the sampling, in words; `units_of` has the units of each. `known`: `Sampled` of each round,
    set when its chains have run.
    """

    stages: ClassVar[tuple[str, ...]] = ()

    def __init__(self, plan: ShardedPlan, component: Component, pool: Workers) -> None:
        self.plan, self.component, self.pool = plan, component, pool
        self.samples = plan.task.samples(plan.settings.rows)
        self.rounds: list[Chains] = []
        self.known: list[Sampled] = []
        self.label = re.sub("[^a-z0-9]+", "-", component.name.lower())
        self.shards = self.shards_of(plan.settings.rows, self.samples)
        free = self._chains(0).restricted()
        self.short = try_chain(free, free.anchor, plan.kernel, plan.config)

    def shards_of(self, rows: Tensor, samples: Samples) -> list[Shard]:
        """Parts of `rows` that hold samples."""
        free = self._chains(0).restricted()
        parts = shard_rows(free, rows, self.plan.config.replicas, self.plan.shards)
        cells = np.cumsum([0, *(len(part) * self.plan.task.samples_per_row for part in parts)])
        ends = np.searchsorted(samples.place, cells)
        shards = [Shard(part, len(rows), int(a), int(b)) for part, a, b in zip(parts, ends[:-1], ends[1:], strict=True)]
        return [shard for shard in shards if shard.last > shard.first]

    def _chains(self, number: int) -> Chains:
        plan = self.plan
        return Chains(
            plan.task, plan.anchor, self.component, plan.kernel, plan.config, plan.settings.loss_band,
            number * plan.config.chains, plan.key, Path(self.pool.run.path).resolve() / "draws",
        )  # fmt: skip

    def start(self) -> None:
        """Another round."""
        self.rounds.append(self._chains(len(self.rounds)))

    @abstractmethod
    def chains_unit(self) -> Leaving:
        """Sample the last round."""

    @abstractmethod
    def units_of(self, stage: str) -> list[Leaving]:
        """The units of a stage of the last round; none where its chains are lost."""

    @abstractmethod
    def response(self) -> SampledResponse:
        """χ of all rounds; raises `LostError` where it is no result."""

    @abstractmethod
    def judged(self, response: SampledResponse) -> SampledResponse:
        """With what a reader must know; raises `LostError` where it is no result."""

    def joined(self, note_of: NoteOf) -> SampledResponse | None:
        """χ from all rounds, or None where `note_of` wants another; raises where it is no result."""
        plan, current = self.plan, self.known[-1]
        try:
            if self.lost:
                why = "; ".join(list(current.diverged.values())[:3])
                raise LostError(
                    f"{len(current.diverged)} of {plan.config.chains} chains diverged and χ needs 2 ({why})"
                )
            response = self.response()
            if (note := note_of(response, plan.settings, len(self.rounds))) is None:
                return None
            response = self.judged(response)
            more = step_warnings(self.short, response.rise, plan.config)
            free, functions = self.rounds[-1].restricted(), plan.settings.observables
            settling = settling_of(free, plan.kernel, plan.config, functions, response)
            response = add_warnings(response, settling, [*more, *short_of(response, plan.settings)])
        except LostError as error:
            free = self.rounds[-1].restricted()
            advice = advise(free, free.anchor, plan.kernel, plan.config, current.band.loss)
            raise PatterningError(f"{error}: {advice}") from None
        note = "; ".join(filter(None, [self.component.note, note]))
        return replace(response, note=note, kernel=plan.kernel, phi=whose_phi(plan.settings))

    @property
    def lost(self) -> bool:
        """Whether fewer than 2 chains of the last round are left, which are not worth reading."""
        return self.plan.config.chains - len(self.known[-1].diverged) < 2

    def stored(self, unit: Unit) -> Arrays:
        """What a unit left; computed again where that was damaged since."""
        arrays = self.pool.run.load(unit)
        return self.pool.run.compute(unit) if arrays is None else arrays
