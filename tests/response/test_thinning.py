"""Steps between draws: the formula against exact variances, the measurement against a quadratic's known law."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patterning.core.batch import Batch
from patterning.core.errors import PatterningError
from patterning.core.task import Call, Task
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response.thinning import best_spacing, measure_spacing, reading_cost


@pytest.mark.parametrize(("time", "reading"), [(3.0, 1.0), (8.0, 5.0), (8.0, 0.2), (20.0, 10.0)])
def test_best_spacing_has_the_least_exact_variance_for_a_budget(time: float, reading: float) -> None:
    rho, budget = (time - 1) / (time + 1), 40_000

    def variance(m: int) -> float:
        """Of the mean of as many draws as the budget buys, by the sum over all pairs of an AR(1) chain."""
        draws = int(budget / (m + reading))
        lags = np.arange(1, draws)
        return (1 + 2 * ((1 - lags / draws) * rho ** (m * lags)).sum()) / draws

    exact = {m: variance(m) for m in range(1, 65)}
    assert exact[best_spacing(time, reading)] <= min(exact.values()) * 1.001
    assert max(exact.values()) > min(exact.values()) * 1.2  # it matters
    for wrong in (0.4, 3.3):  # and a rough time is enough
        assert exact[best_spacing(time * wrong, reading)] <= min(exact.values()) * 1.4


def test_best_spacing_at_the_ends() -> None:
    assert best_spacing(10.0, 0.0) == 1  # readings for nothing: read every step
    assert best_spacing(1.0, 100.0) == 1  # independent draws
    assert best_spacing(float("nan"), 3.0) == 1
    assert best_spacing(4.0, 50.0) > best_spacing(4.0, 1.0)
    with pytest.raises(PatterningError, match="cannot cost -1"):
        best_spacing(4.0, -1.0)


class Point(nn.Module):
    """One number."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.w + 0 * x


def squared(call: Call, batch: Batch) -> Tensor:
    return 0.5 * call(batch) ** 2


@pytest.mark.parametrize("step_size", [2e-3, 8e-3])
def test_the_measured_time_is_that_of_a_quadratic(step_size: float) -> None:
    task = Task(Point(), squared, torch.zeros(8))  # equal rows: no minibatch noise, w is an AR(1) chain
    kernel = SGLD(n_beta=30.0, localization=10.0, step_size=step_size)
    chains = ChainConfig(64, 1, 200, 1, 8, seed=3, matched=True)
    rho = (1 - step_size / 2 * 40) ** 2  # of φ = w²/2
    found = measure_spacing(task, torch.zeros(1), ["full"], kernel, chains, draws=600)[0]
    assert found.autocorrelation_time == pytest.approx((1 + rho) / (1 - rho), rel=0.2)
    assert found.steps == best_spacing(found.autocorrelation_time, reading_cost(chains, 8, "covariance"))
