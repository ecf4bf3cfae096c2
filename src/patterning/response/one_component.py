"""χ of one component: what it depends on, rounds of chains until it is reliable, and whether it is a result."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.give_back import give_back
from patterning.core.identity import digest
from patterning.core.progress import portion
from patterning.core.store import Arrays, fingerprint
from patterning.core.task import Task
from patterning.models.components import Component
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior.band import Band, advise, find_band
from patterning.posterior.chains import ChainConfig, Kernel
from patterning.posterior.sgld import SGLD
from patterning.posterior.short_chain import ShortChain, step_warnings, try_chain
from patterning.response.adjoint import ModelObservable, ModelReading, ProbeLoss, Reading
from patterning.response.capability import KinkedError, missed_on_the_way, try_pathwise, what_is_missed
from patterning.response.judged import MOST_EXPANSION, LostError, judged
from patterning.response.observables import at_two_places
from patterning.response.packing import pack, pack_refusal
from patterning.response.pathwise import Pathwise, join_pathwise, pathwise_chains, summarise_pathwise
from patterning.response.sample import (
    COMPONENT_LOSS,
    Draws,
    Observable,
    OfLosses,
    Readout,
    SampledResponse,
    join_draws,
    sample_draws,
    summarise,
)
from patterning.response.settling import add_warnings, settling_of
from patterning.response.way_back import DATA

Estimator = Literal["covariance", "pathwise", "auto"]
PhiOf = Literal["probes", "data"]
"""Whose mean loss φ of a component is: the probed samples', or that of all the task's rows."""

REFUSED_EXPANSION = 100.0
"""From here on pathwise χ is no result, even where it was asked for by name."""


@dataclass(frozen=True)
class Settings:
    """What all components share, besides the chains.

    `loss_band` None: `default_band`. `component_loss`: whether χ has a row for it where the estimator must go back
    through the chains once for each row.
    """

    rows: Tensor
    observables: Mapping[str, ModelObservable]
    estimator: Estimator
    phi: PhiOf | Tensor
    reliability: float | None
    rounds: int
    batches: int
    loss_band: float | None
    component_loss: bool = True


@dataclass(frozen=True)
class Work:
    """All that χ of one component depends on; its `fingerprint` keys the cache. `task_key`: the task's fingerprint."""

    task: Task
    anchor: Tensor
    component: Component
    kernel: Kernel
    chains: ChainConfig
    settings: Settings
    task_key: str

    @property
    def fingerprint(self) -> str:
        """Covers weights, data, mask, loss, observables and settings."""
        own = self.settings
        masks = {name: "all" if mask is None else mask.cpu().numpy() for name, mask in self.component.masks.items()}
        settings = [type(self.kernel).__name__, asdict(self.kernel), asdict(self.chains), own.estimator, own.batches]
        settings += [own.reliability, own.rounds, str(own.loss_band), own.component_loss]
        settings += [] if self.anchor.device.type == "cpu" else ["numbers of a device"]
        phi = own.phi if isinstance(own.phi, str) else own.phi.numpy()
        values = [at_two_places(function, self.anchor) for function in own.observables.values()]
        return fingerprint(
            self.task_key, self.anchor.cpu().numpy(), masks, own.rows.numpy(), phi, digest(dict(own.observables)),
            np.array(values, dtype=np.float32), settings,
        )  # fmt: skip


def component_unit(*, work: Work, scratch: Path) -> Arrays:
    """`sample_component` as a unit of work; a refusal is a result as well, so that other components go on."""
    del scratch  # a killed component is sampled again whole
    try:
        return pack(sample_component(work))
    except PatterningError as error:
        return pack_refusal(str(error))


def sample_component(work: Work, free: Restricted | None = None) -> SampledResponse:
    """χ of one component. Raises `PatterningError` where what was sampled is no result, with what to change.

    `free`: the component's `Restricted`, where the caller has made it already.
    """
    if free is None:
        give_back(work.task.num_parameters)  # of the component before
    free = free or Restricted(work.task, work.anchor, work.component)
    probe = Probe(free, work.settings.rows, work.chains.replicas)
    short = try_chain(free, free.anchor, work.kernel, work.chains)
    band = Band(math.inf if work.settings.loss_band is None else work.settings.loss_band)
    if work.settings.loss_band is None:
        everything = len(work.settings.rows) == len(work.task.base_weights)
        losses = probe.at_anchor if everything else None  # a few rows may have another loss than the minibatches
        band = find_band(work.task, work.anchor, work.chains.batch_size, work.kernel.n_beta, losses)
    before = _values(work, free)
    try:
        sampled = _sample(work, free, probe, band.loss, short)
        work.task.check_still_the_same()
        _check_still_the_same(before, _values(work, free))
        response = judged(sampled, probe.at_anchor, band)
        lines = step_warnings(short, response.rise, work.chains)
        functions = work.settings.observables
        settling = settling_of(free, work.kernel, work.chains, functions, response)
        response = add_warnings(response, settling, [*lines, *short_of(response, work.settings)])
    except LostError as error:
        raise PatterningError(f"{error}: {advise(free, free.anchor, work.kernel, work.chains, band.loss)}") from None
    note = "; ".join(filter(None, [work.component.note, response.note]))
    return replace(response, note=note, kernel=work.kernel, phi=whose_phi(work.settings))


