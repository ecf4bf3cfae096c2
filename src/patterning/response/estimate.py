"""What sampling will cost, from one timed step and one timed reading of each component."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patterning.core.task import Task
from patterning.models.components import ComponentLike
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior.chains import ChainConfig, loss_and_gradient
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
    batches: int = 4,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Cost]:
    """Cost of a round for each component; takes about a step and a reading of each.

    Time is that of a second call, at the load the machine has now (of the processor alone with the `clock`
    time.process_time). The pathwise estimator adds a Hessian-vector product a step (three gradients' worth), a gradient
    of the probes at each draw (two readings) and a derivative (three) for as many steps. Raises `PatterningError` where
    the loss has no gradient in a component.
    """
    rows = torch.arange(len(task.base_weights)) if probes is None else probes
    numbers = itertools.count()  # no two alike: replicas keep what they share of the last one
    steps = chains.burn_in + chains.draws * chains.steps_between_draws
    found = []
    for what in components:
        free = Restricted(task, anchor, what)
        try_gradient(free)
        probe = Probe(free, rows, chains.replicas)
        flat = free.init(range(chains.replicas))

        def step(free: Restricted = free, flat: Tensor = flat) -> None:
            index = (torch.arange(chains.batch_size) + next(numbers)) % len(task.base_weights)
            loss_and_gradient(free, flat, index.expand(len(flat), -1) if chains.matched else index.repeat(len(flat), 1))

        def read(probe: Probe = probe, flat: Tensor = flat) -> None:
            with torch.no_grad():
                probe(flat)

        one_step, one_reading = _seconds(step, clock), _seconds(read, clock)
        seconds = steps * one_step + chains.draws * one_reading
        size = 8 * chains.replicas * batches * 2 * len(probe)
        if estimator != "covariance":
            seconds += steps * 3 * one_step
            seconds += (2 * chains.draws + 3 * steps / chains.steps_between_draws) * one_reading
            size = 4 * steps * chains.replicas * free.num_parameters + 8 * chains.replicas * len(probe)
        found.append(Cost(free.component.name, free.num_parameters, seconds, (size + probe.kept_bytes) / 1e6))
    return found


def _seconds(call: Callable[[], None], clock: Callable[[], float]) -> float:
    call()
    begun = clock()
    call()
    return clock() - begun
