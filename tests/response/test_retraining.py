"""The response of training, against a linear outcome with known χ."""

import numpy as np
import pytest

from patterning.core.errors import PatterningError
from patterning.response.retraining import half_splits, split_weights, training_response

RNG = np.random.default_rng(3)
Q = RNG.dirichlet(np.ones(60))
GROUPS = np.where(np.arange(60) < 12, -1, np.arange(60) % 6)
FREE = GROUPS >= 0
MASS = np.bincount(GROUPS[FREE], Q[FREE])
CHI = np.array([0.5, -0.2, 0.1, 0.0, 0.3, -0.4])
CHI = CHI - (MASS @ CHI) / MASS.sum()


def pairs(repeats: int, noise: float, rng: np.random.Generator, step: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    signs = np.repeat(half_splits(6), repeats, axis=0)
    weights = np.array([[split_weights(side * row, GROUPS, Q, step) for side in (1, -1)] for row in signs])
    means = np.array([(Q * weights)[..., g == GROUPS].sum(-1) for g in range(6)])  # (G, pairs, 2): Σ q ρ in the group
    outcomes = np.einsum("g,gps->ps", CHI, means) + noise * rng.standard_normal(weights.shape[:2])
    return outcomes, weights


def test_every_split_halves_the_groups_and_is_balanced() -> None:
    signs = half_splits(6)
    assert signs.shape == (10, 6)
    assert not signs.sum(1).any()
    assert len({tuple(row) for row in np.concatenate([signs, -signs])}) == 20
    products = signs.T @ signs
    assert (np.diag(products) == 10).all()
    assert len(set(products[~np.eye(6, dtype=bool)])) == 1


def test_weights_keep_frozen_samples_and_the_total() -> None:
    rho = split_weights(half_splits(6)[3], GROUPS, Q, 0.85)
    assert (rho[~FREE] == 1).all()
    assert Q @ rho == pytest.approx(1, abs=1e-12)
    assert np.ptp(rho[GROUPS == 2]) == 0
    assert rho[FREE].max() / rho[FREE].min() == pytest.approx(np.exp(1.7))


def test_a_linear_outcome_gives_its_chi() -> None:
    outcomes, weights = pairs(1, 0.0, RNG)
    found = training_response(outcomes, weights, GROUPS, Q)
    np.testing.assert_allclose(found.chi, CHI, atol=1e-4)  # the step is finite: log ρ against ρ
    assert MASS @ found.chi == pytest.approx(0, abs=1e-12)
    assert found.pairs == 10


def test_standard_errors_cover_and_reliability_knows_noise() -> None:
    outside, size = 0, 400
    for seed in range(size):
        outcomes, weights = pairs(3, 2e-4, np.random.default_rng(seed))
        found = training_response(outcomes, weights, GROUPS, Q)
        outside += (np.abs(found.chi - CHI) > 2.06 * found.standard_error).sum()  # t, 25 degrees of freedom
    assert 0.03 < outside / (6 * size) < 0.07
    assert found.reliability > 0.8
    _, weights = pairs(3, 0.0, RNG)
    of_noise = [
        training_response(RNG.standard_normal((30, 2)), weights, GROUPS, Q).reliability >= 0.5 for _ in range(200)
    ]
    assert np.mean(of_noise) < 0.2  # F(5, 25) passes 2 in one case of nine


def test_too_few_pairs_and_odd_groups_are_refused() -> None:
    outcomes, weights = pairs(1, 0.0, RNG)
    with pytest.raises(PatterningError, match="5 pairs of runs do not determine"):
        training_response(outcomes[:5], weights[:5], GROUPS, Q)
    with pytest.raises(PatterningError, match="7 groups"):
        half_splits(7)
