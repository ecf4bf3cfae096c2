"""A training loop of your own under weights, in thirty lines: weights by row number in the loss of each minibatch.

The loop is ordinary PyTorch. What it needs of the package is `weights.loss(losses, rows)`; `verify` does the rest: the
same seeds unweighted and under permuted weights, and what is to be concluded. A few seconds on one core:

    python examples/own_loop.py
"""

import torch
from torch import nn

import patterning as pt

# Two kinds of data that pull a line in different directions: the first half says slope 1, the second half says slope 0.
generator = torch.Generator().manual_seed(0)
x = torch.randn(200, 1, generator=generator)
y = x * (torch.arange(200) < 100)[:, None] + 0.1 * torch.randn(200, 1, generator=generator)


def train(weights: pt.Weights, seed: int) -> nn.Linear:
    """Your loop: any model, optimizer and data order, all of them by the seed."""
    torch.manual_seed(seed)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(100):
        rows = torch.randint(200, (32,))
        losses = (model(x[rows]) - y[rows]).square().squeeze(1)
        optimizer.zero_grad()
        weights.loss(losses, rows).backward()
        optimizer.step()
    return model


def main(seeds: int = 8) -> pt.Evidence:
    """Weights that favour the first half should raise the slope; the measure does not know of them."""
    rho = pt.Weights.of_rows([1.5 if row < 100 else 0.5 for row in range(200)])
    slope = pt.Measure(lambda model: model.weight.item())
    check = pt.verify(train, {"first half": rho}, {"slope": slope}, range(seeds), wanted={"first half": {"slope": 1}})
    check.show()
    return check


if __name__ == "__main__":
    main()