def _values(work: Work, free: Restricted) -> dict[str, float]:
    """Every observable at w*."""
    row = free.expand(free.anchor[None])
    return {name: float(function(row).detach()) for name, function in work.settings.observables.items()}


def _check_still_the_same(before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """Raise `PatterningError` for an observable that is another function than it was: it keeps state of its own."""
    for name, value in before.items():
        if abs(after[name] - value) > 1e-6 * max(abs(value), abs(after[name])):
            raise PatterningError(
                f"observable {name!r} was {value:.7g} at w* before sampling and is {after[name]:.7g} there now: it "
                "keeps a state that calls change (a counter, a running mean), so that what was sampled is no result; "
                "compute it from the module alone"
            )


def whose_phi(settings: Settings) -> str:
    """Whose loss φ is: rows that are the probed ones in another order are the probes."""
    if isinstance(settings.phi, str):
        return settings.phi
    same = torch.equal(settings.phi.cpu().sort().values, settings.rows.cpu().sort().values)
    return "probes" if same else "rows"


def _sample(work: Work, free: Restricted, probe: Probe, band: float, short: ShortChain | None) -> SampledResponse:
    if work.settings.estimator == "covariance":
        return _by_covariance(work, free, probe, band, "")
    assert isinstance(work.kernel, SGLD)
    by_name = work.settings.estimator == "pathwise"
    warnings, reason = (), None if short is None else short.why_no_response
    if reason is None:
        warnings, reason = try_pathwise(free, work.kernel, work.settings.observables, by_name=by_name)
    if reason is None:
        response, reason = _by_pathwise(work, free, probe, band)
        if response is not None:
            return replace(response, warnings=(*response.warnings, *warnings))
    if by_name:
        raise PatterningError(f"the pathwise estimator cannot serve this component: {reason}; use covariance or auto")
    chains = replace(work.chains, chains=work.chains.replicas, antithetic=False)
    of = "; φ is of the probed samples" if isinstance(work.settings.phi, str) and work.settings.phi == "data" else ""
    return _by_covariance(replace(work, chains=chains), free, probe, band, f"not pathwise: {reason}{of}; ")


def _by_pathwise(work: Work, free: Restricted, probe: Probe, band: float) -> tuple[SampledResponse | None, str]:
    """χ, or None and why the adjoint cannot give it."""
    kernel, chains, settings, q = work.kernel, work.chains, work.settings, probe.samples.weight
    assert isinstance(kernel, SGLD)
    readings = _readings(work, free, probe)
    rounds, warnings = list[dict[str, Pathwise]](), list[str]()

    def look(reached: Tensor) -> None:
        """Kinks between w* and where the chains were, before the way back is taken."""
        missed = missed_on_the_way(free, kernel, reached)
        more, why = what_is_missed(missed, by_name=settings.estimator == "pathwise")
        warnings.extend(more)
        if why is not None:
            raise KinkedError(why)

    for number in range(settings.rounds):
        with portion(number / settings.rounds, (number + 1) / settings.rounds):
            try:
                part = pathwise_chains(
                    free, probe, q, kernel, chains, readings, loss_band=band, first_chain=number * chains.chains,
                    on_way=None if number else look,
                )  # fmt: skip
            except KinkedError as error:
                return None, str(error)
            rounds.append(part)
        if number == 0:
            expansion = max(float(np.median(part.expansion)) for part in rounds[0].values())
            limit = MOST_EXPANSION if settings.estimator == "auto" else REFUSED_EXPANSION
            if not expansion <= limit:
                return None, f"steps do not contract (adjoint expansion {expansion:.2g}, at most {limit:g} is sound)"
        joined = {name: join_pathwise([part[name] for part in rounds]) for name in readings}
        try:
            response = summarise_pathwise(joined, q, kernel.n_beta, probe.at_anchor.double().cpu().numpy())
        except PatterningError as error:
            raise LostError(str(error)) from None
        if (note := stop_note(response, settings, number + 1)) is not None:
            known = tuple(dict.fromkeys((*response.warnings, *warnings)))
            return replace(response, note=f"{response.note}; {note}", warnings=known), ""
    raise AssertionError("the last round stops")


def _readings(work: Work, free: Restricted, probe: Probe) -> dict[str, Reading | str]:
    """Every φ, by name: the component loss first."""
    phi, device = work.settings.phi, free.anchor.device
    own = {name: ModelReading(name, free, function) for name, function in work.settings.observables.items()}
    if own and not work.settings.component_loss:
        return dict(own)
    if isinstance(phi, Tensor):
        other = Probe(free, phi, work.chains.replicas)
        loss: Reading | str = ProbeLoss(other, torch.from_numpy(other.samples.weight).to(device), same=False)
    elif phi == "data":
        loss = DATA
    else:
        loss = ProbeLoss(probe, torch.from_numpy(probe.samples.weight).to(device))
    return {COMPONENT_LOSS: loss, **own}


def _by_covariance(work: Work, free: Restricted, probe: Probe, band: float, left: str) -> SampledResponse:
    kernel, chains, settings, q = work.kernel, work.chains, work.settings, probe.samples.weight
    phis = _observables(work, free, probe)
    draws: list[Draws] = []
    for number in range(settings.rounds):
        with portion(number / settings.rounds, (number + 1) / settings.rounds):
            draws.append(
                sample_draws(
                    free,
                    free.anchor,
                    phis,
                    kernel,
                    chains,
                    batches=settings.batches,
                    loss_band=band,
                    first_chain=number * chains.chains,
                    readout=Readout(probe, q, probe.at_anchor),
                )
            )
        try:
            response = summarise(join_draws(draws), tuple(phis), q, kernel.n_beta)
        except PatterningError as error:
            raise LostError(left + str(error)) from None
        if (note := stop_note(response, settings, number + 1)) is not None:
            return replace(response, note=left + note)
    raise AssertionError("the last round stops")


def _observables(work: Work, free: Restricted, probe: Probe) -> dict[str, Observable]:
    weights, phi = torch.from_numpy(probe.samples.weight).to(free.anchor.device), work.settings.phi
    start = float(probe.at_anchor.double() @ weights)
    loss: Observable
    if isinstance(phi, Tensor):
        other = Probe(free, phi, work.chains.replicas)
        own = torch.from_numpy(other.samples.weight).to(free.anchor.device)
        first = float(other.at_anchor.double() @ own)

        def loss_of_rows(flat: Tensor) -> Tensor:
            return other(flat).double() @ own - first

        loss = loss_of_rows
    else:
        loss = OfLosses(lambda losses: losses @ weights - start)

    phis: dict[str, Observable] = {COMPONENT_LOSS: loss}
    for name, function in work.settings.observables.items():
        phis[name] = lambda flat, function=function: function(free.expand(flat))
    return phis


def short_of(response: SampledResponse, settings: Settings) -> tuple[str, ...]:
    """A warning, where sampling ended before the reliability that was asked for."""
    value = _least_reliability(response, settings)
    if settings.reliability is None or not value < settings.reliability:
        return ()
    return (
        f"sampling ended at reliability {value:.2f}, under the {settings.reliability:g} that was asked for: more "
        "rounds (budget, --rounds) or draws raise it",
    )


def _least_reliability(response: SampledResponse, settings: Settings) -> float:
    """Of the rows that were asked for, without those that are the same for all samples; NaN where no other is left."""
    values, chi = response.susceptibility.reliability(), response.susceptibility.chi
    spread = {name for name, row in zip(values, chi, strict=True) if np.ptp(row) > 0}
    asked = [values[name] for name in settings.observables or values if name in spread]
    return min(asked, default=float("nan"))


def stop_note(response: SampledResponse, settings: Settings, rounds: int) -> str | None:
    """Why sampling stops after so many rounds, or None when it goes on."""
    value = _least_reliability(response, settings)
    how = response.susceptibility.how_reliability_is_made()
    if settings.reliability is not None and value >= settings.reliability:
        return f"reliability {value:.2f} reached after {rounds} round(s){how}"
    if rounds == settings.rounds:
        return f"budget of {rounds} round(s) used, reliability {value:.2f}{how}"
    return None
