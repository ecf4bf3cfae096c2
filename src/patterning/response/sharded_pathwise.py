"""Pathwise χ of one component, from positions that are stored: a way back for each φ, then the shards along each."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.store import Arrays, Unit
from patterning.core.workers import Workers
from patterning.models.components import Component
from patterning.posterior.sgld import SGLD
from patterning.response.blocks import Blocks
from patterning.response.capability import missed_on_the_way, try_pathwise, what_is_missed
from patterning.response.judged import judged
from patterning.response.one_component import REFUSED_EXPANSION
from patterning.response.pathwise import Pathwise, join_pathwise, pathwise_of, seen_of, summarise_pathwise
from patterning.response.pathwise_shards import (
    Adjoints,
    LossOf,
    Tangents,
    adjoint_unit,
    path_of,
    path_unit,
    tangents_unit,
)
from patterning.response.sample import COMPONENT_LOSS, SampledResponse
from patterning.response.sharded_jobs import Leaving, ShardedComponent, ShardedPlan

BACK, SHARDS = "going back through the chains", "reading shards"


class PathwiseComponent(ShardedComponent):
    """Its rounds of paths; χ by chain of each is kept. Raises `PatterningError` where the estimator cannot serve."""

    stages: ClassVar[tuple[str, ...]] = (BACK, SHARDS)

    def __init__(self, plan: ShardedPlan, component: Component, pool: Workers) -> None:
        super().__init__(plan, component, pool)
        assert isinstance(plan.kernel, SGLD)
        free = self._chains(0).restricted()
        self._warnings, reason = (), None if self.short is None else self.short.why_no_response
        if reason is None:
            self._warnings, reason = try_pathwise(free, plan.kernel, plan.settings.observables, by_name=True)
        if reason is not None:
            raise PatterningError(_cannot(reason))
        self._read: list[dict[str, Pathwise]] = []
        self._at_anchor = np.zeros(0)

    def chains_unit(self) -> Leaving:
        """Sample the last round."""
        chains = self.rounds[-1]
        return Leaving(Unit(f"path-{self.label}", path_unit, {"chains": chains}), path_of(chains))

    def units_of(self, stage: str) -> list[Leaving]:
        """The ways back, or the shards along each."""
        if self.lost:
            return []
        if stage == BACK:
            return [Leaving(self._back_unit(work), work.path) for work in self._ways().values()]
        return [Leaving(unit) for work in self._ways().values() for unit in self._shard_units(work)]

    def _look(self) -> None:
        """Refuse, or warn of, kinks between w* and where the first chains were (`capability.missed_on_the_way`)."""
        chains, known = self.rounds[0], self.known[0]
        if known.diverged:
            return
        free, shape = chains.restricted(), (chains.config.replicas, self.component.count(self.plan.task.module))
        reached = seen_of(Blocks(path_of(chains), shape, known.sums, free.anchor), chains.config.steps)
        assert isinstance(self.plan.kernel, SGLD)
        warnings, reason = what_is_missed(missed_on_the_way(free, self.plan.kernel, reached), by_name=True)
        if reason is not None:
            raise PatterningError(_cannot(reason))
        self._warnings = tuple(dict.fromkeys((*self._warnings, *warnings)))

    def _ways(self) -> dict[str, Adjoints]:
        """Every φ of the last round, by name: the component loss first."""
        settings, chains, sums = self.plan.settings, self.rounds[-1], self.known[-1].sums
        own = {name: Adjoints(chains, sums, function) for name, function in settings.observables.items()}
        if own and not settings.component_loss:
            return own
        loss = None
        if isinstance(settings.phi, Tensor):
            samples = self.plan.task.samples(settings.phi)
            shards = self.shards_of(settings.phi, samples)
            loss = LossOf(tuple(shards), tuple(samples.weight[shard.first : shard.last] for shard in shards))
        elif settings.phi == "probes":
            weights = tuple(self.samples.weight[shard.first : shard.last] for shard in self.shards)
            loss = LossOf(tuple(self.shards), weights)
        return {COMPONENT_LOSS: Adjoints(chains, sums, loss), **own}

    def _back_unit(self, work: Adjoints) -> Unit:
        return Unit(f"back-{self.label}", adjoint_unit, {"work": work})

    def _shard_units(self, work: Adjoints) -> list[Unit]:
        back = self.stored(self._back_unit(work))
        units: list[Unit] = []
        for shard in self.shards:
            q = self.samples.weight[shard.first : shard.last]
            reading = Tangents(work, back["sums"], back["at_draw"], shard, q)
            units.append(Unit(f"tangents-{self.label}", tangents_unit, {"reading": reading}))
        return units

    def response(self) -> SampledResponse:
        """From χ by chain of all rounds."""
        self._read.append({name: self._joined_shards(work) for name, work in self._ways().items()})
        if len(self._read) == 1:
            self._look()
            expansion = max(float(np.median(part.expansion)) for part in self._read[0].values())
            if not expansion <= REFUSED_EXPANSION:
                raise PatterningError(_cannot(
                    f"steps do not contract (adjoint expansion {expansion:.2g}, at most {REFUSED_EXPANSION:g} is sound)"
                ))  # fmt: skip
        joined = {name: join_pathwise([part[name] for part in self._read]) for name in self._read[0]}
        return summarise_pathwise(joined, self.samples.weight, self.plan.kernel.n_beta, self._at_anchor)

    def _joined_shards(self, work: Adjoints) -> Pathwise:
        """χ by chain of one φ, from its shards side by side."""
        back = self.stored(self._back_unit(work))
        parts = [self.stored(unit) for unit in self._shard_units(work)]
        self._at_anchor = np.concatenate([part["at_anchor"] for part in parts])
        half, share = self.plan.kernel.step_size / 2, np.sum([part["share"] for part in parts], axis=0)
        chi = -half * (_side_by_side(parts, "tangents") - share[:, None])
        phi = back["phi"]
        if work.phi is None:  # L of all the data: what is shown of it are the probes
            phi = np.sum([part["phi"] for part in parts], axis=0) - self._at_anchor @ self.samples.weight
        of_probes = isinstance(work.phi, LossOf) and isinstance(self.plan.settings.phi, str)
        losses = back["losses"] if of_probes else _side_by_side(parts, "losses")
        arrays = (chi, losses, back["expansion"], phi)
        chi, losses, expansion, phi = (torch.from_numpy(part) for part in arrays)
        first, diverged = self.rounds[-1].first_chain, self.known[-1].diverged
        by_number = {first + place: why for place, why in diverged.items()}
        return pathwise_of(chi, losses, expansion, phi, first, self.plan.config.chains, by_number)

    def judged(self, response: SampledResponse) -> SampledResponse:
        """By the probed losses at w*, with the kinks that the estimator misses."""
        losses = torch.from_numpy(self._at_anchor).to(self.plan.anchor.dtype)
        response = judged(response, losses, self.known[-1].band)
        return replace(response, warnings=(*response.warnings, *self._warnings))


def _side_by_side(parts: list[Arrays], name: str) -> np.ndarray:
    return np.concatenate([part[name] for part in parts], axis=1)


def _cannot(reason: str) -> str:
    return f"the pathwise estimator cannot serve this component: {reason}; use covariance"
