r"""The metagradient: how the end of training moves with the weight of each sample, by reverse mode through training.

Training under weights w_j = ρ_j is a function w ↦ θ_T(w). For an observable φ of the trained parameters

.. math:: \chi_j = \frac{1}{q_j} \frac{\partial \phi(\theta_T)}{\partial \rho_j}

is computed exactly (Maclaurin et al., arXiv 1502.03492; Engstrom et al., "Optimizing ML training with metagradient
descent", arXiv 2503.13751): the steps of Adam are differentiated one by one from the last to the first, and are
recomputed from states that are kept every √T steps. It is a rival of χ that needs no sampling, where training is
smooth: otherwise its adjoint grows by orders of magnitude (`growth`), and the derivative describes nothing but an
infinitesimal change. `metasmoothness` says which of the two it is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.flat import FlatTask
from patterning.training.weighted import (
    EpochRows,
    TrainConfig,
    TrainState,
    advance,
    drawn_weights,
    init_state,
    uniform_weights,
)

BETAS = (0.9, 0.999)
"""Adam's, as in `training.weighted`."""
State = tuple[Tensor, Tensor, Tensor]
"""Parameters and Adam's two moments, each (1, P)."""


@dataclass(frozen=True)
class Metagradient:
    """`chi` (n,), float64: [φ] for each unit of relative weight, mean 0 under q. `value`: φ after training.

    `growth`: the largest norm of the adjoint on the way back, in units of its norm at the end of training. Above about
    10³ the derivative says little of any change that can be made.
    """

    chi: Tensor
    value: float
    growth: float


def metagradient(
    task: FlatTask, config: TrainConfig, seed: int, phi: Callable[[Tensor], Tensor], rho: Tensor | None = None
) -> Metagradient:
    """χ of φ: (1, P) → (1,) at the end of one run under weights ρ (n,) (default: 1 for each).

    Time: about five times that of training. Memory: 2√T states of 3 P numbers. Raises `PatterningError` where the run
    or its derivative is not finite.
    """
    given = uniform_weights(task) if rho is None else rho
    marks = _kept(task, config, seed, given)
    last = marks[-1][1]
    weights, minibatch = _start(task, config, seed, given, last[0].device)
    end = last[0].detach().requires_grad_()
    value = phi(end)
    (adjoint,) = torch.autograd.grad(value.sum(), end)
    back: State = (adjoint, torch.zeros_like(adjoint), torch.zeros_like(adjoint))
    size, result = float(adjoint.norm()), float(value.detach().sum())
    growth = torch.ones((), dtype=torch.float64, device=end.device)
    slope = torch.zeros(len(weights), dtype=torch.float64, device=end.device)
    for (start, state), (stop, _) in zip(reversed(marks[:-1]), reversed(marks[1:]), strict=True):
        segment = [state]
        for step in range(start, stop - 1):
            segment.append(_step(task, config, segment[-1], weights, minibatch(step), step)[0])
        for step in range(stop - 1, start - 1, -1):
            rows = minibatch(step)
            back, along = _pull_back(task, config, segment[step - start], weights, rows, step, back)
            slope.index_add_(0, rows[0], along[0].double())
            grown = back[0].norm().double() / (size or 0.0)
            growth = torch.where(grown > growth, grown, growth)
    if not (math.isfinite(result) and bool(slope.isfinite().all())):
        raise PatterningError(f"training with seed {seed}, or its derivative, is not finite: use a smoother setting")
    chi = _response(slope.cpu(), weights.double().cpu(), task.base_weights)
    return Metagradient(chi, result, float(growth) if size else math.inf)


def metasmoothness(task: FlatTask, config: TrainConfig, seed: int, direction: Tensor, strength: float) -> float:
    """How much of a change of the trained parameters goes on in the same direction when the weights move on, -1 to 1.

    Trained at ρ = 1, 1 + h s and 1 + 2 h s for `direction` s (n,) and `strength` h: the sign agreement of the two
    differences of θ_T, each coordinate weighted by the size of the first (Engstrom et al., arXiv 2503.13751, their
    empirical metasmoothness). Near 1, a derivative foretells the change; near 0 it does not. Raises `PatterningError`
    where 1 + 2 h s is negative somewhere.
    """
    steps = torch.arange(3, dtype=torch.float64)[:, None] * strength
    rho = 1 + steps * direction.double()
    flat = torch.cat(
        [advance(task, config, init_state(task, [seed]), [seed], row, config.steps).flat for row in rho]
    ).double()
    first, second = flat[1] - flat[0], flat[2] - flat[1]
    total = float(first.abs().sum())
    if not total > 0:
        raise PatterningError("the weights change nothing in training: metasmoothness is not defined")
    return float((first.abs() * first.sign() * second.sign()).sum() / total)


