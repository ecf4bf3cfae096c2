"""Controls keep what they say they keep."""

import numpy as np
import pytest

from patterning.errors import PatterningError
from patterning.verification.controls import permuted, thinned


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
