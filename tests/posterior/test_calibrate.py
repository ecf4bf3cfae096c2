"""Calibration on tasks whose loss rise and curvature are known."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from zoo.quadratic import Bowl, Forms, chain_variance, linear_regression, quadratic_task

from patterning.core.errors import PatterningError
from patterning.posterior.calibrate import calibrate, top_curvature
from patterning.posterior.sgld import SGLD

N_BETA = 30.0
TASK = Bowl(curvature=torch.full((400,), 2.0), centre=torch.zeros(400), floor=0.2)


def closed_form_rise(kernel: SGLD) -> float:
    """E[L] - L(w*) in the discretised law, nats."""
    return 400 * 2.0 / 2 * chain_variance(N_BETA * 2 + kernel.localization, kernel.step_size)


@pytest.mark.parametrize("rise", [0.5, 0.05, 0.002])
@pytest.mark.parametrize("tolerance", [1.5, 1.1])
def test_the_found_settings_give_the_wanted_rise(rise: float, tolerance: float) -> None:
    found = calibrate(TASK, TASK.centre, n_beta=N_BETA, rise=rise, constant_loss=0.7, batch_size=4, tolerance=tolerance)
    kernel, exact = found.kernel, closed_form_rise(found.kernel) / 0.5
    assert rise / tolerance / 1.03 < exact < rise * tolerance * 1.03
    assert found.rise == pytest.approx(exact, rel=0.08)  # 800 coordinates, about five independent draws of each
    assert found.wanted_rise == rise
    assert kernel.n_beta == N_BETA
    assert kernel.step_size * (N_BETA * 2 + kernel.localization) == pytest.approx(0.1, rel=1e-3)
    assert found.pilots[-1].localization == kernel.localization


def test_step_fraction_sets_the_step() -> None:
    found = calibrate(TASK, TASK.centre, n_beta=N_BETA, rise=0.05, constant_loss=0.7, batch_size=4, step_fraction=0.4)
    assert found.kernel.step_size * (N_BETA * 2 + found.kernel.localization) == pytest.approx(0.4, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rise": 0.0}, "rise is 0"),
        ({"rise": 1.0}, "rise is 1"),
        ({"constant_loss": 0.1}, "no better than the constant predictor"),
        ({"constant_loss": 0.2}, "no better than the constant predictor"),
        # even γ = 100 raises the loss by 400 · 2 / 2 / 160 = 2.5 nats of the 1,000 asked about
        ({"constant_loss": 1000.0, "rise": 0.5}, "no localization from 100 to 1e\\+07 raises the loss by 0.5"),
        # even γ = 1e3 raises it by more than 0.3 nats
        ({"localization": (1e1, 1e3), "rise": 0.001}, "no localization from 10 to 1000"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(changes: dict[str, object], message: str) -> None:
    settings = {"n_beta": N_BETA, "rise": 0.05, "constant_loss": 0.7, "batch_size": 4, "steps": 64}
    with pytest.raises(PatterningError, match=message):
        calibrate(TASK, TASK.centre, **{**settings, **changes})


@dataclasses.dataclass(frozen=True)
class Walled(Bowl):
    """A bowl with a wall too steep for the first step size: chains that touch it overflow to NaN."""

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        wall = ((flat - self.centre) / 0.012).pow(16).sum(1)
        return super().losses(flat, index) + wall[:, None]


def test_a_pilot_that_overflows_halves_the_step() -> None:
    task = Walled(curvature=torch.ones(50), centre=torch.zeros(50), floor=0.2)
    found = calibrate(task, task.centre, n_beta=N_BETA, rise=0.002, constant_loss=0.7, batch_size=4)
    first, second = found.pilots[:2]
    assert first.diverged
    assert math.isnan(first.rise)
    assert second.localization == first.localization
    assert second.step_size == pytest.approx(first.step_size / 2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_top_curvature_is_the_largest_eigenvalue(seed: int) -> None:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    matrix = basis @ np.diag([9.0, 4, 3, 2, 1, 0.5, 0, -2]) @ basis.T
    forms = Forms(np.stack([matrix] * 3), rng.standard_normal((3, 8)), np.zeros(3))
    task = quadratic_task(forms, [1, 2, 3])
    anchor = torch.from_numpy(rng.standard_normal(8).astype(np.float32))
    assert top_curvature(task, anchor, seed=seed) == pytest.approx(9, rel=1e-3)


def test_top_curvature_of_an_indefinite_hessian_is_the_largest_not_the_strongest() -> None:
    forms = Forms(np.stack([np.diag([-10.0, 3, 1])] * 2), np.zeros((2, 3)), np.zeros(2))
    assert top_curvature(quadratic_task(forms, [1, 1]), torch.zeros(3), iterations=60) == pytest.approx(3, rel=1e-2)


def test_top_curvature_is_of_the_weighted_mean_loss() -> None:
    task, x, _ = linear_regression(3, 12, 4)
    q = task.base_weights.numpy()
    exact = np.linalg.eigvalsh(x.T @ (q[:, None] * x))[-1]
    equal = np.linalg.eigvalsh(x.T @ x / 12)[-1]
    found = top_curvature(task, torch.zeros(4), iterations=60, samples=50_000)
    assert found == pytest.approx(exact, rel=0.02)
    assert abs(equal / exact - 1) > 0.04
