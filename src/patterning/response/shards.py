"""Reading χ from stored draws (`response.draws`) in shards: component by component, some probed rows at a time.

A worker holds one shard: its memory depends neither on the number of probed rows nor on that of draws. What it leaves
are sums over draws, which are put side by side. A sample's covariance with φ depends on its own losses and on φ alone,
so that χ of observables of the module has the same bits as an unsharded reading. The component loss of the probed
samples is a mean over all shards: it is read first, in a pass of its own, and its χ agrees up to the rounding of that
mean. A loss of the *rows* `phi` is read once, like an observable.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from patterning.core.arrays import Floats
from patterning.core.identity import digest
from patterning.core.progress import report_progress
from patterning.core.store import Arrays, fingerprint
from patterning.models.probe import Probe
from patterning.models.restricted import ENOUGH_CELLS, Restricted
from patterning.response.adjoint import ModelObservable
from patterning.response.draws import Chains, read_draws
from patterning.response.moments import Tally
from patterning.response.observables import at_two_places, evaluated
from patterning.response.sample import COMPONENT_LOSS


@dataclass(frozen=True)
class Shard:
    """Probed `rows` of `of` in all, whose samples are those from `first` to `last` - 1 of the probed ones."""

    rows: Tensor
    of: int
    first: int
    last: int


@dataclass(frozen=True)
class Reading:
    """A shard's losses at the draws of `chains`, and all that what is read of them depends on.

    `sums`: checksums of the draws. `weights` q of the shard's samples: their mean loss is what is wanted. `phi` (draws,
    chains, k) and `phi_anchor` (k,): the sums with them are wanted. `watched`: samples of the shard whose trace is.
    """

    chains: Chains
    sums: np.ndarray
    shard: Shard
    weights: Floats | None = None
    phi: Floats | None = None
    phi_anchor: Floats | None = None
    batches: int = 0
    watched: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def fingerprint(self) -> str:
        """Of the shard alone: other shards, or other rows probed beside it, change nothing."""
        together = self.shard.of * self.chains.task.samples_per_row < ENOUGH_CELLS
        parts = [self.weights, self.phi, self.phi_anchor]
        return fingerprint(
            self.chains, self.sums, self.shard.rows.numpy(), together, self.watched, self.batches,
            *("" if part is None else part for part in parts),
        )  # fmt: skip

    def probe(self, free: Restricted) -> Probe:
        """The shard's rows."""
        return Probe(free, self.shard.rows, self.chains.config.chains, self.shard.of)


@dataclass(frozen=True)
class Observed:
    """Observables of the module (name → φ of full parameter rows) at the draws, and the mean loss of rows `phi`."""

    chains: Chains
    sums: np.ndarray
    observables: dict[str, ModelObservable]
    phi: Tensor | None = None

    @property
    def fingerprint(self) -> str:
        """Covers the observables by what they hold, and by their values."""
        rows = "" if self.phi is None else self.phi.numpy()
        values = [at_two_places(function, self.chains.anchor) for function in self.observables.values()]
        return fingerprint(self.chains, self.sums, digest(self.observables), np.array(values, dtype=np.float32), rows)


def mean_loss_unit(*, reading: Reading, scratch: Path) -> Arrays:
    """Σ q ℓ over the shard's samples: `phi` (draws, chains) and `phi_anchor` (), float64."""
    del scratch
    free = reading.chains.restricted()
    probe, weights = reading.probe(free), torch.from_numpy(reading.weights)
    config, found = reading.chains.config, []
    with torch.no_grad():
        for draw, flat in read_draws(reading.chains, free.anchor, reading.sums):
            found.append((probe(flat).double().cpu() @ weights).numpy())
            report_progress((draw + 1) / config.draws)
    return {"phi": np.stack(found), "phi_anchor": np.asarray((probe.at_anchor.double().cpu() @ weights).numpy())}


def observed_unit(*, observed: Observed, scratch: Path) -> Arrays:
    """φ at w* (k,) and at every draw (draws, chains, k)."""
    del scratch
    free, chains = observed.chains.restricted(), observed.chains
    functions: dict[str, Callable[[Tensor], Tensor]] = {}
    if observed.phi is not None:
        other = Probe(free, observed.phi, chains.config.chains)
        q = torch.from_numpy(other.samples.weight).to(free.anchor.device)
        start = float(other.at_anchor.double() @ q)
        functions[COMPONENT_LOSS] = lambda flat: other(flat).double() @ q - start
    for name, function in observed.observables.items():
        functions[name] = lambda flat, function=function: function(free.expand(flat))

    def read(flat: Tensor) -> Floats:
        with torch.no_grad():
            values = [evaluated(name, function, flat) for name, function in functions.items()]
        return np.stack([value.double().cpu().numpy() for value in values], axis=1)

    draws = [read(flat) for _, flat in read_draws(chains, free.anchor, observed.sums)]
    return {"phi": np.stack(draws), "phi_anchor": read(free.anchor[None])[0]}


def sums_unit(*, reading: Reading, scratch: Path) -> Arrays:
    """The sums over draws of the shard's samples (`Moments`), the traces of some, and which chains are undefined."""
    del scratch
    assert reading.phi is not None
    assert reading.phi_anchor is not None
    free, config = reading.chains.restricted(), reading.chains.config
    probe = reading.probe(free)
    at_anchor = probe.at_anchor.double()
    phi_anchor, watched, phi = (
        torch.from_numpy(part).to(at_anchor.device) for part in (reading.phi_anchor, reading.watched, reading.phi)
    )
    tally = Tally(config.chains, config.draws, reading.batches, at_anchor, phi_anchor, watched)
    with torch.no_grad():
        for draw, flat in read_draws(reading.chains, free.anchor, reading.sums):
            tally.add(draw, phi[draw], probe(flat).double())
            report_progress((draw + 1) / config.draws)
    undefined = np.array(sorted(tally.undefined()), dtype=np.int64)
    return {**tally.moments().as_arrays(), "loss_trace": tally.traces()[1], "undefined": undefined}
