"""Chains around several solutions: those that leave are named and left out; too few, or in disagreement, is refused."""

import numpy as np
import pytest

from patterning.core.errors import PatterningError
from patterning.posterior.around import Landscape, Schedule, judge_chains, sample_around
from patterning.posterior.sgld import SGLD

MINIMA = np.array([[-1.0, 0.0], [1.0, 0.0]])


def double_well(flat: np.ndarray) -> np.ndarray:
    """∇ of (x² - 1)² / 4 + y² / 2."""
    x, y = flat.T
    return np.stack([x * (x * x - 1), y], axis=1)


def losses(flat: np.ndarray) -> np.ndarray:
    """Two samples, whose mean is the loss."""
    x, y = flat.T
    loss = (x * x - 1) ** 2 / 4 + y * y / 2
    return np.stack([loss + x, loss - x], axis=1)


def wells(flat: np.ndarray) -> np.ndarray:
    x = flat[:, 0]
    return np.select([x < 0, x > 0], [0, 1], 2)


LANDSCAPE = Landscape(double_well, losses, wells, ("left", "right"), rate=0.3, steps=100)


def sample(localization: float, chains: list[int], n_beta: float = 20.0, steps: int = 1500, step_size: float = 0.01):
    kernel = SGLD(n_beta=n_beta, localization=localization, step_size=step_size)
    return sample_around(LANDSCAPE, MINIMA, kernel, Schedule(steps, 300, 5), seed=1, chains=chains)


def test_chains_that_stay_give_means_with_errors() -> None:
    drawn, states = sample(localization=100.0, chains=list(range(16)))
    assert drawn.shape == (240, 2, 16, 2)
    assert states.shape == (24, 2, 16)
    for home in (0, 1):
        around = judge_chains(LANDSCAPE, home, MINIMA[home], drawn[:, home], states[:, home], 20.0)
        assert around.excluded == ()
        np.testing.assert_array_equal(around.at_minimum, [MINIMA[home, 0], -MINIMA[home, 0]])
        # nearly a Gaussian of curvature λ = 20 h + 100 with h = 2 and 1, which the step widens by 1 / (1 - ελ/4)
        expected = 0.5 * (40 / 140 / (1 - 0.01 * 140 / 4) + 20 / 120 / (1 - 0.01 * 120 / 4))
        assert around.llc == pytest.approx(expected, abs=4 * around.llc_error + 0.02)
        assert 0 < around.llc_error < 0.05
        assert around.r_hat < 1.1
        assert (around.mean_losses_error > 0).all()


def test_chains_may_be_computed_in_any_company() -> None:
    together = sample(localization=50.0, chains=[0, 1, 2])[0]
    np.testing.assert_array_equal(sample(localization=50.0, chains=[2])[0][:, :, 0], together[:, :, 2])


def test_a_chain_that_visits_the_other_solution_is_left_out_by_name() -> None:
    drawn, states = sample(localization=1.0, chains=list(range(40)), n_beta=14.0)
    states, drawn = states[:, 0], drawn[:, 0]
    visited = (states != 0).any(axis=0)
    assert 0 < visited.sum() < 20  # the setting is such that a few chains leave
    around = judge_chains(LANDSCAPE, 0, MINIMA[0], drawn, states, 14.0, force=True)
    assert len(around.excluded) == visited.sum()
    assert len(around.chain_means) == 40 - visited.sum()
    first = int(np.flatnonzero(visited)[0])
    assert around.excluded[0].startswith(f"left, chain {first}: at the right at ")
    np.testing.assert_allclose(around.mean_losses, drawn[:, ~visited].mean(axis=(0, 1)), rtol=1e-12)


def test_too_few_that_stay_are_refused() -> None:
    drawn, states = sample(localization=0.01, chains=list(range(8)), n_beta=5.0)
    with pytest.raises(PatterningError, match=r"only \d of 8 chains stayed at their solution \(left, chain \d: at the"):
        judge_chains(LANDSCAPE, 0, MINIMA[0], drawn[:, 0], states[:, 0], 5.0, force=True)


def test_chains_that_overflow_are_named() -> None:
    drawn, states = sample(localization=1.0, chains=list(range(8)), step_size=1.5)
    with pytest.raises(PatterningError, match=r"only \d of 8 chains .*overflowed"):
        judge_chains(LANDSCAPE, 0, MINIMA[0], drawn[:, 0], states[:, 0], 20.0)


def test_chains_that_disagree_are_refused_unless_forced() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(100, 8, 2)) + 3 * np.arange(8)[:, None]
    states = np.zeros((10, 8), dtype=np.int64)
    with pytest.raises(PatterningError, match="do not agree"):
        judge_chains(LANDSCAPE, 0, MINIMA[0], drawn, states, 20.0)
    assert judge_chains(LANDSCAPE, 0, MINIMA[0], drawn, states, 20.0, force=True).worst_r_hat > 1.1
