"""Reverse mode through training, against finite differences of training itself and a closed form."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor
from zoo.quadratic import QuadraticTask, linear_regression

from patterning.core.errors import PatterningError
from patterning.tasks.parentheses import Parentheses, make_parentheses
from patterning.training.metagradient import mean_metagradient, metagradient, metasmoothness
from patterning.training.weighted import TrainConfig, advance, init_state, uniform_weights

SMOOTH = TrainConfig(steps=23, batch_size=16, learning_rate=1e-3, weight_decay=1e-2, epsilon=1e-2)


@pytest.fixture(scope="module")
def task() -> Parentheses:
    return make_parentheses(max_length=8, draws=60, layers=1, heads=2, width=8, test_strings=10, seed=1)


@pytest.fixture(scope="module")
def regression() -> QuadraticTask:
    return linear_regression(0, 12, 3)[0]


def first(flat: Tensor) -> Tensor:
    return flat[:, 0] + 0.5 * flat[:, 1].square()


def trained(task, config: TrainConfig, seed: int, rho: Tensor) -> Tensor:
    return advance(task, config, init_state(task, [seed]), [seed], rho, config.steps).flat


@pytest.mark.parametrize("config", [SMOOTH, dataclasses.replace(SMOOTH, settle=0.5, weight_decay=0)])
def test_it_is_the_finite_difference_of_training(regression: QuadraticTask, config: TrainConfig) -> None:
    config = dataclasses.replace(config, batch_size=6)
    found = metagradient(regression, config, 4, first)
    q = regression.base_weights
    rng = np.random.default_rng(0)
    for _ in range(3):
        s = torch.from_numpy(rng.standard_normal(len(q)))
        h = 2e-2
        ends = [first(trained(regression, config, 4, 1 + side * h * s).double()) for side in (1, -1)]
        measured = float(ends[0] - ends[1]) / (2 * h)
        s = s - (q * s).sum()  # weights are normalised: a common factor changes nothing
        assert float((q * found.chi * s).sum()) == pytest.approx(measured, rel=1e-2, abs=1e-5)
    assert abs(float((q * found.chi).sum())) < 1e-12


def test_a_small_transformer_agrees_with_finite_differences(task: Parentheses) -> None:
    def phi(flat: Tensor) -> Tensor:
        return task.losses(flat, torch.arange(20)[None]).mean(1)

    found, q = metagradient(task, SMOOTH, 2, phi), task.base_weights
    s = torch.from_numpy(np.random.default_rng(1).standard_normal(len(q)))
    s -= (q * s).sum()
    ends = [float(phi(trained(task, SMOOTH, 2, 1 + side * 0.05 * s))) for side in (1, -1)]
    assert float((q * found.chi * s).sum()) == pytest.approx((ends[0] - ends[1]) / 0.1, rel=0.02)
    assert found.value == pytest.approx(float(phi(trained(task, SMOOTH, 2, uniform_weights(task))).detach()), abs=1e-5)
    assert 1 <= found.growth < 100


def test_at_the_minimum_it_is_the_influence_function(regression: QuadraticTask) -> None:
    # of full batches, trained to the end: dθ/dρ_j = -q_j H⁻¹ ∇ℓ_j, the closed form of least squares
    config = TrainConfig(steps=600, batch_size=28, learning_rate=0.5, weight_decay=0, epsilon=1.0)
    found = metagradient(regression, config, 0, lambda flat: flat[:, 1])
    flat = trained(regression, config, 0, uniform_weights(regression)).double()
    index, q = torch.arange(len(regression.base_weights)), regression.base_weights

    def losses(w: Tensor) -> Tensor:
        return regression.losses(w[None].float(), index[None])[0].double()

    slopes = torch.autograd.functional.jacobian(losses, flat[0])
    hessian = torch.autograd.functional.hessian(lambda w: (q * losses(w)).sum(), flat[0])
    exact = -(slopes @ torch.linalg.inv(hessian)[1])
    exact -= (q * exact).sum()
    torch.testing.assert_close(found.chi, exact, rtol=0.02, atol=2e-3 * float(exact.abs().max()))


def test_metasmoothness_is_near_one_for_a_bowl(regression: QuadraticTask) -> None:
    config = TrainConfig(steps=200, batch_size=12, learning_rate=0.05, weight_decay=0, epsilon=1.0)
    s = torch.linspace(-1, 1, 12)
    assert metasmoothness(regression, config, 0, s, 0.1) > 0.99
    with pytest.raises(PatterningError, match="negative"):
        metasmoothness(regression, config, 0, s, 0.9)
    with pytest.raises(PatterningError, match="change nothing"):
        metasmoothness(regression, config, 0, torch.zeros(12), 0.1)


def test_seeds_are_averaged_and_other_seeds_differ(regression: QuadraticTask) -> None:
    config = dataclasses.replace(SMOOTH, batch_size=6)
    mean, each = mean_metagradient(regression, config, [1, 2], first)
    torch.testing.assert_close(mean, (each[0].chi + each[1].chi) / 2)
    assert not torch.allclose(each[0].chi, each[1].chi)
