"""Faults that a sixth and a seventh round of use found: unsettled chains, lists given twice, biases that cancel."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import patterning as pt
from faults.test_fifth_look import QUICK, SAMPLER, first_weight, regression
from patterning.posterior.diagnostics import NOT_QUITE_SETTLED, missing_share, split_r_hat


def test_chains_that_differ_say_how_little_of_chi_they_miss() -> None:
    task = regression(40)
    x, w = task.data[0].double(), task.module.weight[0].detach().double()
    settings = {"burn_in": 40, "draws": 20, "batch_size": 40, "progress": False}
    chi = pt.measure(task, {"a": first_weight}, sampler=pt.SGLD(50, 20, 1e-3), **settings)
    gradients = 2 * x * (x @ w - task.data[1].double())[:, None]
    inverse = torch.linalg.inv(50 * 2 * x.T @ x / 40 + 20 * torch.eye(2))
    exact = -((gradients - gradients.mean(0)) @ inverse[0]).numpy()
    missing = 1 - float(chi.chi[0] @ exact / (exact @ exact))
    assert missing == pytest.approx(0.038, abs=0.001)
    assert 1.25 < chi.r_hat["a"] < 1.5
    assert any("chains differ on a (R-hat" in line and "about 4% of its χ" in line for line in chi.warnings)


def test_an_option_that_is_given_twice_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from patterning.cli import main

    monkeypatch.setattr(
        "sys.argv", ["patterning", "measure", "mine.py:task", "--components", "0.*", "--components=2.*"]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "--components was given twice" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("seed", range(3))
def test_a_bias_that_cancels_is_no_step(seed: int) -> None:
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    task = pt.Task(encoder, lambda m, b: (m(b[0]) - m(b[1])).square().sum(1), (torch.randn(64, 5), torch.randn(64, 5)))
    assert task.num_parameters == sum(p.numel() for p in encoder.parameters())


def test_a_loss_with_a_derivative_in_it_is_measured() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)), torch.linspace(0, 1, 32)[:, None]

    def residual(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        slope = torch.func.vmap(torch.func.grad(lambda point: model(point[None])[0, 0]))(batch)
        return (slope[:, 0] + model(batch)[:, 0]) ** 2

    found = pt.measure(pt.Task(net, residual, x), sampler=SAMPLER, estimator="covariance", **QUICK)
    assert np.isfinite(found.chi).all()


def test_remedies_of_observables_that_fail() -> None:
    x = torch.randn(8, 2)
    for function, says in (
        (
            lambda m: torch.autograd.grad(m(x).square().mean(), m.weight)[0].norm(),
            "take derivatives by torch.func.grad",
        ),
        (lambda m: m(x.double()).mean(), "modules are run in float32"),
    ):
        with pytest.raises(pt.PatterningError, match=says):
            pt.measure(regression(40), {"a": function}, sampler=SAMPLER, **QUICK)


def test_labels_in_another_order_name_the_remedy() -> None:
    task = regression(40)
    task.ids = np.array([f"s{i}" for i in range(40)])
    labels = pd.Series(["a", "b"] * 20, index=task.ids[::-1])
    with pytest.raises(pt.PatterningError, match=r"take groups.loc\[task.ids\]"):
        pt.Weights.of_groups(labels, {"a": 2, "b": 1}, task)


def test_long_steps_of_a_preconditioned_sampler_are_said_as_well() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 2)
    y = torch.where(x[:, 0] + 0.7 * torch.randn(40) > 0, 1.0, -1.0)
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.86, 0.66]]))  # the maximum of likelihood
    task = pt.Task(model, lambda m, b: F.softplus(-b[1] * m(b[0])[:, 0]), (x, y))
    settings = {"estimator": "covariance", "batch_size": 40, "burn_in": 20, **QUICK}
    for step, said in ((1e-2, True), (1e-3, False)):
        found = pt.measure(task, {"a": first_weight}, sampler=pt.RMSPropSGLD(40, 5.0, step), **settings)
        assert any("steps are long" in line for line in found.warnings) == said


@pytest.mark.parametrize(("tau", "steps", "burn_in"), [(8, 40, 10), (16, 160, 20), (32, 160, 20), (64, 400, 60)])
def test_the_missing_share_is_that_of_a_chain_with_one_correlation_time(tau: int, steps: int, burn_in: int) -> None:
    """φ = a φ + noise from φ = 0: a constant push has brought it to 1 - aᵗ of its final response after t steps."""
    rng, a = np.random.default_rng(0), np.exp(-1 / tau)
    noise = np.sqrt(1 - a**2) * rng.standard_normal((steps + burn_in, 200 * 8))
    path = np.zeros_like(noise)
    for t in range(1, len(path)):
        path[t] = a * path[t - 1] + noise[t]
    runs = path[burn_in:].reshape(steps, 200, 8)
    found = float(np.median([split_r_hat(runs[:, run]) for run in range(200)]))
    missing = float((a ** np.arange(burn_in, burn_in + steps)).mean())
    assert missing_share(found) == pytest.approx(missing, abs=0.05)
    assert (missing > 0.05) == (found > NOT_QUITE_SETTLED)
