"""Paired effects: the mean is exact and the interval covers as often as it says."""

import numpy as np
import pytest

from patterning.core.errors import PatterningError
from patterning.verification.effects import Effect, paired_effect

LAWS = {
    "normal": (lambda rng, n: 0.7 + rng.standard_normal(n), 0.7),
    "exponential": (lambda rng, n: rng.exponential(size=n), 1.0),
    "left-skewed": (lambda rng, n: -rng.gamma(2, size=n), -2.0),
    "two values": (lambda rng, n: (rng.random(n) < 0.8) - 1.0 * (rng.random(n) < 0.8), 0.0),
    "jumps": (lambda rng, n: 0.1 * rng.standard_normal(n) + (rng.random(n) < 0.15) * rng.choice([-1, 1], n), 0.0),
    "two places": (lambda rng, n: np.where(rng.random(n) < 0.5, 0.9, 0.0) - np.where(rng.random(n) < 0.5, 0.9, 0.0)
                   + 0.03 * rng.standard_normal(n), 0.0),
}  # fmt: skip


@pytest.mark.parametrize(
    ("law", "low", "high"),
    [("normal", 0.93, 0.975), ("exponential", 0.91, 0.975), ("left-skewed", 0.92, 0.975), ("two values", 0.92, 0.98),
     ("jumps", 0.93, 0.985), ("two places", 0.93, 0.985)],
)  # fmt: skip
def test_intervals_cover_at_sixteen_pairs(law: str, low: float, high: float) -> None:
    draw, mean = LAWS[law]
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(1500):
        baseline = 10 * rng.standard_normal(16)  # what a pair shares cancels
        effect = paired_effect(baseline + draw(rng, 16), baseline, resamples=999)
        covered.append(effect.low <= mean <= effect.high)
    assert low < np.mean(covered) < high


def test_no_effect_is_found_in_one_of_twenty_null_experiments() -> None:
    rng = np.random.default_rng(1)
    found = [paired_effect(rng.standard_normal(16), rng.standard_normal(16), resamples=999) for _ in range(1000)]
    assert np.mean([effect.excludes_zero for effect in found]) == pytest.approx(0.05, abs=0.025)


def test_the_difference_is_the_exact_mean_and_lies_inside() -> None:
    rng = np.random.default_rng(2)
    arm, baseline = rng.standard_normal(12), rng.standard_normal(12)
    effect = paired_effect(arm, baseline)
    assert effect.difference == pytest.approx(sum(a - b for a, b in zip(arm, baseline, strict=True)) / 12, abs=1e-14)
    assert effect.low < effect.difference < effect.high
    assert (effect.pairs, effect.level) == (12, 0.95)


def test_normal_intervals_are_near_students() -> None:
    rng = np.random.default_rng(3)
    d = rng.standard_normal(200)
    effect = paired_effect(d, np.zeros(200))
    half = 1.972 * d.std(ddof=1) / np.sqrt(200)  # t quantile of 199 degrees of freedom
    assert effect.high - d.mean() == pytest.approx(half, rel=0.1)
    assert d.mean() - effect.low == pytest.approx(half, rel=0.1)


def test_a_level_is_a_width_and_the_call_is_deterministic() -> None:
    rng = np.random.default_rng(4)
    arm, baseline = rng.standard_normal(10), rng.standard_normal(10)
    half, most = (paired_effect(arm, baseline, level=level) for level in (0.5, 0.99))
    usual = paired_effect(arm, baseline)
    assert most.low < usual.low < half.low < half.high < usual.high < most.high
    assert paired_effect(arm, baseline) == usual


def test_units_and_signs_carry_over() -> None:
    rng = np.random.default_rng(5)
    arm, baseline = rng.standard_normal(10) + 1, rng.standard_normal(10)
    a, b = paired_effect(arm, baseline), paired_effect(-100 * arm, -100 * baseline)
    assert (b.difference, b.low, b.high) == pytest.approx((-100 * a.difference, -100 * a.high, -100 * a.low))


def test_equal_differences_have_no_width() -> None:
    effect = paired_effect(np.array([1.0, 2, 3]), np.array([0.5, 1.5, 2.5]))
    assert (effect.low, effect.difference, effect.high) == (0.5, 0.5, 0.5)
    assert effect.excludes_zero
    assert not paired_effect(np.ones(4), np.ones(4)).excludes_zero


def test_almost_equal_differences_keep_a_finite_interval() -> None:
    effect = paired_effect(np.array([1.0, 1, 1, 1, 2]), np.zeros(5))
    assert np.isfinite([effect.low, effect.high]).all()
    assert effect.low < 1.2 < effect.high


@pytest.mark.parametrize(
    ("low", "high", "excludes"), [(0.1, 1, True), (-1, -0.1, True), (-0.1, 1, False), (0, 1, False)]
)
def test_excludes_zero_means_both_ends_on_one_side(low: float, high: float, excludes: bool) -> None:
    assert Effect((low + high) / 2, low, high, 5).excludes_zero is excludes


@pytest.mark.parametrize(
    ("arm", "baseline", "message"),
    [
        (np.ones(4), np.ones(5), "not paired"),
        (np.ones((4, 1)), np.ones((4, 1)), "not paired"),
        (np.ones(2), np.zeros(2), "2 paired seeds give no interval"),
    ],
)
def test_what_is_not_paired_is_refused(arm: np.ndarray, baseline: np.ndarray, message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        paired_effect(arm, baseline)


@pytest.mark.parametrize(("pairs", "least", "most"), [(8, 0.45, 0.68), (32, 0.9, 1.0)])
def test_few_pairs_do_not_know_of_rare_jumps(pairs: int, least: float, most: float) -> None:
    rng, share, held = np.random.default_rng(0), 0.1, 0  # of runs that end somewhere else; docs/interpretation.md
    for _ in range(300):
        change = 0.02 * rng.normal(size=pairs) - (rng.random(pairs) < share)
        found = paired_effect(change, np.zeros(pairs), resamples=500)
        held += found.low <= -share <= found.high
    assert least < held / 300 < most
