"""How far up the loss may go before a chain has left its solution, and what to change when it has.

A model that knows nothing of its input has the loss of a constant predictor. A chain whose loss is past that describes
no solution any more, whatever it does afterwards. With all parameters at 0 nearly every network is such a predictor.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from patterning.core.answers import reason_of
from patterning.core.errors import PatterningError
from patterning.core.flat import FlatTask
from patterning.core.modules import spread
from patterning.core.task import Task
from patterning.posterior.calibrate import top_curvature
from patterning.posterior.chains import (
    WINDOW,
    ChainConfig,
    Kernel,
    StepNumbers,
    init,
    loss_and_gradient,
    update,
)
from patterning.posterior.sgld import SGLD

ROWS, FEW = 128, 32
"""Rows on which the loss at w* and that of parameters at 0 are looked at; the latter differs less between rows."""
MOST_STEPS = 50
"""Steps of the chain that shows where it leaves its band."""


@dataclass(frozen=True)
class Band:
    """`loss`, in nats, past which a chain is excluded; `note` says where it is no constant predictor's, and why."""

    loss: float
    note: str = ""


def default_band(task: Task, anchor: Tensor, batch_size: int, n_beta: float, at_anchor: Tensor | None = None) -> float:
    """`find_band`'s loss alone."""
    return find_band(task, anchor, batch_size, n_beta, at_anchor).loss


def find_band(task: Task, anchor: Tensor, batch_size: int, n_beta: float, at_anchor: Tensor | None = None) -> Band:
    """The loss in nats past which a chain around `anchor` w* (P,) is excluded: that of all parameters at 0.

    Room for the noise of minibatches of `batch_size` rows is added. Where w* is no better than that, or the model is
    not defined at parameters 0 (it divides by a norm, say), the loss may rise by max(1, |L(w*)|), and `Band.note` says
    the latter. At nβ = 0 the loss does not hold the chain, and there is no band. `at_anchor`: losses at w* of some
    samples, where they are known.
    """
    if n_beta == 0:
        return Band(math.inf)
    weighted = (task.base_weights > 0).nonzero()[:, 0]
    rows = weighted[spread(len(weighted), ROWS)]
    losses = _row_losses(task, anchor, rows) if at_anchor is None else at_anchor.detach().double().cpu()
    start, note = float(losses.mean()), ""
    noise = 4 * float(losses.std(correction=0)) / math.sqrt(batch_size * WINDOW)
    room = start + max(1.0, abs(start))
    try:
        some = rows[spread(len(rows), FEW)]
        at_zero = _row_losses(task, torch.zeros_like(anchor), some)
        constant = float(at_zero.mean() + 2 * at_zero.std(correction=0) / math.sqrt(len(some)))  # few rows may be easy
        why = "the loss there is not finite"
    except Exception as error:  # a model may refuse parameters 0 in any way
        constant, why = math.nan, f"{type(error).__name__}: {reason_of(error)}"
    if not math.isfinite(constant):
        note = f"the model is not defined at parameters 0 ({why}): chains may rise to {room:.3g} nats instead"
    if not math.isfinite(constant) or constant <= start:
        constant = room
    return Band(constant + noise, note)


def _row_losses(task: Task, row: Tensor, rows: Tensor) -> Tensor:
    with torch.no_grad():
        parts = [task.losses(row[None], part[None].to(row.device))[0] for part in rows.split(32)]
    return torch.cat(parts).double().cpu()


def advise(task: FlatTask, anchor: Tensor, kernel: Kernel, chains: ChainConfig, loss_band: float) -> str:
    """What to change when chains around `anchor` left `loss_band`: the step size, or what holds the chain.

    The curvature that decides is the larger of that at w* and what a chain meets on its way out.
    """
    step = kernel.step_size if isinstance(kernel, SGLD) else kernel.step_size / kernel.damping
    name = "ε/2 (nβ h + γ)" if isinstance(kernel, SGLD) else "ε/(2δ) (nβ h + γ)"
    try:
        local = top_curvature(task, anchor, samples=min(256, 8 * len(task.base_weights)))
        curvature = max(local, steepest(task, anchor, kernel, chains, loss_band))
    except (RuntimeError, NotImplementedError, PatterningError):
        return "lower step_size; if the loss still climbs, raise localization γ and keep γε/2 below 1"
    size = step / 2 * (kernel.n_beta * max(curvature, 0.0) + kernel.localization)
    if size > 1:
        return (
            f"the steps are too long: {name} is {size:.3g} with h = {curvature:.3g}, the largest curvature that a "
            f"chain meets, and must be well below 2. Lower step_size to about {kernel.step_size * 0.2 / size:.2g}"
        )
    gamma, bound = 10 * kernel.localization, kernel.step_size * 0.2 / size / 10
    return (
        f"the steps are short enough ({name} = {size:.2g}), so the posterior itself reaches that far: raise "
        f"localization γ, to {gamma:.3g} say (and keep step_size at {min(kernel.step_size, bound):.2g} or below), "
        "or lower n_beta"
    )


def steepest(task: FlatTask, anchor: Tensor, kernel: Kernel, chains: ChainConfig, loss_band: float) -> float:
    """The largest change of the gradient over the length of a step, on the first chain's way out of its band.

    A curvature as steps of this size see it, kinks and cliffs included.
    """
    single = replace(chains, chains=1, antithetic=False)
    numbers, state, steepest = StepNumbers(task.base_weights, single, 0, anchor), init(kernel, anchor, 1), 0.0
    for step in range(MOST_STEPS):
        index = numbers.rows(step)
        before = state.position
        loss, gradient = loss_and_gradient(task, before, index)
        if not float(loss[0]) <= loss_band:
            break
        state = update(state, gradient, numbers.noise(step), kernel)
        change = loss_and_gradient(task, state.position, index)[1] - gradient
        ratio = float(change.norm() / (state.position - before).norm())
        steepest = max(steepest, ratio) if math.isfinite(ratio) else steepest
    return steepest
