r"""How many steps to leave between draws: from the measured autocorrelation of φ, not by guess.

Draws a step apart repeat each other, and reading all probes costs as much as several steps. With a correlation that
falls as :math:`\rho^k` over k steps, draws m steps apart give a mean whose variance at equal cost is proportional to

.. math:: (m + r) \frac{1 + \rho^m}{1 - \rho^m}, \qquad \rho = \frac{\tau - 1}{\tau + 1}

with r the cost of a reading in steps and τ the integrated autocorrelation time in steps (Geyer, Statistical Science
1992, §3.6). `best_spacing` is the m where that is least.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.core.workers import Workers
from patterning.models.components import ComponentLike
from patterning.posterior.chains import ChainConfig, Kernel
from patterning.response.components import COMPONENT_LOSS, component_response

PILOT_ROWS = 16
"""Most probed rows that φ is read on in a pilot."""
MOST_STEPS = 64
"""Never more steps between draws than this."""


@dataclass(frozen=True)
class Spacing:
    """Of one component: the integrated autocorrelation time of its loss in steps, and the best steps between draws."""

    component: str
    autocorrelation_time: float
    steps: int


def best_spacing(autocorrelation_time: float, reading: float) -> int:
    """Steps between draws with the least variance for the cost; `reading`: what one reading costs, in steps.

    An undefined time (a φ that does not move) gives 1. Raises `PatterningError` for a negative cost.
    """
    if not reading >= 0:
        raise PatterningError(f"a reading cannot cost {reading} steps")
    rho = (autocorrelation_time - 1) / (autocorrelation_time + 1)
    if not rho > 0:
        return 1
    m = np.arange(1, MOST_STEPS + 1)
    return int(m[np.argmin((m + reading) * (1 + rho**m) / (1 - rho**m))])


def reading_cost(chains: ChainConfig, probes: int, estimator: str) -> float:
    """What one reading of `probes` rows costs in steps, by passes: a function of the settings alone, unlike a clock.

    A step is three passes over a minibatch; the pathwise estimator's is four times that, and its reading six passes.
    """
    step, reading = (12, 6) if estimator != "covariance" else (3, 1)
    return reading * probes / (step * chains.batch_size)


def measure_spacing(
    task: Task,
    anchor: Tensor,
    components: Sequence[ComponentLike],
    kernel: Kernel,
    chains: ChainConfig,
    *,
    probes: Tensor | None = None,
    estimator: str = "covariance",
    draws: int = 64,
    pool: Workers | None = None,
) -> list[Spacing]:
    """Best steps between draws for each component around `anchor` w* (P,), by short chains that read φ at every step.

    Arguments as in `component_response`; in place of `chains.draws`, φ on at most 16 rows is read at `draws` steps in a
    row. 64 steps of 4 chains tell the time only to between 0.4 and 3.3 times (docs/results/response.md): worth it where
    chains may mix slowly.
    """
    rows = torch.arange(len(task.base_weights)) if probes is None else probes.cpu()
    count = min(PILOT_ROWS, len(rows))
    found = component_response(
        task, anchor, components, kernel, replace(chains, draws=draws, steps_between_draws=1, antithetic=False),
        probes=rows[torch.arange(count) * len(rows) // count], pool=pool,
    )  # fmt: skip
    cost = reading_cost(chains, len(rows), estimator)
    times = {name: one.diagnostics[COMPONENT_LOSS].autocorrelation_time for name, one in found.by_component.items()}
    return [Spacing(name, time, best_spacing(time, cost)) for name, time in times.items()]
