"""What is said where a default or a state of the module decides."""

import pytest
import torch
from torch import nn

import patterning as pt


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


def squares(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().squeeze(-1)


def test_fit_says_that_it_keeps_running_statistics() -> None:
    torch.manual_seed(0)
    task = pt.Task(Normed().eval(), squares, (torch.randn(16, 3), torch.randn(16, 1)))
    with pytest.warns(pt.PatterningWarning, match="norm: fit trains under the running statistics") as said:
        fitted = pt.fit(task, None, 0, steps=2, batch_size=8)
    assert [line.filename for line in said] == [__file__]
    torch.testing.assert_close(fitted.norm.running_mean, task.module.norm.running_mean)


def test_without_a_sampler_chains_are_calibrated() -> None:
    torch.manual_seed(0)
    x, model = torch.randn(32, 2), nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.zero_()
    task = pt.Task(model, squares, (x, x.sum(1, keepdim=True) + 0.1 * torch.randn(32, 1)))
    settings = {"chains": 2, "draws": 4, "burn_in": 4, "budget": 1, "reliability": None, "progress": False}
    given = pt.measure(task, {"a": lambda m: m.weight[0, 0] * 1}, sampler="calibrate", **settings)
    assert (pt.measure(task, {"a": lambda m: m.weight[0, 0] * 1}, **settings).chi == given.chi).all()
