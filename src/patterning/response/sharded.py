"""χ by component from chains that are sampled once and read in shards: what is run, and how the parts are joined."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError
from patterning.core.samples import Samples
from patterning.core.store import Arrays, Unit
from patterning.core.task import Task
from patterning.core.workers import Workers
from patterning.models.components import Component
from patterning.models.probe import shard_rows
from patterning.posterior.band import Band, advise
from patterning.posterior.chains import ChainConfig, Kernel
from patterning.response.draws import Chains, Sampled, chains_unit, sampled
from patterning.response.moments import Moments
from patterning.response.one_component import LostError, Settings, judged, stop_note, whose_phi
from patterning.response.sample import (
    COMPONENT_LOSS,
    Draws,
    SampledResponse,
    join_draws,
    summarise,
    watched_samples,
)
from patterning.response.shards import Observed, Reading, Shard, mean_loss_unit, observed_unit, sums_unit


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


def sharded_response(
    plan: ShardedPlan, components: Sequence[Component], pool: Workers
) -> tuple[dict[str, SampledResponse], dict[str, str]]:
    """χ by component, and refusals. Covariance only.

    Each round samples all components that go on, reads φ, and then the shards: every chain set and every (component,
    shard) is a unit of work. Results are joined one component at a time.
    """
    samples = plan.task.samples(plan.settings.rows)
    jobs = {component.name: _Component(plan, component, samples, pool) for component in components}
    found: dict[str, SampledResponse] = {}
    refused: dict[str, str] = {}
    for number in range(plan.settings.rounds):
        rest = [job for name, job in jobs.items() if name not in found and name not in refused]
        for job in rest:
            job.start(number)
        _sample(rest, pool)
        for stage, units in (("φ", _Component.phi_units), ("shards", _Component.sums_units)):
            pool.complete([unit for job in rest for unit in units(job)], f"reading {stage}, round {number + 1}")
        for job in rest:
            try:
                response = job.joined(number + 1)
            except PatterningError as error:
                refused[job.component.name] = str(error)
                continue
            if response is not None:
                found[job.component.name] = response
    return {name: found[name] for name in jobs if name in found}, refused


def _sample(jobs: "Sequence[_Component]", pool: Workers) -> None:
    """Run the chains whose positions are not there."""
    for job in jobs:
        if not job.rounds[-1].chains.path.exists():
            pool.run.file_of(job.chains_unit()).unlink(missing_ok=True)
    pool.complete([job.chains_unit() for job in jobs], "sampling")
    for job in jobs:
        job.rounds[-1].sampled = sampled(_stored(pool, job.chains_unit()))


def _stored(pool: Workers, unit: Unit) -> Arrays:
    arrays = pool.run.load(unit)
    return pool.run.compute(unit) if arrays is None else arrays  # None: damaged since it was written


@dataclass
class _Round:
    """A round of chains of a component, and what has become of it."""

    chains: Chains
    sampled: Sampled | None = None
    phi: Floats | None = None
    phi_anchor: Floats | None = None


class _Component:
    """One component: its shards, and the units of its rounds."""

    def __init__(self, plan: ShardedPlan, component: Component, samples: Samples, pool: Workers) -> None:
        self.plan, self.component, self.samples, self.pool = plan, component, samples, pool
        self.rounds: list[_Round] = []
        self.known: list[Draws] = []
        self.label = re.sub("[^a-z0-9]+", "-", component.name.lower())
        free = self._chains(0).restricted()
        self.shards = self._shards(shard_rows(free, plan.settings.rows, plan.config.chains, plan.shards))

    def _chains(self, number: int) -> Chains:
        plan = self.plan
        return Chains(
            plan.task, plan.anchor, self.component, plan.kernel, plan.config, plan.settings.loss_band,
            number * plan.config.chains, plan.key, Path(self.pool.run.path).resolve() / "draws",
        )  # fmt: skip

    def _shards(self, parts: Sequence[Tensor]) -> list[Shard]:
        """Those of the parts that hold samples."""
        cells = np.cumsum([0, *(len(part) * self.plan.task.samples_per_row for part in parts)])
        ends = np.searchsorted(self.samples.place, cells)
        whole = len(self.plan.settings.rows)
        found = [Shard(part, whole, int(a), int(b)) for part, a, b in zip(parts, ends[:-1], ends[1:], strict=True)]
        return [shard for shard in found if shard.last > shard.first]

    def start(self, number: int) -> None:
        """Another round."""
        self.rounds.append(_Round(self._chains(number)))

    def chains_unit(self) -> Unit:
        """Sample the last round."""
        return Unit(f"chains-{self.label}", chains_unit, {"chains": self.rounds[-1].chains})

    def _of_probes(self) -> bool:
        """Whether the component loss of the probed samples is an observable."""
        settings = self.plan.settings
        return isinstance(settings.phi, str) and (settings.component_loss or not settings.observables)

    def _lost(self) -> bool:
        """Whether fewer than 2 chains of the last round are left, which are not worth reading."""
        current = self.rounds[-1].sampled
        assert current is not None
        return self.plan.config.chains - len(current.diverged) < 2

    def phi_units(self) -> list[Unit]:
        """What φ of the last round is made of: the observables first."""
        current, settings = self.rounds[-1], self.plan.settings
        assert current.sampled is not None
        if self._lost():
            return []
        rows = settings.phi if isinstance(settings.phi, Tensor) and settings.component_loss else None
        units: list[Unit] = []
        if settings.observables or rows is not None:
            observed = Observed(current.chains, current.sampled.sums, dict(settings.observables), rows)
            units.append(Unit(f"phi-{self.label}", observed_unit, {"observed": observed}))
        for shard in self.shards if self._of_probes() else ():
            q = self.samples.weight[shard.first : shard.last]
            reading = Reading(current.chains, current.sampled.sums, shard, q)
            units.append(Unit(f"loss-{self.label}", mean_loss_unit, {"reading": reading}))
        return units

    def _phi(self) -> tuple[Floats, Floats]:
        """φ (draws, chains, k) and φ(w*) (k,) of the last round: the component loss first."""
        current = self.rounds[-1]
        if current.phi is None or current.phi_anchor is None:
            parts = [_stored(self.pool, unit) for unit in self.phi_units()]
            losses = parts[-len(self.shards) :] if self._of_probes() else []
            rest = parts[: len(parts) - len(losses)]
            phi, start = [part["phi"] for part in rest], [part["phi_anchor"] for part in rest]
            if losses:
                mean = np.sum([part["phi"] - part["phi_anchor"] for part in losses], axis=0)
                phi, start = [mean[..., None], *phi], [np.zeros(1), *start]
            current.phi, current.phi_anchor = np.concatenate(phi, axis=-1), np.concatenate(start)
        return current.phi, current.phi_anchor

    def sums_units(self) -> list[Unit]:
        """The shards of the last round."""
        current = self.rounds[-1]
        if self._lost():
            return []
        assert current.sampled is not None
        phi, start = self._phi()
        watched, units = watched_samples(len(self.samples)), []
        for shard in self.shards:
            own = watched[(watched >= shard.first) & (watched < shard.last)] - shard.first
            reading = Reading(
                current.chains, current.sampled.sums, shard, None, phi, start, self.plan.settings.batches, own
            )  # fmt: skip
            units.append(Unit(f"sums-{self.label}", sums_unit, {"reading": reading}))
        return units

    def names(self) -> tuple[str, ...]:
        """Of the rows."""
        own = self._of_probes() or (isinstance(self.plan.settings.phi, Tensor) and self.plan.settings.component_loss)
        return (*([COMPONENT_LOSS] if own else []), *self.plan.settings.observables)

    def joined(self, rounds: int) -> SampledResponse | None:
        """χ from all rounds, or None where another is wanted; raises where it is no result."""
        plan, settings = self.plan, self.plan.settings
        current = self.rounds[-1].sampled
        assert current is not None
        try:
            if self._lost():
                why = "; ".join(list(current.diverged.values())[:3])
                raise LostError(
                    f"{len(current.diverged)} of {plan.config.chains} chains diverged and χ needs 2 ({why})"
                )
            draws = join_draws(self._draws())
            response = summarise(draws, self.names(), self.samples.weight, plan.kernel.n_beta)
            if (note := stop_note(response, settings, rounds)) is None:
                return None
            losses = torch.from_numpy(draws.moments.at_anchor).to(plan.anchor.dtype)
            response = judged(response, losses, Band(current.band.loss, current.band.note))
        except LostError as error:
            free = self.rounds[-1].chains.restricted()
            advice = advise(free, free.anchor, plan.kernel, plan.config, current.band.loss)
            raise PatterningError(f"{error}: {advice}") from None
        note = "; ".join(filter(None, [self.component.note, note]))
        return replace(response, note=note, kernel=plan.kernel, phi=whose_phi(settings))

    def _draws(self) -> list[Draws]:
        """Each round's shards, side by side; the last round is read from the disk and kept."""
        current = self.rounds[-1]
        assert current.sampled is not None
        parts = [_stored(self.pool, unit) for unit in self.sums_units()]
        chains, first = self.plan.config.chains, current.chains.first_chain
        excluded = dict(current.sampled.diverged)
        for part in parts:
            for c in part["undefined"].tolist():
                why = f"chain {first + c}: an observable or a sample's loss is NaN or infinite at a draw"
                excluded.setdefault(c, why)
        kept = [c for c in range(chains) if c not in excluded]
        moments = Moments(
            count=parts[0]["count"],
            phi=parts[0]["phi"],
            losses=np.concatenate([part["losses"] for part in parts], axis=2),
            products=np.concatenate([part["products"] for part in parts], axis=3),
            at_anchor=np.concatenate([part["at_anchor"] for part in parts]),
            phi_anchor=parts[0]["phi_anchor"],
        )
        phi, _ = self._phi()
        self.known.append(
            Draws(
                moments=moments.select(kept),
                phi_trace=phi[:, kept],
                loss_trace=np.concatenate([part["loss_trace"] for part in parts], axis=2)[:, kept],
                watched=watched_samples(len(self.samples)),
                step_losses=current.sampled.losses[:, kept],
                excluded={first + c: excluded[c] for c in sorted(excluded)},
            )
        )
        return self.known
