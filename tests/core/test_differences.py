"""The gradient of a loss that bends within a coarse step is right all the same; one that is wrong stays refused."""

import pytest
import torch
from torch import nn

from patterning.core.errors import PatterningError
from patterning.core.task import Task

X = torch.randn(32, 20_000, generator=torch.Generator().manual_seed(1)) / 20_000**0.5


class Scaled(torch.autograd.Function):
    """Says three times the gradient that it has."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient


class Steep(nn.Module):
    """A sine of many periods between w* and a thousandth of its norm away."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.weight = nn.Parameter(3 * torch.randn(20_000, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        phase = 20 * (x @ self.weight)
        return 1.5 + torch.sin(Scaled.apply(phase) if self.wrong else phase)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_loss_that_bends_within_a_step_is_judged_by_finer_ones(wrong: bool) -> None:
    def make() -> Task:
        return Task(Steep(wrong), lambda model, x: model(x).float(), X)

    if wrong:
        with pytest.raises(PatterningError, match="is not that of its values"):
            make()
    else:
        assert make().num_parameters == 20_000
