"""Weights in a training loop of your own: any framework, any optimiser, thirty lines.

python examples/own_loop.py
"""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import patterning as pt

x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
noise = torch.randn(400, generator=torch.Generator().manual_seed(1))
y = torch.where(torch.arange(400) < 200, x[:, 0], x[:, 1]) + 0.1 * noise  # two halves of the data, two rules
rho = pt.Weights.of_rows(np.where(np.arange(400) < 200, 1.6, 0.4))  # more of the first; or chi.invert(…).weights(…)


def train(weights: pt.Weights, seed: int) -> nn.Module:
    """A plain loop: rows are drawn in proportion to their weight, and the loss stays as it was."""
    torch.manual_seed(seed)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batches = DataLoader(TensorDataset(x, y), batch_size=50, sampler=weights.sampler(seed))
    for _ in range(10):
        for inputs, targets in batches:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs)[:, 0], targets).backward()
            optimizer.step()
    return model


def reads_first(model: nn.Module) -> float:
    """The weight of the first input."""
    return model.weight[0, 0].item()


if __name__ == "__main__":
    pt.verify(train, {"the first rule": rho}, {"first input": reads_first}, seeds=range(8),
              wanted={"the first rule": {"first input": 1}}).show()  # fmt: skip
