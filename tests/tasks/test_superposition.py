"""The toy model's closed forms against quadrature, finite differences and published values."""

import numpy as np
import pytest

from patterning.core.errors import PatterningError
from patterning.tasks import superposition as toy

UNIFORM = np.ones(toy.GROUPS)


def random_parameters(rows: int, seed: int = 0) -> toy.Floats:
    return np.random.default_rng(seed).normal(0, 0.8, (rows, toy.PARAMETERS))


def hessian(flat: toy.Floats, h: float = 1e-6) -> toy.Floats:
    gradient, steps = toy.gradient_under(UNIFORM), h * np.eye(toy.PARAMETERS)
    matrix = (gradient(flat + steps) - gradient(flat - steps)) / (2 * h)
    return (matrix + matrix.T) / 2


@pytest.fixture(scope="module")
def minima() -> toy.Floats:
    return toy.find_minima()


def test_group_losses_are_the_means_of_the_model_s_losses() -> None:
    flat = random_parameters(20)
    flat[0] = 0  # nothing but the input's square
    flat[1, 12:] = 0  # every switch at 0
    flat[2, :12] = 0  # biases alone
    points = 4000
    for row, losses in zip(flat, toy.group_losses(flat), strict=True):
        weight, bias = row[:12].reshape(2, 6), row[12:]
        for feature in range(6):
            mu = (np.arange(4 * points) + 0.5) / (4 * points)  # the midpoint rule
            x = np.zeros((len(mu), 6))
            x[:, feature] = mu
            output = np.maximum(x @ weight.T @ weight + bias, 0)
            expected = ((output - x) ** 2).sum(axis=1).reshape(4, points).mean(axis=1)
            np.testing.assert_allclose(losses[4 * feature : 4 * feature + 4], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(toy.group_losses(flat[:1])[0], np.tile(np.array([1, 7, 19, 37]) / 48, 6))


@pytest.mark.parametrize("weights", ["uniform", "random", "with zeros"])
def test_gradient_is_the_derivative_of_the_normalised_weighted_loss(weights: str) -> None:
    rng = np.random.default_rng(3)
    rho = {"uniform": UNIFORM, "random": rng.uniform(0.1, 3, 24), "with zeros": rng.integers(0, 2, 24) * 2.5}[weights]
    flat, h = random_parameters(30, seed=1), 1e-6

    def loss(rows: toy.Floats) -> toy.Floats:
        return toy.group_losses(rows) @ rho / rho.sum()

    gradient = toy.gradient_under(rho)(flat)
    for p in range(toy.PARAMETERS):
        step = h * np.eye(toy.PARAMETERS)[p]
        difference = (loss(flat + step) - loss(flat - step)) / (2 * h)
        np.testing.assert_allclose(gradient[:, p], difference, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(toy.gradient_under(7 * rho)(flat), gradient, rtol=1e-12, atol=1e-13)


def test_a_replica_has_the_same_bits_alone_and_in_a_batch() -> None:
    flat, gradient = random_parameters(57), toy.gradient_under(np.random.default_rng(0).uniform(0, 2, 24))
    together, losses = gradient(flat), toy.group_losses(flat)
    for i in (0, 13, 56):
        np.testing.assert_array_equal(gradient(flat[i : i + 1])[0], together[i])
        np.testing.assert_array_equal(toy.group_losses(flat[i : i + 1])[0], losses[i])


def test_minima_have_the_published_losses(minima: toy.Floats) -> None:
    losses = toy.mean_loss(minima)
    assert losses[0] == pytest.approx(0.04819, abs=1e-5)  # 6-gon (Chen et al., arXiv 2310.06301)
    np.testing.assert_allclose(losses[1:], 0.06180, atol=1e-5)  # 5-gon with a sixth bias above 0
    assert np.abs(toy.gradient_under(UNIFORM)(minima)).max() < 1e-12
    np.testing.assert_array_equal(toy.end_states(minima), np.arange(7))


def test_a_dead_feature_answers_its_mean(minima: toy.Floats) -> None:
    # output 3 is its bias alone: (1/6) ∫(b - μ)² dμ + (5/6) b² is least at b = 1/12, whatever the others do
    assert minima[3, 12 + 2] == pytest.approx(1 / 12, abs=1e-12)
    np.testing.assert_allclose(minima[3, [2, 8]], 0, atol=1e-12)


@pytest.mark.parametrize("solution", [0, 3])
def test_a_minimum_is_one_but_for_rotation(minima: toy.Floats, solution: int) -> None:
    curvatures = np.linalg.eigvalsh(hessian(minima[solution]))
    assert abs(curvatures[0]) < 1e-8  # rotation of the plane
    assert curvatures[1] > 0.02
    assert curvatures[-1] < 2.001  # what the step of a descent relies on
    first, second, bias = minima[solution].reshape(3, 6)
    turned = np.concatenate([0.6 * first - 0.8 * second, 0.8 * first + 0.6 * second, bias])
    np.testing.assert_allclose(toy.group_losses(turned[None]), toy.group_losses(minima[solution][None]), atol=1e-14)


def test_features_are_alike(minima: toy.Floats) -> None:
    losses = toy.group_losses(minima).reshape(7, 6, 4)
    np.testing.assert_allclose(losses[0], losses[0, :1].repeat(6, axis=0), atol=1e-12)
    dead = losses[np.arange(1, 7), np.arange(6)]
    np.testing.assert_allclose(dead, dead[:1].repeat(6, axis=0), atol=1e-12)


def test_the_saddle_between_pentagon_and_hexagon(minima: toy.Floats) -> None:
    # from a rough place, Newton's method finds the stationary point at 0.06933; it has one way down on each side
    flat = np.array([1.12, 0.145, -1.04, -0.90, 0.40, 0.43, -0.02, 1.11, 0.56, -0.78, -1.11, 0.37,
                     -0.27, -0.27, -0.32, -0.34, -0.32, -0.05])  # fmt: skip
    gradient = toy.gradient_under(UNIFORM)
    for _ in range(30):
        flat = flat - np.linalg.pinv(hessian(flat), rcond=1e-6) @ gradient(flat[None])[0]
    assert np.abs(gradient(flat[None])).max() < 1e-12
    assert toy.mean_loss(flat[None])[0] == pytest.approx(0.06933, abs=1e-5)
    curvatures, ways = np.linalg.eigh(hessian(flat))
    assert curvatures[0] < -0.05
    assert (curvatures[1:] > -1e-6).all()
    both = flat + 1e-3 * np.stack([ways[:, 0], -ways[:, 0]])
    for _ in range(3000):
        both = both - toy.RATE * gradient(both)
    assert {toy.SOLUTIONS[k] for k in toy.end_states(both)} == {"hexagon", "pentagon-6"}
    np.testing.assert_allclose(np.sort(toy.mean_loss(both)), toy.mean_loss(minima)[:2], atol=1e-9)


def test_end_states_follow_their_rule() -> None:
    flat = np.zeros((4, toy.PARAMETERS))
    flat[:, :6] = 0.61
    flat[1, 2] = 0.59  # the third feature is dead
    flat[2, [0, 5]] = 0.1  # two are: no name
    flat[3, :6], flat[3, 6:12] = 0.43, 0.43  # live by length, 0.608
    np.testing.assert_array_equal(toy.end_states(flat), [0, 3, toy.OTHER, 0])
    assert toy.SOLUTIONS[3] == "pentagon-3"


def test_a_row_that_overflowed_stays_by_itself() -> None:
    flat = random_parameters(3)
    flat[1] = np.inf
    with np.errstate(all="ignore"):
        gradient, losses = toy.gradient_under(UNIFORM)(flat), toy.group_losses(flat)
    assert np.isfinite(gradient[[0, 2]]).all()
    assert np.isfinite(losses[[0, 2]]).all()
    assert not np.isfinite(gradient[1]).any()


@pytest.mark.parametrize("rho", [np.ones(23), np.full(24, np.nan), -np.ones(24), np.zeros(24)])
def test_weights_that_are_none_are_refused(rho: toy.Floats) -> None:
    with pytest.raises(PatterningError, match="rho must hold 24 finite weights"):
        toy.weighting(rho)
