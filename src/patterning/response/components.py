r"""χ of every component of a model in one call: each is sampled with all other coordinates clamped (SPEC §2-4).

The default observable is the component loss φ_C(w) = L(w) - L(w*) [SI], with L the mean over the probed samples.
Estimators, by name: `covariance`; `pathwise` (see `response.pathwise`); and `devinterp2`, the form of devinterp 2,

.. math:: E_C[\phi L] - E_C[\phi \ell_j] - E_C[\phi]\,(E_{full}[L] - E_{full}[\ell_j])

which holds a baseline common to all components, 50-5,000 times its covariance part in one measurement (PEER.md §2.4).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.errors import PatterningError
from patterning.models.components import Component, ComponentLike, find_component
from patterning.models.module import LossTask, describe_code
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior.chains import ChainConfig, Kernel
from patterning.posterior.sgld import SGLD
from patterning.response.devinterp2 import devinterp2_susceptibility
from patterning.response.pathwise import Pathwise, PhiOf, join_pathwise, pathwise_chains, summarise_pathwise
from patterning.response.sample import (
    Draws,
    Observable,
    OfLosses,
    Readout,
    SampledResponse,
    join_draws,
    sample_draws,
    summarise,
)
from patterning.response.store import pack, unpack
from patterning.store import Arrays, Unit, fingerprint
from patterning.workers import Workers

Floats = NDArray[np.float64]
Estimator = Literal["covariance", "pathwise", "auto"]
MOST_EXPANSION = 10.0
"""`auto` leaves the pathwise estimator for a component whose adjoint outgrows a convex loss's by this factor."""
ModelObservable = Callable[[Tensor], Tensor]
"""φ: full parameter rows (r, P) of the task → (r,)."""
COMPONENT_LOSS = "component loss"


@dataclass(frozen=True)
class ComponentResponse:
    """What each component answers to each probed sample.

    `by_component` maps its name to χ, diagnostics, excluded chains and rise. `rows`, `positions` (n,): where each
    column of χ lies in the task's data (row, and sample within the row). `n_free` free coordinates by component. `phi`:
    whose loss the component loss is.
    """

    by_component: Mapping[str, SampledResponse]
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    n_free: Mapping[str, int]
    estimator: str
    kernel: Kernel
    chains: ChainConfig
    fingerprint: str
    phi: PhiOf = "probes"

    def chi(self, observable: str = COMPONENT_LOSS) -> Floats:
        """χ (components, n) of one observable."""
        return np.stack([found.susceptibility.row(observable) for found in self.by_component.values()])

    def standard_error(self, observable: str = COMPONENT_LOSS) -> Floats:
        """Standard errors (components, n)."""
        return np.stack([self._pick(found, found.susceptibility.standard_error, observable) for found in self._all()])

    def half_width(self, level: float = 0.95, observable: str = COMPONENT_LOSS) -> Floats:
        """χ ± this (components, n) is an interval for each entry."""
        return np.stack(
            [self._pick(found, found.susceptibility.half_width(level), observable) for found in self._all()]
        )

    def reliability(self, observable: str = COMPONENT_LOSS) -> dict[str, float]:
        """Split-half reliability by component."""
        return {name: found.susceptibility.reliability()[observable] for name, found in self.by_component.items()}

    def devinterp2(self, observable: str = COMPONENT_LOSS) -> dict[str, Floats]:
        """χ (n,) by component in devinterp's form; needs the covariance estimator and the component `full`."""
        sums = {name: found.moments for name, found in self.by_component.items()}
        full = sums.get("full")
        if full is None:
            raise PatterningError("devinterp2 needs the component 'full', sampled with the covariance estimator")
        result = {}
        for name, found in self.by_component.items():
            own, q = sums[name], found.susceptibility.base_weights
            assert own is not None
            row = found.susceptibility.observables.index(observable)
            result[name] = devinterp2_susceptibility(own, full, q)[row]
        return result

    def _all(self) -> Iterable[SampledResponse]:
        return self.by_component.values()

    @staticmethod
    def _pick(found: SampledResponse, values: Floats, observable: str) -> Floats:
        return values[found.susceptibility.observables.index(observable)]


