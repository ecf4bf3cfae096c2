"""χ by covariance of one component, from draws that are stored: φ is read first, then the shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from patterning.core.arrays import Floats
from patterning.core.store import Unit
from patterning.core.workers import Workers
from patterning.models.components import Component
from patterning.posterior.band import Band
from patterning.response.draws import chains_unit
from patterning.response.judged import judged
from patterning.response.moments import Moments
from patterning.response.sample import (
    COMPONENT_LOSS,
    Draws,
    SampledResponse,
    join_draws,
    summarise,
    watched_samples,
)
from patterning.response.sharded_jobs import Leaving, ShardedComponent, ShardedPlan
from patterning.response.shards import Observed, Reading, mean_loss_unit, observed_unit, sums_unit

OF_PHI, OF_SHARDS = "reading φ", "reading shards"


@dataclass(frozen=True)
class _Phi:
    """φ of one round: `values` (draws, chains, k) and `at_anchor` (k,)."""

    values: Floats
    at_anchor: Floats


class CovarianceComponent(ShardedComponent):
    """Its rounds of draws; the sums of all that were read are kept."""

    stages: ClassVar[tuple[str, ...]] = (OF_PHI, OF_SHARDS)

    def __init__(self, plan: ShardedPlan, component: Component, pool: Workers) -> None:
        super().__init__(plan, component, pool)
        self._phis: list[_Phi] = []
        self._draws: list[Draws] = []

    def chains_unit(self) -> Leaving:
        """Sample the last round."""
        chains = self.rounds[-1]
        return Leaving(Unit(f"chains-{self.label}", chains_unit, {"chains": chains}), chains.path)

    def units_of(self, stage: str) -> list[Leaving]:
        """What φ is made of, or the shards."""
        if self.lost:
            return []
        return [Leaving(unit) for unit in (self._phi_units() if stage == OF_PHI else self._sums_units())]

    def _of_probes(self) -> bool:
        """Whether the component loss of the probed samples is an observable."""
        settings = self.plan.settings
        return isinstance(settings.phi, str) and (settings.component_loss or not settings.observables)

    def _phi_units(self) -> list[Unit]:
        """What φ of the last round is made of: the observables first."""
        chains, sums, settings = self.rounds[-1], self.known[-1].sums, self.plan.settings
        rows = settings.phi if isinstance(settings.phi, Tensor) and settings.component_loss else None
        units: list[Unit] = []
        if settings.observables or rows is not None:
            observed = Observed(chains, sums, dict(settings.observables), rows)
            units.append(Unit(f"phi-{self.label}", observed_unit, {"observed": observed}))
        for shard in self.shards if self._of_probes() else ():
            reading = Reading(chains, sums, shard, self.samples.weight[shard.first : shard.last])
            units.append(Unit(f"loss-{self.label}", mean_loss_unit, {"reading": reading}))
        return units

    def _phi(self) -> _Phi:
        """φ of the last round: the component loss first."""
        if len(self._phis) < len(self.rounds):
            parts = [self.stored(unit) for unit in self._phi_units()]
            losses = parts[-len(self.shards) :] if self._of_probes() else []
            rest = parts[: len(parts) - len(losses)]
            phi, start = [part["phi"] for part in rest], [part["phi_anchor"] for part in rest]
            if losses:
                mean = np.sum([part["phi"] - part["phi_anchor"] for part in losses], axis=0)
                phi, start = [mean[..., None], *phi], [np.zeros(1), *start]
            self._phis.append(_Phi(np.concatenate(phi, axis=-1), np.concatenate(start)))
        return self._phis[-1]

    def _sums_units(self) -> list[Unit]:
        """The shards of the last round."""
        phi, watched, units = self._phi(), watched_samples(len(self.samples)), list[Unit]()
        for shard in self.shards:
            own = watched[(watched >= shard.first) & (watched < shard.last)] - shard.first
            reading = Reading(
                self.rounds[-1], self.known[-1].sums, shard, None, phi.values, phi.at_anchor,
                self.plan.settings.batches, own,
            )  # fmt: skip
            units.append(Unit(f"sums-{self.label}", sums_unit, {"reading": reading}))
        return units

    def _names(self) -> Sequence[str]:
        """Of the rows."""
        settings = self.plan.settings
        own = self._of_probes() or (isinstance(settings.phi, Tensor) and settings.component_loss)
        return (*([COMPONENT_LOSS] if own else []), *settings.observables)

    def response(self) -> SampledResponse:
        """From the sums of all rounds."""
        self._draws.append(self._draws_of_round())
        return summarise(join_draws(self._draws), tuple(self._names()), self.samples.weight, self.plan.kernel.n_beta)

    def judged(self, response: SampledResponse) -> SampledResponse:
        """By the probed losses at w*."""
        at_anchor = join_draws(self._draws).moments.at_anchor
        losses, band = torch.from_numpy(at_anchor).to(self.plan.anchor.dtype), self.known[-1].band
        return judged(response, losses, Band(band.loss, band.note))

    def _draws_of_round(self) -> Draws:
        """The last round's shards, side by side."""
        current, chains = self.known[-1], self.plan.config.chains
        parts, first = [self.stored(unit) for unit in self._sums_units()], self.rounds[-1].first_chain
        excluded = dict(current.diverged)
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
        return Draws(
            moments=moments.select(kept),
            phi_trace=self._phi().values[:, kept],
            loss_trace=np.concatenate([part["loss_trace"] for part in parts], axis=2)[:, kept],
            watched=watched_samples(len(self.samples)),
            step_losses=current.losses[:, kept],
            excluded={first + c: excluded[c] for c in sorted(excluded)},
        )
