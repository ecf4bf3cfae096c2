"""What sampling will cost, from one timed step and one timed reading of each component."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patterning.core.task import Task
from patterning.models.components import ComponentLike
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior.chains import ChainConfig, Kernel, loss_and_gradient
from patterning.posterior.sgld import SGLD
from patterning.response.adjoint import curvature, parts_of_the_way
from patterning.response.capability import try_gradient


@dataclass(frozen=True)
class Cost:
    """Of a round of chains of one component: `seconds` on one worker, `megabytes` of sums, positions and prefixes."""

    component: str
    free_coordinates: int
    seconds: float
    megabytes: float


def estimate_cost(
    task: Task,
    anchor: Tensor,
    components: Sequence[ComponentLike],
    chains: ChainConfig,
    *,
    probes: Tensor | None = None,
    estimator: str = "covariance",
    kernel: Kernel | None = None,
    observables: int = 1,
    batches: int = 4,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Cost]:
    """Cost of a round for each component, from one timed step and one timed call of the model on probed rows.

    Time is that of a second call, at the load the machine has now (of the processor alone with the `clock`
    time.process_time). The pathwise estimator adds curvature at every step, a gradient of the probes at each draw, and
    a derivative of the probes for every few steps, of which the `kernel` says how few; without it, one for each draw.
    A first look takes a gradient and a derivative once, at the trained model alone. Both do so for each of the
    `observables`, which the covariance reads together. Raises `PatterningError` where
    the loss has no gradient in a component.
    """
    rows = torch.arange(len(task.base_weights)) if probes is None else probes
    replicas = 1 if estimator == "first-order" else chains.replicas
    costs = []
    for what in components:
        free = Restricted(task, anchor, what)
        try_gradient(free)
        timed = _Timed(free, rows, replicas, chains, clock)
        steps = chains.steps
        if estimator == "first-order":
            seconds, size = observables * (timed.slope() + timed.derivative()), 16 * timed.samples
        elif estimator == "covariance":
            seconds = steps * timed.step() + chains.draws * timed.reading()
            size = 8 * chains.replicas * batches * 2 * timed.samples
        else:
            back = steps * timed.curvature() + chains.draws * timed.slope()
            back += _derivatives(chains, kernel, steps) * timed.derivative()
            seconds = steps * timed.step() + observables * back
            size = 4 * steps * chains.replicas * free.num_parameters + 8 * chains.replicas * timed.samples
        costs.append(Cost(free.component.name, free.num_parameters, seconds, (size + timed.kept_bytes) / 1e6))
    return costs


def _derivatives(chains: ChainConfig, kernel: Kernel | None, steps: int) -> int:
    """How many derivatives of the probes the way back takes."""
    if not isinstance(kernel, SGLD):
        return math.ceil(chains.burn_in / chains.steps_between_draws) + chains.draws + 1
    return sum(1 for _ in parts_of_the_way(chains, kernel, steps, 0)) + 1


class _Timed:
    """Seconds of the calls of one component, from a second call each; of probes from as many rows as one call takes."""

    def __init__(
        self, free: Restricted, rows: Tensor, replicas: int, chains: ChainConfig, clock: Callable[[], float]
    ) -> None:
        self._free, self._chains, self._clock = free, chains, clock
        few = self._with_samples(rows)[: free.cut(1 if free.fills_core(len(rows)) else replicas)]
        self._probe = Probe(free, few, replicas, of=len(rows))
        self._times = len(rows) / len(few)
        self._flat = free.init(range(replicas))
        self._calls = itertools.count()  # no two alike: replicas keep what they share of the last one
        self.samples = len(self._probe) * self._times
        self.kept_bytes = self._probe.kept_bytes * self._times

    def _with_samples(self, rows: Tensor) -> Tensor:
        """Those of the rows that are not wholly masked."""
        weights = self._free.task.sample_weights
        if weights is None:
            return rows
        return rows[(weights.cpu()[rows.cpu()] > 0).any(1)]

    def _seconds(self, call: Callable[[], object]) -> float:
        call()
        begun = self._clock()
        call()
        return self._clock() - begun

    def _or(self, guess: Callable[[], float], call: Callable[[], object], times: float = 1.0) -> float:
        """A `guess` where the loss has no such derivative: what is computed next says so."""
        try:
            return times * self._seconds(call)
        except Exception:
            return guess()

    def _index(self) -> Tensor:
        n, count = len(self._free.task.base_weights), len(self._flat)
        index = (torch.arange(self._chains.batch_size) + next(self._calls)) % n
        return index.expand(count, -1) if self._chains.matched else index.repeat(count, 1)

    def step(self) -> float:
        """A step of the chains."""
        return self._seconds(lambda: loss_and_gradient(self._free, self._flat, self._index()))

    def curvature(self) -> float:
        """A Hessian-vector product of the minibatch."""
        vector = torch.ones_like(self._flat)
        return self._or(lambda: 3 * self.step(), lambda: curvature(self._free, self._flat, self._index(), vector))

    def reading(self) -> float:
        """The losses of the probes."""
        with torch.no_grad():
            return self._times * self._seconds(lambda: self._probe(self._flat))

    def slope(self) -> float:
        """The gradient of their mean."""
        q = torch.full((len(self._probe),), 1 / len(self._probe), dtype=torch.float64, device=self._flat.device)
        return self._or(lambda: 2 * self.reading(), lambda: self._probe.slope(self._flat, q), self._times)

    def derivative(self) -> float:
        """Their derivatives along a vector."""
        vector = torch.ones_like(self._flat)
        return self._or(lambda: 3 * self.reading(), lambda: self._probe.along(self._flat, vector), self._times)
