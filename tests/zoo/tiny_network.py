"""A trained network small enough for hundreds of chains: one input, a few tanh units, one output."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patterning.core.flat import FlatTask


@dataclass(frozen=True)
class TinyNetwork:
    """ℓ_j = ½ (y_j - Σ_u c_u tanh(a_u x_j + b_u) - d)², parameters (a, b, c, d); equal base weights."""

    x: Tensor
    y: Tensor
    units: int = 3

    @property
    def base_weights(self) -> Tensor:
        return torch.full((len(self.x),), 1 / len(self.x), dtype=torch.float64)

    @property
    def draws(self) -> Tensor:
        return torch.arange(len(self.x))

    def init(self, seeds: Sequence[int]) -> Tensor:
        rows = [np.random.default_rng(seed).standard_normal(3 * self.units + 1) for seed in seeds]
        return torch.from_numpy(np.stack(rows).astype(np.float32))

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        a, b, c = (part[:, None] for part in flat[:, :-1].split(self.units, 1))
        x, y = (values.to(flat.dtype)[index] for values in (self.x, self.y))
        output = (c * torch.tanh(a * x[..., None] + b)).sum(-1) + flat[:, -1:]
        return (y - output) ** 2 / 2


def trained_network() -> tuple[TinyNetwork, Tensor]:
    """A network fitted to a noisy wave of 12 points, and its minimum w* (P,), float64."""
    rng = np.random.default_rng(1)
    x = np.linspace(-2, 2, 12)
    y = np.sin(2 * x) + 0.3 * rng.standard_normal(12)
    task = TinyNetwork(torch.from_numpy(x), torch.from_numpy(y))
    flat = task.init([1]).double().requires_grad_()
    every = torch.arange(12)[None]
    optimizer = torch.optim.LBFGS([flat], max_iter=5000, tolerance_grad=1e-9, tolerance_change=0.0,
                                  history_size=50, line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task.losses(flat, every).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return task, flat.detach()[0]


@dataclass(frozen=True)
class Reweighted:
    """`task` whose samples weigh ρ_j (n,): the loss of sample j is multiplied, minibatches are drawn as before."""

    task: FlatTask
    rho: Tensor

    @property
    def base_weights(self) -> Tensor:
        return self.task.base_weights

    @property
    def draws(self) -> Tensor:
        return self.task.draws

    def init(self, seeds: Sequence[int]) -> Tensor:
        return self.task.init(seeds)

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        return self.task.losses(flat, index) * self.rho.to(flat.dtype)[index]
