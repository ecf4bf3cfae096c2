"""Stages from the posterior to χ with models, settings and results that once gave a wrong number without a word."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patterning.console.llc import check_components
from patterning.core.errors import PatterningError
from patterning.core.store import RunFolder
from patterning.core.task import Task
from patterning.core.workers import Workers
from patterning.posterior.band import find_band
from patterning.posterior.calibrate import calibrate, top_curvature, top_curvature_of
from patterning.posterior.minimum import is_minimum
from patterning.posterior.sgld import SGLD
from tests.faults.common import CHAINS, KERNEL, X, Y, chi, classify, linear_task, seeded

# A loss without a usable second derivative


class OnceOnly(torch.autograd.Function):
    """½ x², whose gradient cannot be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.square() / 2

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        del output
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return NoMore.apply(grad * x.detach())


class NoMore(torch.autograd.Function):
    """The identity, without a derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        del ctx, inputs, output

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError("no second derivative")


class Hidden(OnceOnly):
    """½ x², whose gradient hides that it depends on x: its second derivative is 0 without a word."""

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return grad * x.detach()


def regression(square) -> Task:
    """ℓ_j = ½ (x_jᵀ w - y_j)², by `square`."""
    net = nn.Linear(6, 1, bias=False)
    net = seeded(net)
    return Task(net, lambda call, b: square(call(b[0])[:, 0] - b[1]), (X, X @ torch.ones(6) + 0.1 * Y))


SMOOTH = regression(lambda r: r.square() / 2)
ROUGH = {"once": regression(OnceOnly.apply), "hidden": regression(Hidden.apply)}


@pytest.mark.parametrize("name", list(ROUGH))
def test_curvature_is_right_without_a_second_derivative_and_named(name: str) -> None:
    task, anchor = ROUGH[name], SMOOTH.own_row()
    exact = float(np.linalg.eigvalsh((X.T @ X / 128).double().numpy())[-1])
    found, note = top_curvature_of(task, anchor, samples=4096, iterations=40)
    assert found == pytest.approx(top_curvature(SMOOTH, anchor, samples=4096, iterations=40), rel=0.01)
    assert found == pytest.approx(exact, rel=0.1)
    assert "differences of the gradient" in note
    assert top_curvature_of(SMOOTH, anchor)[1] == ""
    slope, smooth = (is_minimum(each, anchor, n_beta=30, localization=10) for each in (task, SMOOTH))
    assert slope.curvature == pytest.approx(smooth.curvature, rel=0.01)
    assert "differences of the gradient" in str(slope)
    assert "differences" not in str(smooth)


def test_the_curvature_of_kinks_is_what_steps_meet() -> None:
    """The mean of |x w - y| over many y bends by twice their density, though each term is straight."""
    y = torch.linspace(-1, 1, 2000)
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(0.3)
    task = Task(net, lambda call, b: (call(b[0])[:, 0] - b[1]).abs(), (torch.ones(2000, 1), y))
    slope = is_minimum(task, task.own_row(), n_beta=30, localization=10)
    assert slope.curvature == pytest.approx(1.0, rel=0.1)  # density 1/2, twice
    assert slope.note


@pytest.mark.filterwarnings("ignore")
def test_settings_and_checks_are_made_without_a_second_derivative(tmp_path: Path) -> None:
    task = ROUGH["once"]
    best = torch.linalg.lstsq(X, (X @ torch.ones(6) + 0.1 * Y)[:, None]).solution[:, 0]
    chosen = calibrate(task, best, n_beta=30, rise=0.03, constant_loss=2.0, batch_size=128, localization=(1, 1e5))
    assert "differences" in chosen.note
    with Workers(RunFolder(tmp_path / "run"), 1) as pool:
        found = check_components(task, ["full"], SGLD(30, 50, 1e-3), CHAINS, torch.arange(16), pool)
    assert len(found["rows"]) == 4
    assert any("differences of the gradient" in line for line in found["verdicts"])


def test_a_check_that_cannot_be_made_is_a_warning(tmp_path: Path) -> None:
    task = linear_task()
    with Workers(RunFolder(tmp_path / "run"), 1) as pool:
        found = check_components(task, ["full"], KERNEL, replace(CHAINS, draws=2), torch.arange(16), pool)
    assert found["rows"] == []
    assert "could not be checked: 4 chains of 2 draws give no error" in found["warnings"][0]


def test_a_point_without_a_finite_gradient_is_named() -> None:
    with pytest.raises(PatterningError, match="gradient of L at w\\* is NaN or infinite"):
        top_curvature(SMOOTH, torch.full((6,), torch.inf))


# The band where the model is not defined at parameters 0


class Normed(nn.Module):
    """A linear model of unit rows: 0/0 at parameters 0, or a refusal."""

    def __init__(self, refuses: bool) -> None:
        super().__init__()
        self.layer, self.refuses = seeded(nn.Linear(6, 3, bias=False)), refuses

    def forward(self, x: Tensor) -> Tensor:
        w = self.layer.weight
        size = w.norm(dim=1, keepdim=True)
        if (
            self.refuses
            and not torch._C._functorch.is_functorch_wrapped_tensor(size)
            and float(size.detach().min()) == 0
        ):
            raise ZeroDivisionError("a row without a direction")
        return x @ (w / size).T


@pytest.mark.parametrize("refuses", [False, True])
def test_a_model_that_divides_by_a_norm_has_a_band_and_a_note(refuses: bool) -> None:
    task = Task(Normed(refuses), classify, (X, Y))
    if refuses:
        task.trial = replace(task.trial, vectorise="none")
    anchor = task.own_row()
    start = float(task.losses(anchor[None], torch.arange(128)[None]).mean())
    band = find_band(task, anchor, 64, 30)
    assert band.loss == pytest.approx(start + max(1, start), abs=0.2)
    assert ("ZeroDivisionError: a row without a direction" if refuses else "not finite") in band.note
    found = chi(task).by_component["full"]
    assert any("not defined at parameters 0" in why for why in found.warnings)
    assert find_band(linear_task(), linear_task().own_row(), 64, 30).note == ""


def test_two_easy_rows_of_ten_are_no_band() -> None:
    """Rows 0 and 8 have targets near 0: parameters 0 fit them, and no other row."""
    x, y = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), torch.full((10,), 3.0)
    y[[0, 8]] = 0.01
    net = seeded(nn.Linear(3, 1, bias=False))
    task = Task(net, lambda call, b: (call(b[0])[:, 0] - b[1]).square() / 2, (x, y))
    best = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    assert find_band(task, best, 10, 20).loss > 0.8 * 9 / 2
