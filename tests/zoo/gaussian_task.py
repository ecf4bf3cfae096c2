"""A task whose χ has a closed form: linear regression, so that every loss is a quadratic of the weights w (3,).

The posterior is Gaussian, and so is the law of the chain, step size included (tests/zoo/quadratic.py). For observables
b·w and sample losses ½ (x_j·w - y_j)², χ_j = -bᵀ S (H_j m + g_j - mean): nothing here uses the package's estimators.

A chain of step ε has the right mean and a covariance that is too large by 1 / (1 - ελ/4). The covariance estimator sees
that covariance; pathwise χ is the derivative of the chain's mean of φ, so that its truth is another one, taken here by
finite differences of the exact law under other weights.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import patterning as pt
from zoo.quadratic import Forms, Gaussian, discretised, linear_regression, susceptibilities

N_BETA, GAMMA, STEP = 30.0, 200.0, 2e-3
KERNEL = pt.SGLD(N_BETA, GAMMA, STEP)
AWAY = np.array([0.3, -0.2, 0.1])
"""The checkpoint's distance from the minimum of the loss: at the minimum the component loss has no slope."""


@dataclass(frozen=True)
class Known:
    task: pt.Task
    batch_size: int
    """Rows of a minibatch without noise: one for each draw."""
    chi: np.ndarray
    """χ (2, n) of the observables "first" w_0 and "rest" w_1 + w_2, of the chain that is run."""
    loss_chi: np.ndarray
    """χ (1, n) of the component loss."""
    slope: np.ndarray
    """(2, n) and (1, n): what the derivative of the chain's mean of φ is, for the same observables."""
    loss_slope: np.ndarray
    first_order: np.ndarray
    """-(1/γ) ∇φ · ∇(ℓ_j - L) (2, n)."""


def first(module: nn.Module) -> Tensor:
    return module.weight[0, 0]


def rest(module: nn.Module) -> Tensor:
    return module.weight[0, 1] + module.weight[0, 2]


OBSERVABLES = {"first": first, "rest": rest}


def half_square(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (module(batch[0])[:, 0] - batch[1]).square() / 2


def known(samples: int = 20, seed: int = 1) -> Known:
    quadratic, x, y = linear_regression(seed, samples, 3)
    q = quadratic.base_weights.numpy()
    minimum = np.linalg.solve((x.T * q) @ x, (x.T * q) @ y)
    anchor = (minimum + AWAY).astype(np.float32).astype(np.float64)
    module = nn.Linear(3, 1, bias=False)
    module.weight.data = torch.from_numpy(anchor[None]).float()
    task = pt.Task(module, half_square, (torch.from_numpy(x).float(), torch.from_numpy(y).float()), q)

    def law_under(weights: np.ndarray) -> Gaussian:
        return discretised(quadratic.posterior(weights, N_BETA, GAMMA, anchor), STEP)

    def slope(phi: Forms) -> np.ndarray:
        columns = []
        for j in range(samples):
            toward = np.eye(samples)[j] - q  # q_j s_j of the intervention that moves weight onto sample j
            up, down = (phi.means(law_under(q + sign * 1e-5 * toward)) for sign in (1, -1))
            columns.append((up - down) / 2e-5 / N_BETA)
        return np.stack(columns, axis=1)

    law, loss = law_under(q), quadratic.forms.mix(q)
    slopes = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    linear = Forms(np.zeros((2, 3, 3)), slopes, np.zeros(2))
    gradients = x * (x @ anchor - y)[:, None]
    return Known(
        task=task,
        batch_size=len(quadratic.draws),
        chi=susceptibilities(quadratic, linear, law),
        loss_chi=susceptibilities(quadratic, loss, law),
        slope=slope(linear),
        loss_slope=slope(loss),
        first_order=-slopes @ (gradients - q @ gradients).T / GAMMA,
    )