def component_response(
    task: LossTask,
    anchor: Tensor,
    components: Sequence[ComponentLike],
    kernel: Kernel,
    chains: ChainConfig,
    *,
    probes: Tensor | None = None,
    observables: Mapping[str, ModelObservable] | None = None,
    estimator: Estimator = "covariance",
    phi: PhiOf = "probes",
    reliability: float | None = None,
    rounds: int = 1,
    batches: int = 4,
    loss_band: float = float("inf"),
    pool: Workers | None = None,
) -> ComponentResponse:
    """χ (components × samples) around `anchor` w* (P,), for the samples in rows `probes` of the task (default: all).

    `observables` (name → φ of full parameter rows) are measured for each component besides its loss (`covariance`
    only). `phi`: the component loss is that of the probed samples, or of all the task's rows ("data", `pathwise` only),
    which keeps χ from belonging partly to the probes (docs/gotchas.md). Up to `rounds` times `chains.chains` chains are
    run for a component, until its split-half `reliability` is reached; `auto` is pathwise, or covariance where steps do
    not contract (then of twice as many chains, where they were to be antithetic). With a `pool`, every component is a
    unit of work: resumed, and run by other processes when there are several (then the task's module, loss and
    observables must be importable). All settings are checked before anything is sampled.
    """
    chosen = [find_component(task.module, what) for what in components]
    names = [component.name for component in chosen]
    if not chosen or len(set(names)) < len(names):
        raise PatterningError(
            f"components must be named once each, and at least one (got {', '.join(names) or 'none'})"
        )
    if chains.chains < 2:
        raise PatterningError(f"{chains.chains} chain gives no error bar for χ: use at least 2")
    if chains.draws < 4:
        raise PatterningError(f"{chains.draws} draws a chain do not tell how φ mixes: use at least 4")
    if estimator not in get_args(Estimator):
        raise PatterningError(f"estimator {estimator!r} is not one of {', '.join(get_args(Estimator))}")
    if estimator != "covariance" and (not isinstance(kernel, SGLD) or observables):
        raise PatterningError(
            "the pathwise estimator differentiates the component loss through plain SGLD: for another sampler or "
            "observables use covariance"
        )
    if estimator == "covariance" and chains.antithetic:
        raise PatterningError(
            "antithetic chains serve the pathwise estimator: for the covariance use twice as many chains"
        )
    if phi not in get_args(PhiOf):
        raise PatterningError(f"phi {phi!r} is not one of {', '.join(get_args(PhiOf))}")
    if phi == "data" and estimator != "pathwise":
        raise PatterningError(
            "phi='data' reads φ off the minibatches of the chain, as the pathwise estimator alone can: "
            f"estimator is {estimator!r}"
        )
    if rounds < 1 or (reliability is not None and not 0 < reliability < 1):
        raise PatterningError(f"rounds is {rounds} and reliability {reliability}: at least 1, and between 0 and 1")
    rows = torch.arange(len(task.base_weights)) if probes is None else probes.cpu()
    if rows.ndim != 1 or not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= len(task.base_weights):
        raise PatterningError(f"probes must be row numbers from 0 to {len(task.base_weights) - 1}, at least one")
    settings = Settings(rows, dict(observables or {}), estimator, phi, reliability, rounds, batches, loss_band)
    work = [
        Unit(
            f"component-{re.sub('[^a-z0-9]+', '-', component.name.lower())}",
            component_unit,
            {"work": Work(task, anchor.detach(), component, kernel, chains, settings)},
        )
        for component in chosen
    ]
    if pool is None:
        results = [sample_component(unit.arguments["work"]) for unit in work]
    else:
        results = [unpack(arrays) for arrays in pool.compute(work, f"χ by component, {estimator}")]
    found = dict(zip(names, results, strict=True))
    own = task.samples_per_row
    return ComponentResponse(
        by_component=found,
        rows=np.repeat(rows.numpy(), own),
        positions=np.tile(np.arange(own), len(rows)),
        n_free={component.name: component.count(task.module) for component in chosen},
        estimator=estimator,
        kernel=kernel,
        chains=chains,
        fingerprint=task.fingerprint,
        phi=phi,
    )


