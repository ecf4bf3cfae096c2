"""Diagnostics on processes whose autocorrelation time and R-hat are known."""

import math

import numpy as np
import pytest
from zoo.processes import autoregression

from patterning.posterior.diagnostics import diagnose, effective_sample_size, split_r_hat


@pytest.mark.parametrize("a", [-0.5, 0.0, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("chains", [1, 4])
def test_effective_sample_size_of_an_autoregression(a: float, chains: int) -> None:
    draws = 80_000 // chains
    time = (1 + a) / (1 - a)
    found = diagnose(autoregression(a, draws, chains))
    assert found.autocorrelation_time == pytest.approx(time, rel=0.15)
    assert found.ess == pytest.approx(draws * chains / time, rel=0.15)
    assert found.standard_error == pytest.approx(math.sqrt(time / (draws * chains)), rel=0.1)
    assert abs(found.mean) < 4 * found.standard_error


def test_standard_errors_cover_the_mean() -> None:
    z = []
    for seed in range(200):
        found = diagnose(autoregression(0.8, 1000, 4, seed))
        z.append(found.mean / found.standard_error)
    assert np.std(z) == pytest.approx(1, abs=0.2)


def test_r_hat_is_near_one_for_equal_chains_and_above_for_shifted_ones() -> None:
    trace = autoregression(0.5, 5000, 4)
    assert split_r_hat(trace) == pytest.approx(1, abs=0.01)
    assert split_r_hat(trace + np.array([0, 0, 0, 2.0])) > 1.1


def test_r_hat_of_shifted_independent_chains_is_the_closed_form() -> None:
    # Halves with means 0, 0, d, d and unit variance: R-hat² = 1 + d²/3.
    trace = np.random.default_rng(1).standard_normal((20_000, 2))
    for shift in (0.5, 1.0, 3.0):
        assert split_r_hat(trace + np.array([0, shift])) == pytest.approx(math.sqrt(1 + shift**2 / 3), rel=0.01)


def test_r_hat_sees_a_drift_that_all_chains_share() -> None:
    trace = np.random.default_rng(2).standard_normal((1000, 4))
    assert split_r_hat(trace) < 1.01
    assert split_r_hat(trace + np.linspace(0, 3, 1000)[:, None]) > 1.1


def test_effective_sample_size_falls_when_chains_disagree() -> None:
    trace = np.random.default_rng(3).standard_normal((1000, 4))
    assert effective_sample_size(trace) > 2000
    assert effective_sample_size(trace + np.array([0, 0, 0, 5.0])) < 50


def test_diagnostics_do_not_depend_on_origin_and_unit() -> None:
    trace = autoregression(0.7, 500, 3)
    a, b = diagnose(trace), diagnose(1e-3 * trace + 5)
    assert (b.r_hat, b.ess) == pytest.approx((a.r_hat, a.ess), rel=1e-6)
    assert b.standard_error == pytest.approx(1e-3 * a.standard_error, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e9 / 7])
@pytest.mark.parametrize("draws", [10, 101])
def test_a_constant_trace_is_undefined(value: float, draws: int) -> None:
    found = diagnose(np.full((draws, 3), value))
    assert math.isnan(found.r_hat)
    assert math.isnan(found.ess)
    assert math.isnan(found.autocorrelation_time)
    assert math.isnan(found.standard_error)
    assert found.mean == pytest.approx(value)
