"""Every policy keeps what it must keep, and gives the written formula."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm

from patterning.core.errors import PatterningError
from patterning.intervention.weights import (
    POLICIES,
    Policy,
    gaussian_scores,
    make_weights,
    standardise,
    summarise,
)

N = 9
DIRECTIONS = arrays(np.float64, N, elements=st.floats(-1e6, 1e6))
MASKS = arrays(np.bool_, N, elements=st.booleans())
COUNTS = arrays(np.int64, N, elements=st.integers(1, 6))


def weighted(counts: np.ndarray) -> np.ndarray:
    return counts / counts.sum()


def assume_direction(s: np.ndarray, free: np.ndarray) -> None:
    assume(free.any())
    assume(np.ptp(s[free]) > 1e-6 * max(1, np.abs(s).max()))


@given(DIRECTIONS, COUNTS, MASKS, st.sampled_from(POLICIES), st.floats(-20, 20))
def test_weights_are_nonnegative_frozen_ones_are_one_and_the_free_total_is_kept(
    s: np.ndarray, counts: np.ndarray, free: np.ndarray, policy: Policy, alpha: float
) -> None:
    assume_direction(s, free)
    q = weighted(counts)
    rho = make_weights(s, q, policy=policy, alpha=alpha, free=free)
    assert (rho >= 0).all()
    assert (rho[~free] == 1).all()
    assert q[free] @ rho[free] == pytest.approx(q[free].sum(), rel=1e-12)
    assert q @ rho == pytest.approx(1, rel=1e-12)


@given(DIRECTIONS, COUNTS, MASKS, st.sampled_from(POLICIES), st.floats(0.01, 20))
def test_a_larger_s_never_gets_less_weight(
    s: np.ndarray, counts: np.ndarray, free: np.ndarray, policy: Policy, alpha: float
) -> None:
    assume_direction(s, free)
    q = weighted(counts)
    order = np.argsort(s[free])
    rho = make_weights(s, q, policy=policy, alpha=alpha, free=free)[free][order]
    assert (np.diff(rho) >= -1e-12 * rho.max()).all()
    down = make_weights(s, q, policy=policy, alpha=-alpha, free=free)[free][order]
    assert (np.diff(down) <= 1e-12 * down.max()).all()


WHOLE = arrays(np.float64, N, elements=st.integers(-1000, 1000).map(float))  # ties stay ties under 8 s + 3


@given(WHOLE, COUNTS, st.sampled_from(POLICIES), st.floats(-5, 5))
def test_only_the_direction_of_s_matters(s: np.ndarray, counts: np.ndarray, policy: Policy, alpha: float) -> None:
    assume(np.ptp(s) > 0)
    q = weighted(counts)
    rho = make_weights(s, q, policy=policy, alpha=alpha)
    np.testing.assert_allclose(make_weights(8 * s + 3, q, policy=policy, alpha=alpha), rho, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(make_weights(-s, q, policy=policy, alpha=-alpha), rho, rtol=1e-6, atol=1e-9)


def example() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    q = rng.integers(1, 5, size=20).astype(float)
    return rng.standard_normal(20) ** 3 + 2, q / q.sum(), np.arange(20) % 4 != 1


def unit(s: np.ndarray, q: np.ndarray, free: np.ndarray) -> np.ndarray:
    mean = np.average(s[free], weights=q[free])
    spread = np.sqrt(np.average((s[free] - mean) ** 2, weights=q[free]))
    return np.where(free, (s - mean) / spread, 0)


@pytest.mark.parametrize("alpha", [-2.0, 0.3, 1.0, 5.0])
def test_tilt_is_the_exponential(alpha: float) -> None:
    s, q, free = example()
    tilted = np.exp(alpha * unit(s, q, free))
    wanted = np.where(free, tilted * q[free].sum() / (q * tilted)[free].sum(), 1)
    np.testing.assert_allclose(make_weights(s, q, policy="tilt", alpha=alpha, free=free), wanted, rtol=1e-12)


def test_rank_tilt_is_the_tilt_of_the_scores() -> None:
    s = np.array([1e9, 0.1, -0.2, 0.3, 5.0, -7.0])  # one sample would hold all the weight of a plain tilt
    q, free = weighted(np.array([1, 2, 3, 4, 5, 6])), np.array([True, True, True, True, True, False])
    scores = gaussian_scores(s, q, free)
    np.testing.assert_allclose(
        make_weights(s, q, policy="rank-tilt", alpha=0.7, free=free),
        make_weights(scores, q, policy="tilt", alpha=0.7, free=free),
        rtol=1e-12,
    )
    assert summarise(make_weights(s, q, policy="rank-tilt", alpha=1, free=free), q, free).effective_sample_size > 0.3


@pytest.mark.parametrize("alpha", [-2.0, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("policy", ["clip", "rank"])
def test_clip_is_linear_above_zero(alpha: float, policy: Policy) -> None:
    s, q, free = example()
    scores = s if policy == "clip" else gaussian_scores(s, q, free)
    clipped = np.maximum(0, 1 + alpha * unit(scores, q, free))
    wanted = np.where(free, clipped * q[free].sum() / (q * clipped)[free].sum(), 1)
    np.testing.assert_allclose(make_weights(s, q, policy=policy, alpha=alpha, free=free), wanted, rtol=1e-12)


def test_small_steps_move_along_s_whatever_the_policy() -> None:
    s, q, free = example()
    for policy in ("clip", "tilt"):
        rho = make_weights(s, q, policy=policy, alpha=1e-5, free=free)
        np.testing.assert_allclose((rho - 1) / 1e-5, unit(s, q, free), atol=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_step_is_no_change(policy: Policy) -> None:
    s, q, free = example()
    np.testing.assert_allclose(make_weights(s, q, policy=policy, alpha=0, free=free), 1, rtol=1e-14)


def test_a_huge_tilt_does_not_overflow() -> None:
    s, q, free = example()
    rho = make_weights(s, q, policy="tilt", alpha=1e6, free=free)
    best = np.flatnonzero(free)[np.argmax(s[free])]
    assert rho[best] == pytest.approx(q[free].sum() / q[best])
    assert (np.delete(rho, best)[np.delete(free, best)] == 0).all()


def test_gaussian_scores_are_normal_quantiles_of_the_middle_ranks() -> None:
    s = np.array([3.0, -1, 100, 0, 7])
    free = np.array([True, True, True, True, False])
    wanted = norm.ppf(np.array([2, 0, 3, 1]) / 4 + 1 / 8)
    found = gaussian_scores(s, np.full(5, 0.2), free)
    np.testing.assert_allclose(found[:4], wanted, atol=1e-12)
    assert found[4] == 0


def test_a_sample_of_twice_the_weight_is_two_samples() -> None:
    one = gaussian_scores(np.array([1.0, 2, 5]), np.array([0.25, 0.5, 0.25]), np.ones(3, bool))
    two = gaussian_scores(np.array([1.0, 2, 2, 5]), np.full(4, 0.25), np.ones(4, bool))
    np.testing.assert_allclose(two, one[[0, 1, 1, 2]], atol=1e-12)


def test_standardise_has_mean_zero_and_unit_size_over_the_free_samples() -> None:
    s, q, free = example()
    z = standardise(s, q, free)
    np.testing.assert_allclose(z, unit(s, q, free), atol=1e-12)
    assert q @ z == pytest.approx(0, abs=1e-14)
    assert q @ z**2 == pytest.approx(q[free].sum())


def test_what_is_not_known_of_frozen_samples_does_not_matter() -> None:
    s, q, free = example()
    holed = np.where(free, s, np.nan)
    for policy in POLICIES:
        np.testing.assert_array_equal(
            make_weights(holed, q, policy=policy, alpha=1, free=free),
            make_weights(s, q, policy=policy, alpha=1, free=free),
        )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("s", "alpha", "message"),
    [
        (np.array([1.0, np.nan, 2, 3]), 1.0, "NaN or infinite"),
        (np.array([1.0, np.inf, 2, 3]), 1.0, "NaN or infinite"),
        (np.ones(4), 1.0, "the same for every free sample"),
        (np.arange(4.0), float("nan"), "must be a finite number"),
    ],
)
def test_directions_that_weight_nothing_are_refused(s: np.ndarray, alpha: float, message: str, policy: Policy) -> None:
    with pytest.raises(PatterningError, match=message):
        make_weights(s, np.full(4, 0.25), policy=policy, alpha=alpha)


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PatterningError, match="policy 'square' is not one of clip, tilt, rank"):
        make_weights(np.arange(4.0), np.full(4, 0.25), policy="square", alpha=1)  # type: ignore[arg-type]


@given(arrays(np.float64, N, elements=st.floats(0, 50)), COUNTS, MASKS)
def test_the_summary_is_the_direct_formula(rho: np.ndarray, counts: np.ndarray, free: np.ndarray) -> None:
    assume((rho[free] > 1e-3).any())
    q = weighted(counts)
    found = summarise(rho, q, free)
    repeated = np.repeat(rho[free], counts[free])  # q is a multiplicity: count the draws one by one
    assert found.effective_sample_size == pytest.approx(
        repeated.sum() ** 2 / (repeated**2).sum() / len(repeated), rel=1e-10
    )
    assert (found.largest, found.smallest) == (repeated.max(), repeated.min())
    assert found.share_at_zero == pytest.approx(np.mean(repeated == 0))


def test_the_summary_of_no_weighting_is_one() -> None:
    found = summarise(np.ones(5), np.full(5, 0.2))
    assert found.effective_sample_size == pytest.approx(1)
    assert (found.largest, found.smallest, found.share_at_zero) == (1, 1, 0)