@dataclass(frozen=True)
class Settings:
    """What all components share, besides the chains."""

    rows: Tensor
    observables: Mapping[str, ModelObservable]
    estimator: Estimator
    phi: PhiOf
    reliability: float | None
    rounds: int
    batches: int
    loss_band: float


@dataclass(frozen=True)
class Work:
    """All that χ of one component depends on; its `fingerprint` keys the cache."""

    task: LossTask
    anchor: Tensor
    component: Component
    kernel: Kernel
    chains: ChainConfig
    settings: Settings

    @property
    def fingerprint(self) -> str:
        """Covers weights, data, mask, loss, observables and settings."""
        own = self.settings
        masks = {name: "all" if mask is None else mask.cpu().numpy() for name, mask in self.component.masks.items()}
        observables = {name: describe_code(phi) for name, phi in own.observables.items()}
        settings = [type(self.kernel).__name__, asdict(self.kernel), asdict(self.chains), own.estimator, own.batches]
        settings += [own.phi, own.reliability, own.rounds, str(own.loss_band)]
        return fingerprint(
            self.task.fingerprint, self.anchor.cpu().numpy(), masks, own.rows.numpy(), observables, settings
        )


def component_unit(*, work: Work, scratch: Path) -> Arrays:
    """`sample_component` as a unit of work."""
    del scratch  # a killed component is sampled again whole
    return pack(sample_component(work))


def sample_component(work: Work) -> SampledResponse:
    """χ of one component: rounds of chains until it is reliable or the rounds are used up."""
    task, anchor, kernel, chains, settings = work.task, work.anchor, work.kernel, work.chains, work.settings
    rows = settings.rows
    free = Restricted(task, anchor, work.component)
    probe = Probe(free, rows, chains.replicas)
    q = task.base_weights[rows].numpy()
    q = np.repeat(q / q.sum(), task.samples_per_row) / task.samples_per_row
    left = ""
    if settings.estimator != "covariance":
        assert isinstance(kernel, SGLD)
        parts: list[Pathwise] = []
        for chosen in range(settings.rounds):
            parts.append(
                pathwise_chains(
                    free,
                    probe,
                    q,
                    kernel,
                    chains,
                    phi=settings.phi,
                    loss_band=settings.loss_band,
                    first_chain=chosen * chains.chains,
                )
            )
            expansion = float(np.median(parts[0].expansion))
            if settings.estimator == "auto" and not expansion <= MOST_EXPANSION:
                left = f"not pathwise: steps do not contract (adjoint expansion {expansion:.2g}); "
                chains = replace(chains, chains=chains.replicas, antithetic=False)
                break
            found = summarise_pathwise(join_pathwise(parts), COMPONENT_LOSS, q, kernel.n_beta)
            if (note := _stop(found, settings, chosen + 1)) is not None:
                return replace(found, note=f"{found.note}; {note}")
    weights = torch.from_numpy(q).to(anchor.device)
    start = float(probe.at_anchor.double() @ weights)
    phis: dict[str, Observable] = {COMPONENT_LOSS: OfLosses(lambda losses: losses @ weights - start)}
    for name, phi in settings.observables.items():
        phis[name] = lambda flat, phi=phi: phi(free.expand(flat))
    draws: list[Draws] = []
    for chosen in range(settings.rounds):
        draws.append(
            sample_draws(
                free,
                free.anchor,
                phis,
                kernel,
                chains,
                batches=settings.batches,
                loss_band=settings.loss_band,
                first_chain=chosen * chains.chains,
                readout=Readout(probe, q, probe.at_anchor),
            )
        )
        found = summarise(join_draws(draws), tuple(phis), q, kernel.n_beta)
        if (note := _stop(found, settings, chosen + 1)) is not None:
            return replace(found, note=left + note)
    raise AssertionError("the last round stops")


def _stop(found: SampledResponse, settings: Settings, rounds: int) -> str | None:
    """Why sampling stops after so many rounds, or None when it goes on."""
    value = found.susceptibility.reliability()[COMPONENT_LOSS]
    if settings.reliability is not None and value >= settings.reliability:
        return f"reliability {value:.2f} reached after {rounds} round(s)"
    if rounds == settings.rounds:
        return f"budget of {rounds} round(s) used, reliability {value:.2f}"
    return None
