"""Which digits should weigh more, for a small network to read the 8s better: the whole method in ten lines.

Compare digits.py, which shows the parts. Half a minute on one core; needs scikit-learn:

    python examples/ten_lines.py
"""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import patterning as pt

images, digits = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(digits))
x, y = torch.tensor(images[order] / 16).float(), torch.tensor(digits[order])
probe, test = torch.arange(1000, 1400), torch.arange(1400, 1797)


def make(seed: int) -> nn.Module:
    """A fresh network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def eights(rows: torch.Tensor) -> Callable[[nn.Module], torch.Tensor]:
    """The loss on the 8s among these rows, as a function of a network."""
    own = rows[y[rows] == 8]
    return lambda net: cross_entropy(net(x[own]), y[own])


def main(*, seeds: int = 8, draws: int = 30, steps: int = 400) -> tuple[pt.Response, pt.Direction, pt.Evidence]:
    """χ of the 8s' loss, a direction for less of it, and what retraining along it does to the 8s of test images."""

    def train(weights: pt.Weights, seed: int) -> nn.Module:
        return pt.fit(task, weights, seed, steps=steps, learning_rate=3e-3)

    data = (x[:1000], y[:1000])
    task = pt.Task(make(0), lambda net, b: cross_entropy(net(b[0]), b[1], reduction="none"), data, make=make)
    trained = pt.fit(task, None, seed=1000, steps=steps, learning_rate=3e-3)
    sampler = pt.SGLD(n_beta=300, localization=1000, step_size=1e-4)
    chi = pt.measure(task, {"8s": eights(probe)}, sampler=sampler, draws=draws, batch_size=128, budget=1, at=trained)
    plan = chi.invert({"8s": -1})
    rho = plan.weights(strength=0.25)
    measures = {"8s": lambda net: eights(test)(net).item()}
    check = pt.verify(train, {"fewer errors on 8s": rho}, measures, seeds=range(seeds))
    print(chi, plan, sep="\n")
    check.show()
    return chi, plan, check


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
