"""Controls keep what they say they keep."""

import numpy as np
import pytest

from patterning.core.errors import PatterningError
from patterning.intervention.permute import permuted, permuted_within
from patterning.intervention.weights import summarise
from patterning.verification.controls import (
    compressibility,
    frequency_bands,
    labelled,
    labelled_like,
    random_direction_like,
    thinned,
)


def example() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    q = rng.integers(1, 5, size=40).astype(float)
    q /= q.sum()
    free = np.arange(40) % 5 != 0
    rho = np.where(free, rng.exponential(size=40), 1.0)
    rho[free] *= q[free].sum() / (q * rho)[free].sum()
    return rho, q, free


def test_permuted_weights_are_the_same_weights_elsewhere() -> None:
    rho, q, free = example()
    before = rho.copy()
    dealt = permuted(rho, q, free, seed=3)
    np.testing.assert_array_equal(rho, before)
    np.testing.assert_array_equal(dealt[~free], rho[~free])
    scale = dealt[free].sum() / rho[free].sum()
    np.testing.assert_allclose(np.sort(dealt[free]), scale * np.sort(rho[free]), rtol=1e-12)
    assert q[free] @ dealt[free] == pytest.approx(q[free].sum(), rel=1e-12)
    assert abs(np.corrcoef(dealt[free], rho[free])[0, 1]) < 0.5


def test_with_equal_base_weights_the_multiset_is_exact() -> None:
    rho, _, free = example()
    dealt = permuted(rho, np.full(40, 1 / 40), free, seed=3)
    np.testing.assert_allclose(np.sort(dealt[free]), np.sort(rho[free]), rtol=1e-12)


def test_permuting_within_a_class_keeps_what_the_class_weighs() -> None:
    rho, q, free = example()
    some = free & (np.arange(40) < 20)
    dealt = permuted(rho, q, some, seed=3)
    assert (q * dealt)[some].sum() == pytest.approx((q * rho)[some].sum(), rel=1e-12)
    assert (q * rho)[some].sum() != pytest.approx(q[some].sum(), rel=1e-2)


def test_permutations_are_a_function_of_the_seed() -> None:
    rho, q, free = example()
    np.testing.assert_array_equal(permuted(rho, q, free, seed=3), permuted(rho, q, free, seed=3))
    assert (permuted(rho, q, free, seed=3) != permuted(rho, q, free, seed=4)).any()


@pytest.mark.filterwarnings("ignore:dealing")
def test_every_place_is_as_likely() -> None:
    rho = np.array([5.0, 1, 1, 1, 1])
    free, q = np.array([True, True, True, True, False]), np.full(5, 0.2)
    where = np.bincount([int(np.argmax(permuted(rho, q, free, seed))) for seed in range(2000)], minlength=5)
    assert where[4] == 0
    assert np.abs(where[:4] - 500).max() < 4 * np.sqrt(2000 * 0.25 * 0.75)


@pytest.mark.parametrize("keep", [0.0, 0.25, 1.0])
def test_thinned_classes_hold_a_share_of_the_weight_of_the_rest(keep: float) -> None:
    _, q, free = example()
    classes = np.arange(40) % 3 == 0  # some of them frozen
    rho = thinned(classes, q, free, keep)
    assert (rho[~free] == 1).all()
    assert q[free] @ rho[free] == pytest.approx(q[free].sum(), rel=1e-12)
    thin, rest = rho[classes & free], rho[~classes & free]
    assert np.ptp(rest) == 0
    np.testing.assert_allclose(thin, keep * rest[0], rtol=1e-12)


@pytest.mark.parametrize("everything", [True, False])
def test_thinning_nothing_or_everything_is_refused(everything: bool) -> None:
    _, q, free = example()
    with pytest.raises(PatterningError, match="nothing would move"):
        thinned(np.full(40, everything), q, free, 0.1)


def test_weights_dealt_within_strata_stay_in_them() -> None:
    rng = np.random.default_rng(1)
    strata, rho = rng.integers(-2, 3, size=3000), rng.exponential(size=3000)
    rho += strata  # so that weights of another stratum would show
    dealt = permuted_within(rho, strata, seed=5)
    for stratum in np.unique(strata):
        inside = strata == stratum
        np.testing.assert_array_equal(np.sort(dealt[inside]), np.sort(rho[inside]))
        assert abs(np.corrcoef(dealt[inside], rho[inside])[0, 1]) < 5 / np.sqrt(inside.sum())
    np.testing.assert_array_equal(dealt, permuted_within(rho, strata, seed=5))
    assert (dealt != permuted_within(rho, strata, seed=6)).any()


