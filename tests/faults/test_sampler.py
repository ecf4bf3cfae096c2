"""A chain that explodes is no result: settings are refused, chains are excluded by name, and the advice helps."""

import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from patterning.core.errors import PatterningError, PatterningWarning
from patterning.core.task import Task
from patterning.models.restricted import Restricted
from patterning.posterior import short_chain
from patterning.posterior.band import advise, default_band
from patterning.posterior.chains import ChainConfig
from patterning.posterior.preconditioned import RMSPropSGLD
from patterning.posterior.sgld import SGLD
from patterning.response.components import component_response
from patterning.response.sample import sample_response
from tests.faults.common import X, Y, chi, classify, linear_task, seeded

LONG = ChainConfig(4, 20, 40, 4, 16, matched=True)
PAIRED = ChainConfig(4, 20, 40, 4, 16, matched=True, antithetic=True)


@pytest.mark.parametrize(("localization", "step_size"), [(1000, 5e-3), (100, 10.0), (1e6, 1e-3), (100, 0.04)])
def test_a_pull_that_overshoots_is_refused_and_the_advice_is_accepted(localization, step_size) -> None:
    with pytest.raises(PatterningError, match=r"γε/2 is .* lower step_size below 2/γ = ") as raised:
        SGLD(30, localization, step_size)
    advice = float(re.findall(r"= ([0-9.e+-]+)$", str(raised.value))[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SGLD(30, localization, 0.99 * advice)


def test_a_pull_that_swings_is_warned_of() -> None:
    with pytest.warns(PatterningWarning, match=r"γε/2 is 1.5: past 1 .* 4 times"):
        SGLD(30, 100, 0.03)
    with pytest.raises(PatterningError, match=r"γε/\(2δ\) is 5"):
        RMSPropSGLD(30, 100, 0.01, damping=0.1)


def descended(task: Task) -> torch.Tensor:
    """The task's parameters after 300 steps of gradient descent."""
    row = task.own_row()
    for _ in range(300):
        flat = row[None].requires_grad_()
        (slope,) = torch.autograd.grad(task.losses(flat, torch.arange(128)[None]).mean(), flat)
        row = (row - 0.5 * slope[0]).detach()
    return row


def steep_task() -> Task:
    """Inputs 30 times as large: the largest curvature of the loss is some 10³."""
    return Task(seeded(nn.Linear(6, 3)), classify, (30 * X, Y))


@pytest.mark.parametrize("estimator", ["auto", "covariance", "pathwise"])
@pytest.mark.parametrize("step_size", [0.01, 0.002])
def test_steps_too_long_for_the_loss_are_no_result_and_the_advice_helps(estimator: str, step_size: float) -> None:
    """γε/2 is small, nβ h ε/2 is not: nothing explodes at once, but the loss passes that of a constant predictor."""
    task, chains = steep_task(), LONG if estimator == "covariance" else PAIRED
    with pytest.raises(PatterningError, match=r"the steps are too long: .* Lower step_size to about") as raised:
        chi(task, kernel=SGLD(1000, 100, step_size), chains=chains, estimator=estimator)
    tried_first = estimator == "pathwise"  # by a short chain
    assert tried_first or "above its band" in str(raised.value) or "nan" in str(raised.value)
    advice = float(re.findall(r"to about ([0-9.e+-]+)", str(raised.value))[0])
    found = chi(task, kernel=SGLD(1000, 100, advice), chains=chains, estimator=estimator).by_component["full"]
    assert not found.excluded
    assert found.rise < 0.2
    assert np.abs(found.susceptibility.chi).max() < 10


def test_a_posterior_that_is_too_wide_is_named_as_such() -> None:
    """At γ = 1 and nβ = 0.1 weights of size 1 are drawn: the steps are fine, the prior is too loose."""
    task = steep_task()
    with pytest.raises(PatterningError, match=r"the steps are short enough .* raise localization"):
        chi(task, kernel=SGLD(1e-3, 1.0, 0.05), chains=ChainConfig(4, 20, 200, 4, 16))


def test_other_components_go_on_when_one_is_refused() -> None:
    net = seeded(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)))
    task = Task(net, lambda model, b: classify(model, (b[0] * torch.tensor([1000.0, 1, 1, 1, 1, 1]), b[1])), (X, Y))
    response = chi(task, ["0.weight", "1.bias"], kernel=SGLD(300, 100, 1e-3), chains=LONG)
    assert list(response.by_component) == ["1.bias"]
    assert "too long" in response.refused["0.weight"]


def test_the_default_band_is_the_loss_of_a_model_that_knows_nothing() -> None:
    task = linear_task()
    trained = descended(task)
    assert default_band(task, trained, 64, 30) == pytest.approx(np.log(3), abs=0.05)
    assert default_band(task, trained, 64, 0) == np.inf
    start = float(task.losses(task.own_row()[None], torch.arange(128)[None]).mean())
    assert default_band(task, task.own_row(), 64, 30) > start  # worse than a constant: there is still a band
    free, kernel = Restricted(task, trained, "full"), RMSPropSGLD(3e4, 1, 0.01)
    assert "Lower step_size" in advise(free, trained, kernel, LONG, np.inf)


def test_a_rise_far_from_w_star_is_a_warning_in_the_result() -> None:
    task, kernel = linear_task(), SGLD(30, 2.0, 0.01)
    trained, chains = descended(task), ChainConfig(4, 20, 200, 8, 64)
    start = float(task.losses(trained[None], torch.arange(128)[None]).mean())
    wide, narrow = (
        component_response(task, trained, ["full"], kernel, chains, loss_band=start + room).by_component["full"]
        for room in (100.0, 0.4)
    )
    assert wide.rise > 0.2
    assert not wide.warnings
    assert "of the way to a model that knows nothing" in narrow.warnings[0]


def test_infinite_adjoints_are_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A concave direction that γ does not hold: pathwise by name is refused, auto falls back to the covariance."""
    monkeypatch.setattr(short_chain, "TOO_LONG", float("inf"))  # steps are too long in the trough, and said to be

    class Saddle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.0, 0.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.cos(3 * self.w[0]) + self.w[1]

    x = torch.linspace(0.5, 1.5, 32)
    task = Task(Saddle(), lambda model, batch: model(batch) + 0.5 * model.w[1] ** 2, x)
    kernel, chains = SGLD(40, 5.0, 0.02), ChainConfig(2, 40, 40, 4, 32, antithetic=True)
    with pytest.raises(PatterningError, match="steps do not contract"):
        chi(task, kernel=kernel, chains=chains, estimator="pathwise", loss_band=50.0)
    found = chi(task, kernel=kernel, chains=chains, estimator="auto", loss_band=50.0).by_component["full"]
    assert found.estimator == "covariance"
    assert "do not contract" in found.note


def test_responses_of_whole_models_have_the_same_gates() -> None:
    task = steep_task()

    def phi(flat: torch.Tensor) -> torch.Tensor:
        return flat.square().sum(1)

    with pytest.raises(PatterningError, match="the steps are too long"):
        sample_response(task, task.own_row(), {"size": phi}, SGLD(1000, 100, 0.01), LONG)
    found = sample_response(task, task.own_row(), {"size": phi}, SGLD(1000, 100, 2e-5), LONG)
    assert np.isfinite(found.susceptibility.chi).all()
