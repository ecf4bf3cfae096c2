"""What exact sampling of a localized posterior gives: Hamiltonian Monte Carlo in float64, many chains side by side.

Metropolis steps take out the step-size error that SGLD has; chains are independent, so that a mean has an honest error.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student

from zoo.known import Floats
from zoo.linear_networks import LinearNetwork

Potential = Callable[[Floats], tuple[Floats, Floats]]
"""Positions (c, P) → values (c,) and gradients (c, P)."""


@dataclass(frozen=True)
class Reference:
    """`means` of L - L(w*) over each chain's draws (chains,), and the share of accepted trajectories."""

    means: Floats
    acceptance: float

    def coefficient(self, n_beta: float) -> tuple[float, float]:
        """λ̂ and its standard error over chains."""
        values = n_beta * self.means
        return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)

    def half_width(self, n_beta: float, level: float = 0.95) -> float:
        """λ̂ ± this is an interval."""
        return float(student.ppf((1 + level) / 2, len(self.means) - 1)) * self.coefficient(n_beta)[1]


def hamiltonian(
    loss: Potential, anchor: Floats, n_beta: float, localization: float, *, step: float, leaps: int, burn_in: int,
    draws: int, chains: int, seed: int,
) -> Reference:  # fmt: skip
    """Chains of exp{-nβ L - γ/2 |w - w*|²} from w*: trajectories of `leaps` leapfrog steps (Neal, arXiv 1206.1901).

    The step of each trajectory is drawn from ± 20 % of `step`, against resonance.
    """
    rng = np.random.default_rng(seed)

    def potential(w: Floats) -> tuple[Floats, Floats, Floats]:
        value, slope = loss(w)
        away = w - anchor
        energy = n_beta * value + localization / 2 * (away**2).sum(1)
        return energy, n_beta * slope + localization * away, value

    w = np.repeat(anchor[None], chains, 0)
    energy, slope, value = potential(w)
    start, total, accepted = float(value[0]), np.zeros(chains), 0.0
    for number in range(burn_in + draws):
        momentum = rng.standard_normal(w.shape)
        before = energy + (momentum**2).sum(1) / 2
        h = step * rng.uniform(0.8, 1.2, (chains, 1))
        at, new_slope = w, slope
        new_energy, new_value = energy, value
        for _ in range(leaps):
            momentum = momentum - h / 2 * new_slope
            at = at + h * momentum
            new_energy, new_slope, new_value = potential(at)
            momentum = momentum - h / 2 * new_slope
        change = new_energy + (momentum**2).sum(1) / 2 - before
        taken = np.log(rng.random(chains)) < -change
        w, slope = np.where(taken[:, None], at, w), np.where(taken[:, None], new_slope, slope)
        energy, value = np.where(taken, new_energy, energy), np.where(taken, new_value, value)
        if number >= burn_in:
            total += (value - start) / draws
            accepted += taken.mean() / draws
    return Reference(total, accepted)


def linear_loss(task: LinearNetwork) -> Potential:
    """½ |W₂ W₁ - W*|² of a network of two layers, and its gradient, in numpy."""
    inputs, hidden, outputs = task.widths
    target = task.target.double().numpy()

    def loss(w: Floats) -> tuple[Floats, Floats]:
        first = w[:, : inputs * hidden].reshape(-1, hidden, inputs)
        second = w[:, inputs * hidden :].reshape(-1, outputs, hidden)
        rest = second @ first - target
        slopes = second.transpose(0, 2, 1) @ rest, rest @ first.transpose(0, 2, 1)
        return (rest**2).sum((1, 2)) / 2, np.concatenate([part.reshape(len(w), -1) for part in slopes], 1)

    return loss


def differentiable(losses: Callable[[torch.Tensor], torch.Tensor]) -> Potential:
    """From a function of positions (c, P) → (c,) in torch."""

    def loss(w: Floats) -> tuple[Floats, Floats]:
        at = torch.from_numpy(w).requires_grad_()
        value = losses(at)
        (slope,) = torch.autograd.grad(value.sum(), at)
        return value.detach().numpy(), slope.numpy()

    return loss
