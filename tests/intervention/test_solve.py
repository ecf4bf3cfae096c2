"""The fundamental equation against numpy's pseudo-inverse and against the constrained problem solved directly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterning.core.errors import PatterningError
from patterning.intervention.solve import Solution, solve

N_BETA = 30.0
SEEDS = st.integers(0, 10_000)


def problem(seed: int, k: int = 3, n: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """χ (k, n) with rows of very different size and mean zero under q, q (n,), target (k,)."""
    rng = np.random.default_rng(seed)
    q = rng.integers(1, 6, size=n).astype(float)
    q /= q.sum()
    chi = rng.standard_normal((k, n)) * 10.0 ** np.arange(k)[:, None]
    return chi - (chi @ q)[:, None], q, rng.standard_normal(k) * 10.0 ** np.arange(k)


@given(SEEDS, st.integers(1, 5))
def test_the_solution_is_the_pseudo_inverse_in_the_metric_of_q(seed: int, k: int) -> None:
    chi, q, target = problem(seed, k)
    found = solve(chi, q, target, N_BETA)
    wanted = np.linalg.pinv(chi * np.sqrt(q)) @ target / np.sqrt(q) / N_BETA
    np.testing.assert_allclose(found.s, wanted, rtol=1e-8, atol=1e-10)
    normal = chi.T @ np.linalg.solve(chi * q @ chi.T, target) / N_BETA  # the formula as written
    np.testing.assert_allclose(found.s, normal, rtol=1e-6, atol=1e-8)
    assert found.rank == k


@given(SEEDS)
def test_at_full_rank_the_wanted_change_is_predicted(seed: int) -> None:
    chi, q, target = problem(seed)
    found = solve(chi, q, target, N_BETA)
    np.testing.assert_allclose(found.predicted, target, rtol=1e-9)
    np.testing.assert_allclose(N_BETA * chi @ (q * found.s), target, rtol=1e-9)
    np.testing.assert_array_equal(found.wanted, target)
    assert abs(q @ found.s) < 1e-12


@given(SEEDS, SEEDS)
def test_every_other_solution_is_larger(seed: int, other: int) -> None:
    chi, q, target = problem(seed)
    s = solve(chi, q, target, N_BETA).s
    constraints = np.vstack([chi * q, q])
    null = np.linalg.svd(constraints)[2][len(constraints) :]  # directions that change no observable
    step = np.random.default_rng(other).standard_normal(len(null)) @ null
    np.testing.assert_allclose(chi @ (q * (s + step)), chi @ (q * s), atol=1e-10)
    assert q @ (s + step) ** 2 > q @ s**2


@given(SEEDS)
def test_frozen_samples_stay_and_the_free_ones_solve_the_constrained_problem(seed: int) -> None:
    chi, q, target = problem(seed)
    free = np.ones(12, dtype=bool)
    free[np.random.default_rng(seed).permutation(12)[:4]] = False
    found = solve(chi, q, target, N_BETA, free=free)
    assert (found.s[~free] == 0).all()
    # Lagrange: minimise ½ Σ q s² with nβ χ Q s = dμ and Σ q s = 0 over the free samples
    rows = np.vstack([N_BETA * chi[:, free] * q[free] / 10.0 ** np.arange(3)[:, None], q[free]])
    size = int(free.sum())
    system = np.block([[np.diag(q[free]), rows.T], [rows, np.zeros((4, 4))]])
    right = np.concatenate([np.zeros(size), target / 10.0 ** np.arange(3), [0]])
    np.testing.assert_allclose(found.s[free], np.linalg.solve(system, right)[:size], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.predicted, target, rtol=1e-8)


def test_what_is_not_known_of_frozen_samples_does_not_matter() -> None:
    chi, q, target = problem(1)
    free = np.arange(12) != 5
    holed, noise = chi.copy(), np.full(chi.shape, 1e-6)
    wanted = solve(chi, q, target, N_BETA, free=free, noise=noise)
    holed[:, 5], noise[:, 5] = np.nan, np.nan
    found = solve(holed, q, target, N_BETA, free=free, noise=noise)
    np.testing.assert_allclose(found.s, wanted.s, rtol=1e-12)
    np.testing.assert_allclose(found.predicted, target, rtol=1e-9)


def test_a_target_along_a_mode_is_that_modes_scores() -> None:
    rng = np.random.default_rng(2)
    q = np.full(20, 1 / 20)
    chi = rng.standard_normal((3, 20))
    chi -= chi.mean(1, keepdims=True)
    u, sigma, v = np.linalg.svd(chi * np.sqrt(q), full_matrices=False)
    for a in range(3):
        for sign in (1, -1):
            found = solve(chi, q, sign * u[:, a], N_BETA)
            np.testing.assert_allclose(found.s, sign * v[a] / np.sqrt(q) / sigma[a] / N_BETA, atol=1e-10)


def test_units_of_the_observables_do_not_matter_even_when_directions_are_cut() -> None:
    chi, q, target = problem(3)
    noise = np.random.default_rng(4).standard_normal(chi.shape) * np.abs(chi).max(1, keepdims=True) * 0.35
    plain = solve(chi, q, target, N_BETA, noise=noise)
    units = np.array([1e-6, 1.0, 1e6])
    scaled = solve(chi * units[:, None], q, target * units, N_BETA, noise=noise * units[:, None])
    assert 0 < plain.rank < 3
    assert scaled.rank == plain.rank
    np.testing.assert_allclose(scaled.s, plain.s, rtol=1e-9)
    np.testing.assert_allclose(scaled.predicted, plain.predicted * units, rtol=1e-9)


def two_rows(weak: float) -> tuple[np.ndarray, np.ndarray]:
    """Two observables that respond alike up to `weak`: singular values of the unit rows are √(1 ± cos)."""
    n = 16
    q = np.full(n, 1 / n)
    a = np.tile([1.0, -1.0], n // 2)
    b = np.repeat([1.0, -1.0], n // 2)  # orthogonal to a, both of mean zero and unit root mean square
    return np.stack([a + weak * b, a - weak * b]), q


def test_singular_values_and_condition_are_of_the_standardised_rows() -> None:
    chi, q = two_rows(0.1)
    found = solve(chi * np.array([[1.0], [1000.0]]), q, np.array([1.0, 2.0]), N_BETA)
    cosine = (1 - 0.01) / (1 + 0.01)
    np.testing.assert_allclose(found.singular_values, [np.sqrt(1 + cosine), np.sqrt(1 - cosine)], rtol=1e-10)
    assert found.condition == pytest.approx(10)
    assert (found.noise_floor, found.rank) == (0, 2)


@pytest.mark.parametrize(("size", "rank"), [(0.05, 2), (0.09, 2), (0.12, 1), (0.9, 1)])
def test_directions_below_the_noise_are_cut(size: float, rank: int) -> None:
    # The weak singular value of the unit rows is √2 · 0.1/√1.01, that of the noise √2 · size/√1.01.
    chi, q = two_rows(0.1)
    noise = np.zeros_like(chi)
    noise[0] = np.sqrt(2) * size * np.tile([1.0, 1.0, -1.0, -1.0], 4)
    target = np.array([1.0, 0.0])
    found = solve(chi, q, target, N_BETA, noise=noise)
    assert found.noise_floor == pytest.approx(np.sqrt(2) * size / np.sqrt(1.01))
    assert found.rank == rank
    # the same cut by numpy's pseudo-inverse of the unit rows
    rows = chi * np.sqrt(q) / np.sqrt(1.01)
    cut = found.noise_floor / found.singular_values[0]
    wanted = np.linalg.pinv(rows, rcond=cut) @ (target / np.sqrt(1.01)) / np.sqrt(q) / N_BETA
    np.testing.assert_allclose(found.s, wanted, atol=1e-12)
    if rank == 1:  # only the common part of the target is left, and the prediction says so
        np.testing.assert_allclose(found.predicted, [0.5, 0.5], atol=1e-12)
        assert found.condition == 1


def test_copies_of_an_observable_are_one_direction() -> None:
    chi, q, _ = problem(5)
    doubled = np.vstack([chi, 2 * chi[:1]])
    found = solve(doubled, q, np.array([1.0, 0, 0, 2.0]), N_BETA)
    alone = solve(chi, q, np.array([1.0, 0, 0]), N_BETA)
    assert found.rank == 3
    np.testing.assert_allclose(found.s, alone.s, atol=1e-9)
    np.testing.assert_allclose(found.predicted, [1, 0, 0, 2], atol=1e-8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": np.ones(2)}, "the target has shape \\(2,\\), but there are 3 observables"),
        ({"chi": np.full((3, 12), np.nan)}, "NaN or infinite"),
        ({"n_beta": 0.0}, "n_beta is 0"),
        ({"n_beta": -1.0}, "n_beta is -1"),
        ({"chi": np.vstack([problem(0)[0][:2], np.zeros((1, 12))])}, "its row of χ is zero"),
        ({"noise": 100 * problem(0)[0]}, "no direction of χ is above its noise"),
        ({"noise": np.full((3, 12), np.nan)}, "NaN or infinite"),
    ],
)
def test_what_cannot_be_solved_is_refused(changes: dict[str, object], message: str) -> None:
    chi, q, target = problem(0)
    settings = {"chi": chi, "base_weights": q, "target": target, "n_beta": N_BETA, **changes}
    with pytest.raises(PatterningError, match=message):
        solve(**settings)


def test_half_the_change_needs_half_the_weights() -> None:
    chi, q, target = problem(6)
    whole, half = solve(chi, q, target, N_BETA), solve(chi, q, target / 2, N_BETA)
    assert isinstance(whole, Solution)
    np.testing.assert_allclose(half.s, whole.s / 2, rtol=1e-10)
    np.testing.assert_allclose(solve(chi, q, target, 2 * N_BETA).s, whole.s / 2, rtol=1e-10)
