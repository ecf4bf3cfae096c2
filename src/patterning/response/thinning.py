r"""How many steps to leave between draws: from the measured autocorrelation of φ, not by guess.

Draws a step apart repeat each other, and reading all probes costs as much as several steps. With a correlation that
falls as :math:`\rho^k` over k steps, draws m steps apart give a mean whose variance at equal cost is proportional to

.. math:: (m + r) \frac{1 + \rho^m}{1 - \rho^m}, \qquad \rho = \frac{\tau - 1}{\tau + 1}

with r the cost of a reading in steps and τ the integrated autocorrelation time in steps (Geyer, Statistical Science
1992, §3.6). `best_spacing` is the m where that is least.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from patterning.errors import PatterningError
from patterning.models.components import ComponentLike, find_component
from patterning.models.module import LossTask
from patterning.models.restricted import Probe, Restricted
from patterning.posterior.chains import ChainConfig, Kernel
from patterning.posterior.diagnostics import effective_sample_size
from patterning.response.components import COMPONENT_LOSS, Settings, Work
from patterning.response.sample import OfLosses, Readout, sample_draws
from patterning.store import Arrays, Unit
from patterning.workers import Workers

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
    task: LossTask,
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
    row. From 64 steps of 4 chains the time is known to about a factor of 2, which costs up to a fifth more.
    """
    rows = torch.arange(len(task.base_weights)) if probes is None else probes.cpu()
    some = rows[torch.arange(min(PILOT_ROWS, len(rows))) * len(rows) // min(PILOT_ROWS, len(rows))]
    pilot = replace(chains, draws=draws, steps_between_draws=1)
    settings = Settings(some, {}, "covariance", "probes", None, 1, 4, float("inf"))
    chosen = [find_component(task.module, what) for what in components]
    work = [
        Unit("spacing", spacing_unit, {"work": Work(task, anchor.detach(), component, kernel, pilot, settings)})
        for component in chosen
    ]
    if pool is None:
        found = [_autocorrelation_time(unit.arguments["work"]) for unit in work]
    else:
        found = [float(arrays["time"]) for arrays in pool.compute(work, "steps between draws")]
    cost = reading_cost(chains, len(rows), estimator)
    return [
        Spacing(component.name, time, best_spacing(time, cost)) for component, time in zip(chosen, found, strict=True)
    ]


def spacing_unit(*, work: Work, scratch: Path) -> Arrays:
    """The autocorrelation time as a unit of work."""
    del scratch
    return {"time": np.asarray(_autocorrelation_time(work))}


def _autocorrelation_time(work: Work) -> float:
    """Integrated autocorrelation time of the component's loss in steps; NaN where it does not move."""
    task, rows = work.task, work.settings.rows
    free = Restricted(task, work.anchor, work.component)
    q = task.base_weights[rows].numpy()
    q = np.repeat(q / q.sum(), task.samples_per_row) / task.samples_per_row
    weights = torch.from_numpy(q).to(work.anchor.device)
    found = sample_draws(
        free,
        free.anchor,
        {COMPONENT_LOSS: OfLosses(lambda losses: losses @ weights)},
        work.kernel,
        work.chains,
        readout=Readout(Probe(free, rows, work.chains.chains), q),
    )
    trace = found.phi_trace[:, :, 0]
    if not trace.shape[1]:
        raise PatterningError(
            f"every chain diverged ({'; '.join(found.excluded.values())}): lower step_size or raise localization"
        )
    return trace.size / effective_sample_size(trace)
