"""From a checkpoint to χ in one call: sample the localized posterior and measure any observables."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.anchors import check_anchor
from patterning.core.errors import PatterningError, check_whole
from patterning.core.flat import FlatTask, evaluate
from patterning.core.task import Task
from patterning.posterior.band import Band, advise, find_band
from patterning.posterior.chains import ChainConfig, Kernel, run_chains
from patterning.posterior.diagnostics import Diagnostics, diagnose
from patterning.posterior.resolution import below_resolution, resolution
from patterning.response.moments import Moments, Tally, join
from patterning.response.observables import check_names, evaluated, try_observables
from patterning.response.susceptibility import Susceptibility, susceptibility

Floats = NDArray[np.float64]
COMPONENT_LOSS = "component loss"
"""The default observable of a component: L(w) - L(w*), with L the mean loss of the probed samples."""
DifferentiableObservable = Callable[[Tensor], Tensor]
"""φ: parameters (r, P) → (r,)."""


@dataclass(frozen=True)
class OfLosses:
    """An observable that the sample losses determine: `function` takes ℓ(w) (r, n) float64 and returns (r,)."""

    function: Callable[[Tensor], Tensor]


Observable = DifferentiableObservable | OfLosses


@dataclass(frozen=True)
class Readout:
    """What is read at every draw: `losses` maps parameters (r, P) to (r, n); `weights` q (n,) sum to 1.

    `at_anchor` (n,): the losses at w*, where they are known.
    """

    losses: Callable[[Tensor], Tensor]
    weights: Floats
    at_anchor: Tensor | None = None

    @classmethod
    def of(cls, task: FlatTask) -> "Readout":
        """Every sample of the task."""
        q = task.base_weights.cpu().numpy().astype(np.float64)
        return cls(lambda flat: evaluate(task.losses, flat, len(q)), q)


@dataclass(frozen=True)
class Draws:
    """What chains leave behind: their streamed sums, and traces. Excluded chains are in `excluded` only, by name.

    `moments` and the last axis but one of the traces hold the kept chains: `phi_trace` (draws, chains, k), `loss_trace`
    (draws, chains, watched) of the samples `watched`, `step_losses` (steps, chains) of the minibatches.
    """

    moments: Moments
    phi_trace: Floats
    loss_trace: Floats
    watched: NDArray[np.int64]
    step_losses: NDArray[np.float32]
    excluded: dict[int, str]


@dataclass(frozen=True)
class SampledResponse:
    """χ with what it was made of.

    `traces` φ(w) at each draw, (draws, kept chains), by observable; `diagnostics` of each; `sample_diagnostics` of ℓ_j
    for a few samples j, whose traces are `watched_traces` (draws, kept chains, watched); `excluded` chain number → why:
    those chains are in none of the other fields. `rise` is E[L] - L(w*) in nats. `moments` are the sums that χ was made
    of, None where another estimator made it; `note` says why sampling stopped where that was left open.
    `expansion` is the largest growth of the adjoint (pathwise only); `warnings` say what a reader of χ should know.
    `kernel`: that of the chains, None where it was not noted. `phi`: whose mean loss the component loss is, "probes",
    "data" or "rows" (others than the probed ones).
    """

    susceptibility: Susceptibility
    traces: dict[str, Floats]
    diagnostics: dict[str, Diagnostics]
    sample_diagnostics: dict[int, Diagnostics]
    watched_traces: Floats
    excluded: dict[int, str]
    rise: float
    moments: Moments | None = None
    estimator: str = "covariance"
    note: str = ""
    expansion: float = math.nan
    warnings: tuple[str, ...] = ()
    kernel: Kernel | None = None
    phi: str = "probes"


def join_draws(parts: Sequence[Draws]) -> Draws:
    """The chains of several calls around the same w*."""
    return Draws(
        moments=join([part.moments for part in parts]),
        phi_trace=np.concatenate([part.phi_trace for part in parts], axis=1),
        loss_trace=np.concatenate([part.loss_trace for part in parts], axis=1),
        watched=parts[0].watched,
        step_losses=np.concatenate([part.step_losses for part in parts], axis=1),
        excluded={chain: why for part in parts for chain, why in part.excluded.items()},
    )


def sample_draws(
    task: FlatTask,
    anchor: Tensor,
    observables: Mapping[str, Observable],
    kernel: Kernel,
    chains: ChainConfig,
    *,
    batches: int = 4,
    loss_band: float = math.inf,
    watched: int = 8,
    first_chain: int = 0,
    readout: Readout | None = None,
) -> Draws:
    """Run chains around `anchor` w* (P,) and sum what χ needs; arguments as in `sample_response`.

    `readout` says which samples χ has columns for: every row of the task, unless stated.
    """
    if not observables:
        raise PatterningError("there is no observable: χ has a row for each")
    check_whole("batches", batches, 1)
    check_whole("watched", watched, 1)
    if math.isnan(loss_band):
        raise PatterningError("loss_band is NaN: it is the loss in nats past which a chain is left out")
    if batches < 2 or chains.draws < max(4, batches):
        raise PatterningError(
            f"{chains.draws} draws in {batches} batches give no standard error: use at least 2 batches, and 4 draws or "
            "as many as batches"
        )
    readout = readout or Readout.of(task)
    n, origin = len(readout.weights), anchor.detach()

    def read(flat: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            losses = (readout.losses(flat) if known is None else known).double()
            phi = [
                evaluated(name, observable.function, losses)
                if isinstance(observable, OfLosses)
                else evaluated(name, observable, flat)
                for name, observable in observables.items()
            ]
        return torch.stack([value.double() for value in phi], dim=1), losses

    known = None if readout.at_anchor is None else readout.at_anchor[None]
    phi_anchor, at_anchor = (values[0] for values in read(origin[None], known))
    for name, value in zip(observables, phi_anchor.tolist(), strict=True):
        if not np.isfinite(value):
            raise PatterningError(f"observable {name!r} is {value} at w*")
    if not bool(at_anchor.isfinite().all()):
        bad = int((~at_anchor.isfinite()).nonzero()[0])
        raise PatterningError(f"the loss of sample {bad} is NaN or infinite at w*")

    some = watched_samples(n, watched)
    on_device = torch.from_numpy(some).to(at_anchor.device)
    tally = Tally(chains.chains, chains.draws, batches, at_anchor, phi_anchor, on_device)
    trace = run_chains(
        task, origin, kernel, chains, lambda draw, flat: tally.add(draw, *read(flat)), loss_band=loss_band,
        first_chain=first_chain,
    )  # fmt: skip
    undefined = {
        c: f"chain {first_chain + c}: an observable or a sample's loss is NaN or infinite at draw {draw}"
        for c, draw in tally.undefined().items()
    }
    excluded = dict(sorted((undefined | trace.diverged).items()))
    kept = [c for c in range(chains.chains) if c not in excluded]
    phi_trace, loss_trace = tally.traces()
    return Draws(
        moments=tally.moments().select(kept),
        phi_trace=phi_trace[:, kept],
        loss_trace=loss_trace[:, kept],
        watched=some,
        step_losses=trace.losses[:, kept].cpu().numpy(),
        excluded={first_chain + c: why for c, why in excluded.items()},
    )


def watched_samples(count: int, most: int = 8) -> NDArray[np.int64]:
    """Which of `count` samples are diagnosed: at most so many, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))


