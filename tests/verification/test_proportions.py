"""Intervals of shares against scipy, published tables and exact coverage."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from patterning.core.errors import PatterningError
from patterning.verification.proportions import compare_shares, paired_share_difference, share_interval


def pairs(both: int, arm_alone: int, baseline_alone: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    arm = np.repeat([True, True, False, False], [both, arm_alone, baseline_alone, neither])
    baseline = np.repeat([True, False, True, False], [both, arm_alone, baseline_alone, neither])
    return arm, baseline


@pytest.mark.parametrize(("count", "runs"), [(0, 200), (1, 7), (126, 200), (199, 200), (200, 200)])
def test_share_interval_is_wilson_s(count: int, runs: int) -> None:
    expected = binomtest(count, runs).proportion_ci(method="wilson")
    assert share_interval(count, runs) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_share_interval_stays_inside_and_keeps_a_width() -> None:
    assert share_interval(0, 50)[0] == 0
    assert share_interval(50, 50)[1] == 1
    assert share_interval(50, 50)[0] < 0.95


@pytest.mark.parametrize("share", [0.02, 0.3, 0.63, 0.97])
def test_share_interval_covers_on_average_over_nearby_shares(share: float) -> None:
    # exact coverage wobbles with the share of a lattice, so it is averaged over a small range
    coverage = []
    for p in np.linspace(share - 0.01, share + 0.01, 21):
        limits = np.array([share_interval(k, 200) for k in range(201)])
        coverage.append(binom.pmf(np.arange(201), 200, p)[(limits[:, 0] <= p) & (p <= limits[:, 1])].sum())
    assert 0.94 < np.mean(coverage) < 0.97


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # Fagerland, Lydersen & Laake, Statistics in Medicine 33 (2014): airway hyper-responsiveness before and after
        ((1, 1, 7, 12), (-0.286, -0.507, -0.026)),
        # the same authors, Statistical Analysis of Contingency Tables (2017), ch. 8: complete response
        ((59, 6, 16, 80), (-0.0621, -0.1186, -0.0046)),
    ],
)
def test_paired_difference_gives_published_intervals(table: tuple[int, ...], expected: tuple[float, ...]) -> None:
    effect = paired_share_difference(*pairs(*table))
    digits = 4 if expected[0] == -0.0621 else 3
    assert tuple(round(value, digits) for value in (effect.difference, effect.low, effect.high)) == expected
    assert effect.pairs == sum(table)


@pytest.mark.parametrize(
    "cells", [(0.62, 0.33, 0.02, 0.03), (0.04, 0.92, 0.01, 0.03), (0.3, 0.3, 0.3, 0.1), (0.0, 0.01, 0.05, 0.94)]
)
def test_paired_difference_covers(cells: tuple[float, ...]) -> None:
    tables = np.random.default_rng(1).multinomial(200, cells, size=1500)
    effects = [paired_share_difference(*pairs(*table)) for table in tables]
    truth = cells[1] - cells[2]
    covered = np.mean([effect.low <= truth <= effect.high for effect in effects])
    assert 0.93 < covered < 0.985


def test_paired_difference_at_the_ends() -> None:
    effect = paired_share_difference(*pairs(0, 200, 0, 0))
    assert effect.difference == effect.high == 1
    assert 0.96 < effect.low < 1
    same = paired_share_difference(*pairs(200, 0, 0, 0))
    assert same.low < 0 < same.high
    assert same.low > -0.03
    assert same.high < 0.03


def test_agreement_counts_errors_and_correlation() -> None:
    hits = np.zeros((3, 100), dtype=bool)
    hits[1, :50], hits[2, :90] = True, True
    exact = compare_shares(np.array([0.0, 0.5, 0.9]), hits)
    assert exact.r == pytest.approx(1)
    assert exact.mean_error == pytest.approx(0)
    biased = compare_shares(np.array([0.1, 0.5, 1.0]), hits)
    assert biased.largest_error == pytest.approx(0.1)
    assert biased.mean_error == pytest.approx(0.2 / 3)
    assert biased.low < biased.r < biased.high
    assert compare_shares(np.array([0.4, 0.4, 0.4]), hits).r is None


def test_bad_outcomes_are_refused() -> None:
    with pytest.raises(PatterningError, match="is no share"):
        share_interval(5, 4)
    with pytest.raises(PatterningError, match="not paired"):
        paired_share_difference(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(PatterningError, match="pass booleans"):
        paired_share_difference(np.ones(3, bool), np.ones(3))
    with pytest.raises(PatterningError, match="do not fit"):
        compare_shares(np.ones(2), np.ones((3, 5), bool))
