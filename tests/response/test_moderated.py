"""Shrunk variances: intervals that cover, of a width that few chains alone could not have."""

import math

import numpy as np
import pytest
from scipy.special import polygamma

from patterning.response.moderated import ENOUGH, _inverse_trigamma, moderate
from patterning.response.pathwise import Pathwise, summarise_pathwise

N = 6000


def chains(count: int, prior: float, trend: float, n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """χ of `count` chains (count, n) around the truth (n,), with standard deviations that follow |truth|^trend."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(n) ** 3
    spread = np.sqrt(prior / rng.chisquare(prior, n)) if math.isfinite(prior) else np.ones(n)
    spread *= 0.02 * (0.3 + np.abs(truth)) ** trend
    return truth + spread * rng.standard_normal((count, n)), truth


def summary(chi: np.ndarray):
    count, n = chi.shape
    found = Pathwise(chi, np.random.default_rng(1).standard_normal((8, count)), chi, np.ones(count), {})
    return summarise_pathwise({"L": found}, np.full(n, 1 / n), 30.0, np.zeros(n)).susceptibility


@pytest.mark.parametrize("trend", [0.0, 1.0])
@pytest.mark.parametrize("prior", [2.5, 20.0, math.inf])
@pytest.mark.parametrize("count", [2, 4])
def test_intervals_cover_also_where_chi_is_large_and_are_narrower(count: int, prior: float, trend: float) -> None:
    inside, of_large = [], []
    for seed in range(5):
        chi, truth = chains(count, prior, trend, seed=seed)
        found = summary(chi)
        covered = np.abs(found.chi[0] - truth) <= found.half_width()[0]
        inside.append(covered.mean())
        of_large.append(covered[np.abs(truth) > np.quantile(np.abs(truth), 0.9)].mean())
        freedom = found.degrees_of_freedom - (count - 1)
        assert freedom == pytest.approx(prior, rel=0.3) if prior < 10 else freedom > 6
        plain = {2: 12.7, 4: 3.18}[count] * chi.std(0, ddof=1) / math.sqrt(count)
        assert np.median(found.half_width()[0]) < {2: 0.35, 4: 0.85}[count] * np.median(plain)
    assert 0.94 < np.mean(inside) < 0.96
    assert 0.93 < np.mean(of_large) < 0.97


def test_few_entries_and_those_that_never_vary_are_left_alone() -> None:
    few, _ = chains(3, 4.0, 0.0, ENOUGH - 1)
    found = summary(few)
    assert found.degrees_of_freedom == 2
    np.testing.assert_allclose(found.standard_error[0], few.std(0, ddof=1) / math.sqrt(3))
    np.testing.assert_allclose(found.half_width()[0], 4.3027 * found.standard_error[0], rtol=1e-4)
    variances = np.random.default_rng(0).chisquare(2, N)
    variances[::7] = 0
    result, freedom = moderate(variances, 2, np.ones(N))
    assert freedom > 2
    assert (result[::7] == 0).all()
    assert result[variances > 0].std() < 0.5 * variances[variances > 0].std()


def test_moderation_does_not_depend_on_units() -> None:
    chi, _ = chains(3, 4.0, 1.0)
    variances, size = chi.var(0, ddof=1), np.abs(chi.mean(0))
    result, freedom = moderate(variances, 2, size)
    scaled, same = moderate(variances * 1e-6, 2, size * 1e-3)
    assert same == pytest.approx(freedom)
    np.testing.assert_allclose(scaled, result * 1e-6, rtol=1e-9)


def test_inverse_trigamma() -> None:
    for half in (0.1, 1.0, 7.5, 400.0):
        assert _inverse_trigamma(float(polygamma(1, half))) == pytest.approx(2 * half)
    assert math.isinf(_inverse_trigamma(-0.3))
    assert math.isinf(_inverse_trigamma(0.0))