def _kept(task: FlatTask, config: TrainConfig, seed: int, rho: Tensor) -> list[tuple[int, State]]:
    """States at step 0, every √T steps and at the end; each step as `advance` takes it, up to rounding."""
    start: TrainState = init_state(task, [seed])
    weights, minibatch = _start(task, config, seed, rho, start.flat.device)
    state: State = (start.flat, start.first_moment, start.second_moment)
    every = max(1, math.isqrt(config.steps))
    kept = [(0, state)]
    for step in range(config.steps):
        state = _step(task, config, state, weights, minibatch(step), step)[0]
        if (step + 1) % every == 0 or step + 1 == config.steps:
            kept.append((step + 1, state))
    return kept


def _start(
    task: FlatTask, config: TrainConfig, seed: int, rho: Tensor, device: torch.device
) -> tuple[Tensor, Callable[[int], Tensor]]:
    """Normalised weights (n,) and minibatches, step → (1, b), on a device."""
    weights = drawn_weights(rho, task).float().to(device)
    return weights, EpochRows(task.draws, [seed], config.batch_size, device)


def _step(
    task: FlatTask, config: TrainConfig, state: State, weights: Tensor, rows: Tensor, step: int
) -> tuple[State, Tensor]:
    """One step of Adam with coupled weight decay, without a graph; and its loss."""
    flat = state[0].detach().requires_grad_()
    loss = (weights[rows] * task.losses(flat, rows)).mean()
    (gradient,) = torch.autograd.grad(loss, flat)
    with torch.no_grad():
        after = _adam(config, (flat, state[1], state[2]), gradient, step)
    return tuple(part.detach() for part in after), loss.detach()  # pyright: ignore[reportReturnType]


def _adam(config: TrainConfig, state: State, gradient: Tensor, step: int) -> State:
    flat, first, second = state
    whole = gradient + config.weight_decay * flat
    first = BETAS[0] * first + (1 - BETAS[0]) * whole
    second = BETAS[1] * second + (1 - BETAS[1]) * whole.square()
    corrected = second / (1 - BETAS[1] ** (step + 1))
    moved = corrected > 0  # the root has no derivative at 0, where there is no step either
    root = torch.where(moved, corrected, 1.0).sqrt()
    size = config.rate(step) / (1 - BETAS[0] ** (step + 1))
    return flat - size * torch.where(moved, first / (root + config.epsilon), 0.0), first, second


def _pull_back(
    task: FlatTask, config: TrainConfig, state: State, weights: Tensor, rows: Tensor, step: int, back: State
) -> tuple[State, Tensor]:
    """The adjoint before a step from that after it; and the slope along the weights of the step's rows (1, b)."""
    flat, first, second = (part.detach().requires_grad_() for part in state)
    own = weights[rows].detach().requires_grad_()
    loss = (own * task.losses(flat, rows)).mean()
    (gradient,) = torch.autograd.grad(loss, flat, create_graph=True)
    after = _adam(config, (flat, first, second), gradient, step)
    *before, along = torch.autograd.grad(after, (flat, first, second, own), back)
    return tuple(before), along  # pyright: ignore[reportReturnType]


def _response(slope: Tensor, weights: Tensor, q: Tensor) -> Tensor:
    """χ at normalised weights, from the slope along unnormalised ones: only ratios of weights matter to training."""
    q = q.double()
    chi = torch.where(q > 0, slope / q.clamp_min(1e-300), 0.0)
    return chi - (q * weights * chi).sum()


def mean_metagradient(
    task: FlatTask, config: TrainConfig, seeds: Sequence[int], phi: Callable[[Tensor], Tensor]
) -> tuple[Tensor, list[Metagradient]]:
    """χ (n,) averaged over seeds, and that of each."""
    each = [metagradient(task, config, seed, phi) for seed in seeds]
    return torch.stack([one.chi for one in each]).mean(0), each
