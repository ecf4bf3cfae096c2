"""The known answers, each with a sampler that fits it: every chain is worth hundreds of draws."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from patterning.posterior.chains import ChainConfig
from patterning.posterior.preconditioned import RMSPropSGLD
from patterning.posterior.sgld import SGLD
from zoo.known import Known
from zoo.linear_networks import aoyagi_watanabe, linear_network
from zoo.quadratic import (
    Forms,
    QuadraticTask,
    chain_variance,
    linear_regression,
    quadratic_known,
    quadratic_task,
    random_forms,
)
from zoo.singular import crossing, quartic


@dataclass(frozen=True)
class Case:
    """A problem and its chains."""

    make: Callable[[], Known]
    config: ChainConfig


CURVATURE = np.geomspace(1, 8, 4)


def bowl_task() -> tuple[QuadraticTask, Forms]:
    """Curvatures 1 to 8, spread by half between two samples; two more differ by a slope. And w₁."""
    curvature, spread = CURVATURE, np.array([0.5, 0.5, -0.5, -0.5])
    diagonals = curvature * np.stack([1 + spread, 1 - spread, np.ones(4), np.ones(4)])
    slopes = 0.3 * np.array([0, 0, 1, -1])[:, None] * np.ones(4)
    forms = Forms(np.stack([np.diag(row) for row in diagonals]), slopes, np.zeros(4))
    return quadratic_task(forms, [1] * 4), Forms(np.zeros((1, 4, 4)), np.eye(4)[:1], np.zeros(1))


def bowl() -> Known:
    """Plain SGLD."""
    task, first = bowl_task()
    kernel = SGLD(n_beta=30.0, localization=10.0, step_size=0.005)  # ελ up to 1.25: far from ε → 0, and exact
    return quadratic_known("quadratic, P = 4", task, np.zeros(4), kernel, first, ["w₁"])


def preconditioned_bowl() -> Known:
    """RMSProp-SGLD whose second moment hardly moves: SGLD with a step of ε / (√E g² + δ) for each coordinate.

    E g² = h² Var w, and Var w = 1 / (λ (1 - ε_i λ / 4)) in its turn depends on the step ε_i: a fixed point.
    """
    task, first = bowl_task()
    kernel = RMSPropSGLD(n_beta=30.0, localization=10.0, step_size=0.0025, decay=0.9999)
    total = kernel.n_beta * CURVATURE + kernel.localization
    step = np.full(4, kernel.step_size)
    for _ in range(100):
        step = kernel.step_size / (CURVATURE * np.sqrt(chain_variance(total, step)) + kernel.damping)
    return quadratic_known("the same, RMSProp-SGLD", task, np.zeros(4), kernel, first, ["w₁"], step)


def linear_model() -> Known:
    """Linear regression with sample weights 1 to 4, sampled around a point that is not its minimum."""
    task, _, _ = linear_regression(0, 10, 3)
    anchor = np.random.default_rng(1).standard_normal(3).astype(np.float32).astype(np.float64)
    kernel = SGLD(n_beta=20.0, localization=15.0, step_size=0.01)
    phi = random_forms(2, 1, 3)
    return quadratic_known("linear model", task, anchor, kernel, phi, ["½wᵀAw + bᵀw"])


def reduced_rank() -> Known:
    """4 → 3 → 4 at true rank 3."""
    kernel = SGLD(n_beta=1e5, localization=1000.0, step_size=5e-7)
    return linear_network("reduced rank 4-3-4, r = 3", (4, 3, 4), aoyagi_watanabe(4, 4, 3, 3)[0], kernel, 0)


def deep_linear() -> Known:
    """4 → 2 → 3 → 4 at true rank 2, the narrowest width: maps of rank 2 are a manifold of dimension 2 (4 + 4 - 2)."""
    kernel = SGLD(n_beta=1e5, localization=1000.0, step_size=5e-7)
    return linear_network("deep linear 4-2-3-4, r = 2", (4, 2, 3, 4), 2 * (4 + 4 - 2) / 2, kernel, 0)


def chains(draws: int, burn_in: int, every: int, batch_size: int, seed: int) -> ChainConfig:
    return ChainConfig(4, draws, burn_in, every, batch_size, seed)


CASES = {
    "quadratic": Case(bowl, chains(2000, 150, 10, 4, 1)),
    "preconditioned": Case(preconditioned_bowl, chains(2000, 500, 10, 4, 7)),
    "quartic": Case(lambda: quartic(SGLD(100.0, 4.0, 2e-3)), chains(2000, 200, 10, 4, 2)),
    "crossing": Case(lambda: crossing(SGLD(100.0, 5.0, 8e-4)), chains(2000, 1500, 20, 4, 3)),
    "reduced rank": Case(reduced_rank, chains(2000, 500, 10, 4, 4)),
    "deep linear": Case(deep_linear, chains(2000, 500, 10, 4, 5)),
    "linear model": Case(linear_model, chains(2000, 100, 5, 26, 6)),
}
