"""The numpy SGLD against the exact law of its own discretisation, and its noise against company and length."""

import numpy as np
import pytest

from patterning.posterior.langevin import descend, walk
from patterning.posterior.sgld import SGLD

CURVATURES = np.array([0.2, 1.0, 3.0])


def quadratic(flat: np.ndarray) -> np.ndarray:
    return CURVATURES * flat


def test_stationary_moments_are_those_of_the_discretised_chain() -> None:
    kernel = SGLD(n_beta=20, localization=5, step_size=0.02)
    anchor = np.array([1.0, 0.0, -2.0])
    draws: list[np.ndarray] = []

    def visit(step: int, position: np.ndarray) -> None:
        if step > 100 and step % 10 == 0:
            draws.append(position)

    walk(quadratic, np.tile(anchor, (500, 1)), anchor, kernel, [(0, i) for i in range(500)], 2000, visit)
    values = np.stack(draws)
    total = 20 * CURVATURES + 5
    chains = values.mean(axis=0)
    np.testing.assert_array_less(
        np.abs(chains.mean(axis=0) - 5 * anchor / total), 4 * chains.std(axis=0) / np.sqrt(500)
    )
    np.testing.assert_allclose(values.var(axis=(0, 1)), 1 / (total * (1 - 0.02 * total / 4)), rtol=0.02)


def test_training_is_the_same_rule() -> None:
    rate, n_beta = 0.1, 50.0
    start = np.random.default_rng(0).normal(size=(4, 3))
    rows = [(seed, 0) for seed in range(4)]
    noise: list[np.ndarray] = []
    walk(lambda flat: 0 * flat, 0 * start, np.zeros(3), SGLD(1, 1e-9, 1.0), rows, 3, lambda _, w: noise.append(w))
    xi = np.diff(np.stack([0 * start, *noise]), axis=0)
    by_hand = start
    for step in range(3):
        drift = rate * (quadratic(by_hand) + by_hand / n_beta)
        by_hand = by_hand - drift + np.sqrt(2 * rate / n_beta) * xi[step]
    walked = walk(quadratic, start, np.zeros(3), SGLD(n_beta, 1.0, 2 * rate / n_beta), rows, 3)
    np.testing.assert_allclose(walked, by_hand, rtol=1e-6)


def test_noise_depends_on_seed_replica_and_step_alone() -> None:
    kernel, start = SGLD(10, 1, 0.01), np.zeros((5, 3))
    rows = [(7, 0), (7, 1), (8, 0), (8, 1), (9, 5)]
    visited: dict[int, np.ndarray] = {}
    whole = walk(quadratic, start, np.zeros(3), kernel, rows, 600, visited.__setitem__)
    np.testing.assert_array_equal(walk(quadratic, start[:1], np.zeros(3), kernel, rows[3:4], 600)[0], whole[3])
    np.testing.assert_array_equal(walk(quadratic, start, np.zeros(3), kernel, rows, 333), visited[333])
    assert len(np.unique(whole)) == whole.size


def test_overflow_is_left_for_the_caller_to_see() -> None:
    kernel = SGLD(n_beta=100, localization=1, step_size=1.0)
    ends = walk(lambda flat: flat**3, np.full((2, 3), 5.0), np.zeros(3), kernel, [(0, 0), (0, 1)], 50)
    assert not np.isfinite(ends).any()
    assert not np.isfinite(descend(lambda flat: flat**3, np.full((1, 3), 5.0), 1.0, 50)).any()


def test_descent_reaches_the_minimum() -> None:
    assert np.abs(descend(quadratic, np.ones((2, 3)), 0.3, 400)).max() == pytest.approx(0, abs=1e-9)
