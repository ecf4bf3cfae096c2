"""Errors of χ hold the noise of minibatches: each chain has its own (χ of linear regression, known exactly)."""

import numpy as np
import torch
from torch import nn

import patterning as pt


def test_intervals_cover_where_minibatches_are_most_of_the_noise() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=rng)
    y = x @ torch.tensor([1.0, -1.0, 0.5, 0.0]) + 0.5 * torch.randn(64, generator=rng)
    design = torch.cat([x, torch.ones(64, 1)], 1).double()
    best = torch.linalg.lstsq(design, y.double()[:, None]).solution[:, 0]
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.copy_(best[None, :4])
        model.bias.copy_(best[4:])
    covariance = torch.linalg.inv(300 * 2 * design.T @ design / 64 + 100 * torch.eye(5, dtype=torch.float64))
    exact = 2 * (y.double() - design @ best) * (design @ covariance[:, 0])  # -Cov[w₀, ℓ_j], as ℓ_j = (y - x·w)²
    exact = (exact - exact.mean()).numpy()
    task = pt.Task(model, lambda m, batch: (m(batch[0])[:, 0] - batch[1]).square(), (x, y))
    inside = []
    for seed in range(2):
        chi = pt.measure(
            task, {"w0": lambda m: m.weight[0, 0] * 1}, sampler=pt.SGLD(300, 100, 2e-4), draws=20, burn_in=200,
            steps_between_draws=10, batch_size=8, seed=seed, progress=False,
        )  # fmt: skip
        inside.append(np.mean(np.abs(chi.chi[0] - exact) <= chi.half_width()[0]))
    assert np.mean(inside) > 0.85  # 0.15 where all chains share their minibatches
