r"""χ of every component of a model in one call: each is sampled with all other coordinates clamped.

The default observable is the component loss φ_C(w) = L(w) - L(w*) (Baker et al., arXiv 2504.18274), with L the mean
over the probed samples. Estimators, by name: `covariance`; `pathwise` (see `response.pathwise`); and `devinterp2`, the
form of devinterp 2,

.. math:: E_C[\phi L] - E_C[\phi \ell_j] - E_C[\phi]\,(E_{full}[L] - E_{full}[\ell_j])

which holds a baseline common to all components, 50-5,000 times its covariance part in one measurement.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.anchors import check_anchor
from patterning.core.batch import as_batch
from patterning.core.errors import PatterningError, check_whole
from patterning.core.store import Unit
from patterning.core.task import Task
from patterning.core.workers import Workers
from patterning.models.components import Component, ComponentLike, find_component
from patterning.models.restricted import Restricted
from patterning.posterior.chains import ChainConfig, Kernel
from patterning.posterior.sgld import SGLD
from patterning.response.capability import try_gradient
from patterning.response.devinterp2 import devinterp2_susceptibility
from patterning.response.memory import component_memory
from patterning.response.observables import try_observables
from patterning.response.one_component import (
    Estimator,
    ModelObservable,
    PhiOf,
    Settings,
    Work,
    component_unit,
    sample_component,
)
from patterning.response.packing import refusal, unpack
from patterning.response.sample import COMPONENT_LOSS, SampledResponse
from patterning.response.sharded import KINDS, sharded_response
from patterning.response.sharded_jobs import ShardedPlan

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ComponentResponse:
    """What each component answers to each probed sample.

    `by_component` maps its name to χ, diagnostics, excluded chains and rise. `rows`, `positions` (n,): where each
    column of χ lies in the task's data (row, and sample within the row). `n_free` free coordinates by component. `phi`:
    whose loss the component loss is. `refused`: components whose chains gave no result, with why and what to change.
    """

    by_component: Mapping[str, SampledResponse]
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    n_free: Mapping[str, int]
    estimator: str
    kernel: Kernel
    chains: ChainConfig
    fingerprint: str
    phi: str = "probes"
    refused: Mapping[str, str] = field(default_factory=dict)

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
        for found in self._all():
            found.susceptibility.row(observable)  # refuses a name that is none
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
            if own is None:
                raise PatterningError(f"devinterp2 needs sums of draws, and {name!r} was not sampled by covariance")
            found.susceptibility.row(observable)  # refuses a name that is none
            row = found.susceptibility.observables.index(observable)
            result[name] = devinterp2_susceptibility(own, full, q)[row]
        return result

    def _all(self) -> Iterable[SampledResponse]:
        return self.by_component.values()

    @staticmethod
    def _pick(found: SampledResponse, values: Floats, observable: str) -> Floats:
        found.susceptibility.row(observable)  # refuses a name that is none
        return values[found.susceptibility.observables.index(observable)]


def component_response(
    task: Task,
    anchor: Tensor,
    components: Sequence[ComponentLike] | ComponentLike,
    kernel: Kernel,
    chains: ChainConfig,
    *,
    probes: Tensor | Sequence[int] | None = None,
    observables: Mapping[str, ModelObservable] | None = None,
    estimator: Estimator = "covariance",
    phi: PhiOf | Tensor | Sequence[int] = "probes",
    reliability: float | None = None,
    rounds: int = 1,
    batches: int = 4,
    loss_band: float | None = None,
    component_loss: bool = True,
    pool: Workers | None = None,
    shards: int | None = None,
) -> ComponentResponse:
    """χ (components × samples) around `anchor` w* (P,), for the samples in rows `probes` of the task (default: all).

    `phi`: the component loss is that of the probed samples, of other rows (their numbers: held-out rows, with base
    weight 0, say), or of all the task's rows ("data", `pathwise` only), which keeps χ from belonging partly to the
    probes (docs/gotchas.md). `observables` (name → φ of full parameter rows) are measured for each component besides
    its loss; the pathwise estimator differentiates them, and goes back through the chains once for each (and for the
    component loss, unless `component_loss` is off).

    Up to `rounds` times `chains.chains` chains are run for a component, until its split-half `reliability` is reached;
    `auto` is pathwise, or covariance where the loss has no second derivative or steps do not contract (then of twice as
    many chains, where they were to be antithetic). A chain whose loss passes `loss_band` (default: the loss of a model
    that knows nothing, `posterior.band`) is excluded by name; a component of which fewer than 2 chains are left has no
    χ: it is in `refused`. With a `pool`, every component is a unit of work: resumed, and run by other processes when
    there are several. With `shards` as well, chains leave their draws in the pool's folder, and each component is read
    from them in so many parts of the probed rows (not by `auto`; `response.sharded`). All settings are checked, and
    every gradient is tried, before anything is sampled. Raises `PatterningError` for settings that cannot serve, and
    when every component was refused.
    """
    chosen = _components(task, components)
    _check_settings(kernel, chains, estimator, observables, reliability, rounds)
    anchor = check_anchor(task, anchor)
    rows = row_numbers("probes", probes, len(task.base_weights))
    if not isinstance(phi, str):
        phi = row_numbers("phi", phi, len(task.base_weights))
    else:
        check_phi(phi, estimator)
    try_observables(observables or {}, anchor, task.data)
    ready = None
    for component in chosen:
        free = Restricted(task, anchor, component)
        try_gradient(free)
        ready = free if len(chosen) == 1 and pool is None else None  # several at once would be as many copies of w*
    settings = Settings(
        rows, dict(observables or {}), estimator, phi, reliability, rounds, batches, loss_band, component_loss
    )
    key = task.fingerprint
    work = [
        Unit(
            f"component-{re.sub('[^a-z0-9]+', '-', component.name.lower())}",
            component_unit,
            {"work": Work(task, anchor, component, kernel, chains, settings, key)},
            component_memory,
        )
        for component in chosen
    ]
    if shards is not None:
        if pool is None or estimator not in KINDS:
            raise PatterningError(f"shards are read by a pool, with estimator {' or '.join(KINDS)}")
        check_whole("shards", shards, 1)
        plan = ShardedPlan(task, anchor, kernel, chains, settings, key, shards)
        found, refused = sharded_response(plan, chosen, pool)
        _some(found, refused)
    else:
        found, refused = _results(work, [component.name for component in chosen], estimator, pool, ready)
    samples = task.samples(rows)
    return ComponentResponse(
        by_component=found,
        rows=samples.row,
        positions=samples.position,
        n_free={component.name: component.count(task.module) for component in chosen},
        estimator=estimator,
        kernel=kernel,
        chains=chains,
        fingerprint=key,
        phi=phi if isinstance(phi, str) else "rows",
        refused=refused,
    )


def row_numbers(name: str, rows: Tensor | Sequence[int] | None, count: int) -> Tensor:
    """Row numbers as int64 (m,), all of them for None; raises `PatterningError` for anything else."""
    if rows is None:
        return torch.arange(count)
    if isinstance(rows, int):
        raise PatterningError(f"{name} is {rows}: it must be row numbers, range({rows}) for so many of the first rows")
    if isinstance(rows, set | frozenset | slice | dict | str):
        raise PatterningError(f"{name} is a {type(rows).__name__}: it must be row numbers, a list or a range of them")
    if isinstance(rows, list | tuple) and not rows:
        raise PatterningError(f"{name} is empty: name at least one row, or leave it out for all")
    numbers = as_batch(rows)
    if not isinstance(numbers, Tensor) or numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise PatterningError(f"{name} must be row numbers (for a mask: mask.nonzero()[:, 0])")
    numbers = numbers.cpu().long()
    if numbers.ndim != 1 or not len(numbers) or int(numbers.min()) < 0 or int(numbers.max()) >= count:
        raise PatterningError(f"{name} must be row numbers from 0 to {count - 1}, at least one")
    if len(numbers.unique()) < len(numbers):
        raise PatterningError(f"{name} names some rows twice: χ has one column for each sample")
    return numbers


def _components(task: Task, components: Sequence[ComponentLike] | ComponentLike) -> list[Component]:
    single = isinstance(components, str | Component)
    chosen = [find_component(task.module, what) for what in ([components] if single else components)]
    names = [component.name for component in chosen]
    if not chosen or len(set(names)) < len(names):
        raise PatterningError(
            f"components must be named once each, and at least one (got {', '.join(names) or 'none'})"
        )
    return chosen


def check_phi(phi: str, estimator: str) -> None:
    """Raise `PatterningError` for a word that says of no rows that φ is their loss, or of rows that χ cannot read."""
    if phi not in get_args(PhiOf):
        raise PatterningError(f"phi {phi!r} is not one of probes, data, or a list of row numbers")
    if phi == "data" and estimator == "covariance":
        raise PatterningError(
            "phi='data' reads φ off the minibatches of the chain, as the pathwise estimator alone can: "
            f"estimator is {estimator!r}"
        )


def check_counts(chains: int, draws: int) -> None:
    """Raise `PatterningError` for fewer chains or draws than an error bar and a diagnosis need."""
    if chains < 2:
        raise PatterningError(f"{chains} chain gives no error bar for χ: use at least 2")
    if draws < 4:
        raise PatterningError(f"{draws} draws a chain do not tell how φ mixes: use at least 4")


def _check_settings(
    kernel: Kernel,
    chains: ChainConfig,
    estimator: str,
    observables: Mapping[str, ModelObservable] | None,
    reliability: float | None,
    rounds: int,
) -> None:
    check_counts(chains.chains, chains.draws)
    if estimator not in get_args(Estimator):
        raise PatterningError(f"estimator {estimator!r} is not one of {', '.join(get_args(Estimator))}")
    if estimator != "covariance" and not isinstance(kernel, SGLD):
        raise PatterningError(
            "the pathwise estimator differentiates through plain SGLD: for another sampler use covariance"
        )
    if estimator == "covariance" and chains.antithetic:
        raise PatterningError(
            "antithetic chains serve the pathwise estimator: for the covariance use twice as many chains"
        )
    if COMPONENT_LOSS in (observables or {}):
        raise PatterningError(f"an observable is called {COMPONENT_LOSS!r}, which every component has: rename yours")
    check_whole("rounds", rounds, 1)
    if reliability is not None and not 0 < reliability < 1:
        raise PatterningError(f"reliability is {reliability}: it must be between 0 and 1")


def _results(
    work: Sequence[Unit], names: Sequence[str], estimator: str, pool: Workers | None, ready: Restricted | None
) -> tuple[dict[str, SampledResponse], dict[str, str]]:
    """Results by component, and refusals; raises when there is nothing but refusals. `ready`: of the only one."""
    found: dict[str, SampledResponse] = {}
    refused: dict[str, str] = {}
    if pool is None:
        for name, unit in zip(names, work, strict=True):
            try:
                found[name] = sample_component(unit.arguments["work"], ready)
            except PatterningError as error:
                refused[name] = str(error)
    else:
        for name, arrays in zip(names, pool.compute(work, f"χ by component, {estimator}"), strict=True):
            if (why := refusal(arrays)) is not None:
                refused[name] = why
            else:
                found[name] = unpack(arrays)
    _some(found, refused)
    return found, refused


def _some(found: Mapping[str, SampledResponse], refused: Mapping[str, str]) -> None:
    """Raise `PatterningError` where there is nothing but refusals."""
    if not found:
        raise PatterningError("; ".join(f"{name}: {why}" for name, why in refused.items()))
