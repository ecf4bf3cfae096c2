"""What a chain adds by itself to χ is said: minibatches that are too small, steps that are too long, far kinks.

Linear regression around its exact minimum has a Gaussian posterior, whose χ is known; a loss with kinks in two
parameters has one that a grid gives.
"""

import re

import numpy as np
import pytest
import torch
from torch import nn

import patterning as pt

N_BETA, GAMMA = 300.0, 100.0


def regression(rows: int = 400, noise: float = 1.0, seed: int = 0) -> tuple[pt.Task, torch.Tensor, torch.Tensor]:
    """The task around its minimum, the inputs with a column of 1, and the residuals."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=rng)
    y = x @ torch.tensor([1.0, -1.0, 0.5, 0.0]) + noise * torch.randn(rows, generator=rng)
    design = torch.cat([x, torch.ones(rows, 1)], 1).double()
    best = torch.linalg.lstsq(design, y.double()[:, None]).solution[:, 0]
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.copy_(best[None, :4])
        model.bias.copy_(best[4:])
    task = pt.Task(model, lambda m, batch: (m(batch[0])[:, 0] - batch[1]).square(), (x, y))
    return task, design, y.double() - design @ best


def exact_chi_of_w0(design: torch.Tensor, residual: torch.Tensor) -> np.ndarray:
    precision = N_BETA * 2 * design.T @ design / len(design) + GAMMA * torch.eye(5, dtype=torch.float64)
    chi = 2 * residual * (design @ torch.linalg.inv(precision)[:, 0])
    return (chi - chi.mean()).numpy()


def step_size(design: torch.Tensor, length: float) -> float:
    top = float(torch.linalg.eigvalsh(2 * design.T @ design / len(design))[-1])
    return length / (N_BETA * top + GAMMA)


def measured(task: pt.Task, epsilon: float, **changes) -> pt.Response:
    settings = {"chains": 8, "draws": 100, "burn_in": 200, "steps_between_draws": 8, "batch_size": 32, "budget": 1}
    settings |= {"estimator": "covariance", "reliability": None, "progress": False} | changes
    return pt.measure(task, {"w0": lambda m: m.weight[0, 0] * 1}, sampler=pt.SGLD(N_BETA, GAMMA, epsilon), **settings)


def test_the_noise_of_small_minibatches_is_said_as_large_as_it_is() -> None:
    task, design, residual = regression()
    exact, epsilon = exact_chi_of_w0(design, residual), step_size(design, 0.2)
    chi = measured(task, epsilon, batch_size=8)
    slope = float(chi.chi[0] @ exact / (exact @ exact))
    assert slope > 2.5  # (1 + r) with r = ε/4 (nβ)² Var(∇ℓ)/B = 2.6, by theory
    (said,) = [line for line in chi.warnings if "minibatches are small" in line]
    share = int(re.findall(r"about (\d+)%", said)[0]) / 100
    assert 0.4 < share < 1
    large = int(re.findall(r"batch_size=(\d+)", said)[0])
    mended = measured(task, epsilon, batch_size=max(large, 200))
    assert not [line for line in mended.warnings if "minibatches" in line]
    assert float(mended.chi[0] @ exact / (exact @ exact)) < 1.25


def test_long_steps_are_said_and_no_response_is_taken_of_chains_that_overshoot() -> None:
    task, design, _ = regression(40, 0.3)
    short, long, longest = (step_size(design, length) for length in (0.2, 1.4, 2.8))
    full = {"batch_size": 40, "draws": 8}
    assert not [line for line in measured(task, short, **full).warnings if "steps are long" in line]
    assert any("steps are long" in line for line in measured(task, long, **full).warnings)
    chi = measured(task, longest, estimator="auto", **full)
    assert list(chi.estimator.values()) == ["covariance"]
    with pytest.raises(pt.PatterningError, match=r"the steps are too long: .* Lower step_size to about"):
        measured(task, longest, estimator="pathwise", **full)


LOSSES = {
    "ε-insensitive": lambda error: (error.abs() - 0.3).clamp(min=0),
    "flooding": lambda error: error.square().clamp(min=0.09),
    "capped": lambda error: error.square().clamp(max=0.04),
    "Huber": lambda error: torch.where(error.abs() < 0.2, error.square() / 0.4, error.abs() - 0.1),
}


def kinked(name: str) -> pt.Task:
    rng, loss = np.random.default_rng(0), LOSSES[name]
    x = torch.from_numpy(rng.normal(size=24).astype("f4"))
    y = 1.5 * x + 0.5 + 0.05 * torch.from_numpy(rng.normal(size=24).astype("f4"))
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.5)
        model.bias.fill_(0.5)
    return pt.Task(model, lambda m, batch: loss(m(batch[0])[:, 0] - batch[1]), (x[:, None], y))


@pytest.mark.parametrize(
    "name", ["capped", *[pytest.param(name, marks=pytest.mark.slow) for name in ("ε-insensitive", "flooding", "Huber")]]
)
def test_kinks_away_from_the_checkpoint_are_seen(name: str) -> None:
    n_beta, gamma, loss, task = 100, 10, LOSSES[name], kinked(name)
    x, y = task.data[0][:, 0], task.data[1]
    chi = pt.measure(
        task, {"phi": lambda m: m.weight.sum() ** 2 + m.bias.sum()}, sampler=pt.SGLD(n_beta, gamma, 1e-3), chains=8,
        draws=40, burn_in=300, steps_between_draws=20, batch_size=24, budget=1, progress=False, reliability=None,
    )  # fmt: skip
    a, b = (part.ravel() for part in torch.meshgrid(*[torch.linspace(-2, 2, 201).double()] * 2, indexing="ij"))
    a, b = a + 1.5, b + 0.5
    losses = loss(a[:, None] * x + b[:, None] - y)
    mean = losses.mean(1)
    weight = torch.softmax(-n_beta * mean - gamma / 2 * ((a - 1.5) ** 2 + (b - 0.5) ** 2), 0)
    phi, excess = a**2 + b, losses - mean[:, None]
    exact = ((weight @ phi) * (weight @ excess) - (weight * phi) @ excess).numpy()
    assert 0.7 < float(chi.chi[0] @ exact / (exact @ exact)) < 1.4  # 8-10, 2.5-3.3 and 0.5 by the response of the chain


@pytest.mark.parametrize("estimator", ["covariance", "pathwise"])
def test_shards_say_the_same_of_their_chains(estimator: str, tmp_path) -> None:
    task, design, _ = regression(40, 0.3)
    stated = {"batch_size": 4, "draws": 8, "shards": 2, "out": tmp_path / "run", "estimator": estimator}
    said = measured(task, step_size(design, 1.0), **stated).warnings
    assert any("steps are long" in line for line in said)
    assert any("minibatches are small" in line for line in said)
    if estimator == "pathwise":
        with pytest.raises(pt.PatterningError, match=r"the steps are too long: .* Lower step_size to about"):
            measured(task, step_size(design, 2.8), **stated | {"out": tmp_path / "other"})


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "capped" else pytest.mark.slow) for name in LOSSES if name != "Huber"],
)
def test_shards_see_kinks_away_from_the_checkpoint_as_well(name: str, tmp_path) -> None:
    settings = {"sampler": pt.SGLD(100, 10, 1e-3), "chains": 4, "draws": 20, "burn_in": 300, "batch_size": 24,
                "steps_between_draws": 20, "budget": 1, "progress": False, "reliability": None}  # fmt: skip
    said = []
    for sharded in ({}, {"shards": 2, "out": tmp_path / "run"}):
        try:
            said.append(pt.measure(kinked(name), estimator="pathwise", **settings, **sharded).warnings)
        except pt.PatterningError as error:
            said.append(str(error).partition("; use")[0])
    assert said[0] == said[1]
    assert "kinks of the loss" in str(said[1]) or "the second derivative of the loss does not say" in str(said[1])
