"""What the tenth round of ordinary inputs found, and what earlier rounds had left."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import patterning as pt
from faults.test_chain_bias import GAMMA, N_BETA, regression, step_size
from patterning.response.settling import _of_covariance


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


def test_short_chains_of_an_observable_without_a_gradient_at_the_checkpoint_are_said() -> None:
    task, design, _ = regression(60, 0.3)
    first = task.module.weight[0, 0].item()
    chi = pt.measure(
        task, {"away": lambda m: (m.weight[0, 0] - first).square()}, draws=20, burn_in=20, steps_between_draws=1,
        sampler=pt.SGLD(N_BETA, GAMMA, step_size(design, 0.02)), batch_size=60, budget=1, reliability=None,
        estimator="covariance", progress=False,
    )  # fmt: skip
    assert any("chains may be short for away: where the loss is flat" in line for line in chi.warnings)


def test_what_a_covariance_of_short_chains_misses_is_that_of_draws_centred_on_their_mean() -> None:
    times, pull, chains = np.arange(8.0, 88.0, 8.0), 0.03, 20_000
    states, rng = np.zeros(chains), np.random.default_rng(0)
    seen = []
    for step in range(1, 81):
        states = (1 - pull) * states + np.sqrt(1 - (1 - pull) ** 2) * rng.normal(size=chains)
        if step in times:
            seen.append(states)
    missing = 1 - np.mean(np.var(seen, axis=0, ddof=1))
    assert _of_covariance(np.array([pull]), times)[0] == pytest.approx(missing, abs=0.01)


def test_a_frame_whose_columns_are_taken_by_name_is_told_how() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [2.0, 1.0, 3.0, 5.0]})

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return (model(batch["a"].reshape(-1, 1))[:, 0] - batch["b"]).square()

    with pytest.raises(pt.PatterningError, match="pass a dict of its columns to take them by name"):
        pt.Task(nn.Linear(1, 1), loss, frame)
    assert pt.Task(nn.Linear(1, 1), loss, {name: frame[name].astype("float32") for name in frame}).num_parameters == 2