def sample_response(
    task: FlatTask,
    anchor: Tensor,
    observables: Mapping[str, Observable],
    kernel: Kernel,
    chains: ChainConfig,
    *,
    batches: int = 4,
    loss_band: float | None = None,
    watched: int = 8,
) -> SampledResponse:
    """χ of `observables` (name → φ) for every sample, from chains around `anchor` w* (P,).

    Each chain's draws are cut into `batches` for the standard errors. A chain is excluded by name when its loss turns
    NaN or passes `loss_band` (by default the loss of a model that knows nothing, `posterior.band`; none for a task
    without a module), or when an observable or a sample's loss is not finite at a draw. `watched` samples,
    evenly spaced, are diagnosed. Raises `PatterningError` for settings that leave no error bar, an observable of the
    wrong shape or that does not depend on the parameters, a w* that is no finite row of the task's, an undefined value
    at w*, fewer than 2 chains left, or a loss that is another one afterwards.
    """
    anchor = check_anchor(task, anchor)
    if chains.chains < 2:
        raise PatterningError(f"{chains.chains} chain gives no error bar for χ: use at least 2")
    check_names(observables)
    try_observables(
        {name: phi for name, phi in observables.items() if not isinstance(phi, OfLosses)},
        anchor,
        getattr(task, "data", None),
    )
    band = Band(math.inf if loss_band is None else loss_band)
    if loss_band is None and isinstance(task, Task):
        band = find_band(task, anchor, chains.batch_size, kernel.n_beta)
    draws = sample_draws(
        task, anchor, observables, kernel, chains, batches=batches, loss_band=band.loss, watched=watched
    )
    weights = Readout.of(task).weights
    if isinstance(task, Task):
        task.check_still_the_same()
    try:
        found = summarise(draws, tuple(observables), weights, kernel.n_beta)
    except PatterningError as error:
        raise PatterningError(f"{error}: {advise(task, anchor, kernel, chains, band.loss)}") from None
    rounding = below_resolution(found.rise, resolution(draws.moments.at_anchor, weights, anchor.dtype), anchor.dtype)
    warnings = tuple(why for why in (band.note, rounding) if why)
    return replace(found, kernel=kernel, warnings=warnings)


def summarise(found: Draws, observables: tuple[str, ...], weights: Floats, n_beta: float) -> SampledResponse:
    """χ and its diagnostics from what chains left behind; raises `PatterningError` with fewer than 2 chains."""
    kept = len(found.moments.count)
    if kept < 2:
        raise PatterningError(
            f"{len(found.excluded)} of {kept + len(found.excluded)} chains diverged and χ needs 2 "
            f"({'; '.join(list(found.excluded.values())[:3])})"
        )
    result = susceptibility(found.moments, observables, weights, n_beta)
    traces = {name: found.phi_trace[:, :, i] for i, name in enumerate(observables)}
    return SampledResponse(
        susceptibility=result,
        traces=traces,
        diagnostics={name: diagnose(values) for name, values in traces.items()},
        sample_diagnostics={int(j): diagnose(found.loss_trace[:, :, i]) for i, j in enumerate(found.watched)},
        watched_traces=found.loss_trace,
        excluded=found.excluded,
        rise=float((result.mean_losses - found.moments.at_anchor) @ weights),
        moments=found.moments,
    )


def llc_observable(task: FlatTask, anchor: Tensor, n_beta: float) -> OfLosses:
    """φ = nβ (L(w) - L(w*)) on the full data; its posterior mean is the local learning coefficient estimate λ̂(w*)."""
    anchor = check_anchor(task, anchor)
    q = task.base_weights.double().to(anchor.device)
    start = float(evaluate(task.losses, anchor[None], len(q))[0].double() @ q)
    return OfLosses(lambda losses: n_beta * (losses @ q - start))
