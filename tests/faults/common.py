"""Small tasks that the tests of this folder share."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response.components import ComponentResponse, component_response
from patterning.response.sample import sample_response

CE = partial(F.cross_entropy, reduction="none")
KERNEL = SGLD(30, 100, 1e-3)
CHAINS = ChainConfig(4, 8, 4, 2, 64, matched=True)
PAIRED = ChainConfig(2, 8, 4, 2, 64, matched=True, antithetic=True)

_rng = torch.Generator().manual_seed(0)
X = torch.randn(128, 6, generator=_rng)
Y = torch.randint(3, (128,), generator=_rng)
TOKENS = torch.randint(1, 9, (64, 8), generator=_rng)
TOKENS[:, 5:] = 0  # padding


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with normal parameters that a seed decides."""
    rng = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.detach().copy_(0.4 * torch.randn(p.shape, generator=rng))
    return module


def language_model() -> nn.Module:
    return seeded(nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9)))


def ignoring(model, batch: Tensor) -> Tensor:
    """Next-token losses with padding ignored: 0 there."""
    return F.cross_entropy(model(batch)[:, :-1].transpose(1, 2), batch[:, 1:], reduction="none", ignore_index=0)


def masked(model, batch: Tensor) -> tuple[Tensor, Tensor]:
    return ignoring(model, batch), batch[:, 1:] != 0


def classify(model, batch) -> Tensor:
    return CE(model(batch[0]), batch[1])


def squares(model, batch) -> Tensor:
    return (model(batch[0])[:, 0] - batch[1]).square()


def linear_task(seed: int = 0) -> Task:
    return Task(seeded(nn.Linear(6, 3), seed), classify, (X, Y))


def chi(task: Task, names=("full",), kernel=KERNEL, chains=CHAINS, **options) -> ComponentResponse:
    return component_response(task, task.flatten(task.module), names, kernel, chains, **options)


ROWS = torch.arange(16)


class Net(nn.Module):
    """Two layers, with a place between them for what a test wants to go wrong."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, width), nn.Linear(width, 3)
        seeded(self)
        self.prepare()

    def prepare(self) -> None:
        pass

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.hidden(x))


def refused(message: str, make: Callable[[], Any]) -> None:
    with pytest.raises(PatterningError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def at_w_star(task: Task, replicas: int = 3) -> Tensor:
    """Losses of the first rows by replica, run together and one after the other, which must agree."""
    flat, index = task.own_row().expand(replicas, -1), ROWS.expand(replicas, -1)
    with torch.no_grad():
        together, in_turn = (task.run(task.named(flat), task.data, index, one_by_one=turn) for turn in (False, True))
    torch.testing.assert_close(together, in_turn)
    return together


def sampled(task: Task, observables=None, anchor=None):
    phis = observables or {"w": lambda flat: flat[:, 0]}
    return sample_response(task, task.own_row() if anchor is None else anchor, phis, KERNEL, CHAINS)


class Normed(nn.Module):
    def __init__(self, slope: float = 1.0, act: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.norm, self.c, self.slope = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3), slope
        self.act = act or nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.act(self.slope * self.norm(self.a(x))))