@pytest.mark.filterwarnings("ignore:dealing")
def test_within_a_stratum_every_place_is_as_likely() -> None:
    rho, strata = np.array([9.0, 1, 2, 2, 2, 5]), np.array([0, 1, 0, 0, 0, 1])
    where = np.bincount([int(np.argmax(permuted_within(rho, strata, seed))) for seed in range(2000)], minlength=6)
    assert (where[[1, 5]] == 0).all()
    assert np.abs(where[[0, 2, 3, 4]] - 500).max() < 4 * np.sqrt(2000 * 0.25 * 0.75)


def test_a_random_direction_has_the_same_values_and_no_relation() -> None:
    rng = np.random.default_rng(2)
    s = rng.standard_t(3, size=4000)
    free = random_direction_like(s, seed=1)
    np.testing.assert_array_equal(np.sort(free), np.sort(s))
    assert abs(np.corrcoef(free, s)[0, 1]) < 5 / np.sqrt(4000)
    assert (free != random_direction_like(s, seed=2)).any()


def test_a_random_direction_of_profiles_is_as_smooth_as_they_are() -> None:
    rng = np.random.default_rng(3)
    walk = np.cumsum(rng.standard_normal((4000, 6)), axis=0) * np.array([1, 100, 1, 1, 1, 0])
    s = rng.standard_t(3, size=4000)
    smooth = random_direction_like(s, seed=1, profiles=walk)
    np.testing.assert_array_equal(np.sort(smooth), np.sort(s))
    assert np.corrcoef(smooth[1:], smooth[:-1])[0, 1] > 0.5
    first = [np.corrcoef(random_direction_like(s, k, walk), walk[:, 1])[0, 1] for k in range(20)]
    assert max(np.abs(first)) < 0.98  # the column of large numbers does not decide


def test_bands_hold_equal_shares_ordered_by_frequency() -> None:
    rng = np.random.default_rng(4)
    tokens = rng.choice(500, size=20000, p=np.arange(1, 501)[::-1] / np.arange(1, 501).sum())
    bands = frequency_bands(tokens, 600, 4)
    np.testing.assert_allclose(np.bincount(bands), 5000, atol=100)
    count = np.bincount(tokens)
    for low, high in ((0, 1), (1, 2), (2, 3)):
        assert count[tokens[bands == low]].max() <= count[tokens[bands == high]].min()
    assert all(len(np.unique(bands[tokens == token])) <= 1 for token in range(500))


def test_bands_of_a_dominant_token_and_of_bad_input() -> None:
    bands = frequency_bands(np.array([0] * 90 + list(range(1, 11))), 11, 4)
    assert len(np.unique(bands[:90])) == 1
    assert bands[90:].max() < bands[0]
    for tokens, vocabulary, count in ((np.array([3]), 3, 2), (np.array([], dtype=int), 3, 2), (np.array([1]), 3, 0)):
        with pytest.raises(PatterningError, match="bands of"):
            frequency_bands(tokens, vocabulary, count)


def test_repetition_compresses() -> None:
    noise = np.random.default_rng(5).bytes(400)
    ratios = compressibility([noise, b"ab" * 200, b"the cat sat on the mat; the cat sat on the hat; " * 4])
    assert 1.0 <= ratios[0] < 1.02
    assert ratios[1] < 0.03
    assert ratios[1] < ratios[2] < 0.3
    with pytest.raises(PatterningError, match="text 1 is empty"):
        compressibility([b"a", b""])


@pytest.mark.parametrize("factor", [0.0, 0.3, 4.0])
def test_labelled_weights(factor: float) -> None:
    labels = np.arange(100) % 4 == 0
    rho = labelled(labels, factor)
    assert rho.mean() == pytest.approx(1)
    np.testing.assert_allclose(rho[labels], factor * rho[~labels][0])
    assert np.ptp(rho[~labels]) == 0


def test_the_heuristic_pulls_as_hard_as_the_arm_it_controls() -> None:
    rng = np.random.default_rng(6)
    labels, q = np.arange(1000) % 5 == 0, np.full(1000, 1e-3)
    rho = 2 * np.exp(0.4 * rng.standard_normal(1000))
    for toward, sign in (("more", 1), ("less", -1)):
        same = labelled_like(rho, labels, toward)
        assert same.mean() == pytest.approx(1)
        assert sign * (same[labels].mean() - same[~labels].mean()) > 0
        assert summarise(same, q).effective_sample_size == pytest.approx(summarise(rho, q).effective_sample_size)
    strong = labelled_like(np.exp(3 * rng.standard_normal(1000)), labels, "less")
    assert (strong[labels] == 0).all()
    assert strong.mean() == pytest.approx(1)
    with pytest.raises(PatterningError, match="all alike"):
        labelled_like(rho, np.zeros(1000, dtype=bool), "more")
