"""Constrained weights against a general convex solver, and refusals that say how far one can go."""

import numpy as np
import pytest
from zoo.gaussian_task import KERNEL, OBSERVABLES, known

import patterning as pt
from patterning.intervention.constrained import Nearest, constrained_weights, largest_strength, nearest_weights

PROBLEMS = 20


def problem(seed: int) -> dict:
    """Directions (r, n), orthonormal under q, a target, and constraints of every kind."""
    rng = np.random.default_rng(seed)
    r, n = int(rng.integers(1, 4)), int(rng.integers(60, 160))
    q = rng.uniform(0.2, 1.0, n)
    q /= q.sum()
    raw = rng.standard_t(3, (r, n))  # heavy-tailed, as χ is
    raw -= (raw @ q)[:, None]
    b = np.linalg.solve(np.linalg.cholesky(raw * q @ raw.T), raw)
    within = rng.integers(3, size=n) if seed % 3 == 0 else None
    return {
        "directions": b, "target": rng.standard_normal(r) / np.sqrt(r), "q": q,
        "moving": rng.random(n) < 0.8 if seed % 2 else np.ones(n, dtype=bool), "within": within,
        "cap": [None, 3.0, 2.0][seed % 3], "min_ess": [None, 0.5][seed // 2 % 2],
        "strength": [0.3, 0.5, 0.7][seed // 3 % 3],
    }  # fmt: skip


def by_cvxpy(directions, target, q, moving, within, cap, min_ess, strength) -> tuple[np.ndarray, float]:
    """The same problem as it is written, by an interior-point method; ρ and ½ Σ q (ρ - 1)², None where infeasible."""
    cvxpy = pytest.importorskip("cvxpy")
    share = q[moving] / q[moving].sum()
    rho = cvxpy.Variable(int(moving.sum()))
    limits = [rho >= 0, directions[:, moving] @ cvxpy.multiply(q[moving], rho - 1) == strength * target]
    groups = np.zeros(len(q), dtype=int) if within is None else within
    for group in np.unique(groups[moving]):
        limits.append(cvxpy.sum(cvxpy.multiply(share * (groups[moving] == group), rho - 1)) == 0)
    if cap is not None:
        limits.append(rho <= cap)
    if min_ess is not None:
        limits.append(cvxpy.sum_squares(cvxpy.multiply(np.sqrt(share), rho)) <= 1 / min_ess)
    distance = 0.5 * cvxpy.sum_squares(cvxpy.multiply(np.sqrt(share), rho - 1))
    solved = cvxpy.Problem(cvxpy.Minimize(distance), limits)
    solved.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    return rho.value, solved.value if solved.status.startswith("optimal") else None


@pytest.mark.parametrize("seed", range(PROBLEMS))
def test_the_weights_are_those_of_a_general_solver(seed: int) -> None:
    given = problem(seed)
    values, best = by_cvxpy(**given)
    if best is None:
        with pytest.raises(pt.PatterningError, match="cannot be reached"):
            nearest_weights(**given, what="more of it")
        return
    rho, certificate = nearest_weights(**given, what="more of it")
    q, moving, b = given["q"], given["moving"], given["directions"]
    share = q[moving] / q[moving].sum()
    objective = 0.5 * share @ (rho[moving] - 1) ** 2
    assert objective == pytest.approx(best, rel=1e-6)
    np.testing.assert_allclose(rho[moving], values, atol=1e-4)
    # what the certificate says is so
    assert certificate.objective == pytest.approx(objective, rel=1e-12)
    assert abs(certificate.gap) < 1e-9 * objective
    np.testing.assert_allclose(b @ (q * (rho - 1)), given["strength"] * given["target"], atol=1e-9)
    # and what was to be kept is kept
    assert (rho[~moving] == 1).all()
    assert rho.min() >= 0
    assert given["cap"] is None or rho.max() <= given["cap"]
    assert given["min_ess"] is None or 1 / (share @ rho[moving] ** 2) >= given["min_ess"] * (1 - 1e-8)
    for group in range(3) if given["within"] is not None else ():
        own = given["within"] == group
        assert q[own] @ rho[own] == pytest.approx(q[own].sum(), rel=1e-9)


def test_the_problems_are_of_both_kinds() -> None:
    reached, bound = [], []
    for seed in range(PROBLEMS):
        try:
            certificate = nearest_weights(**problem(seed), what="it")[1]
        except pt.PatterningError:
            reached.append(False)
        else:
            reached.append(True)
            bound.append(certificate.at_zero + certificate.at_cap > 0)
    assert 4 <= sum(reached) < PROBLEMS
    assert sum(bound) >= 4  # constraints that do nothing would test nothing


def test_without_a_bound_that_binds_the_weights_are_linear() -> None:
    given = problem(1) | {
        "cap": None,
        "min_ess": None,
        "strength": 1e-3,
        "moving": np.ones(len(problem(1)["q"]), dtype=bool),
    }
    rho, certificate = nearest_weights(**given, what="it")
    np.testing.assert_allclose(rho, 1 + 1e-3 * given["target"] @ given["directions"], rtol=1e-12)
    assert (certificate.steps, certificate.at_zero, certificate.at_cap) == (certificate.steps, 0, 0)


@pytest.mark.parametrize(("cap", "min_ess"), [(None, None), (2.0, None), (None, 0.6), (1.5, 0.9)])
def test_the_largest_strength_is_that_of_the_constraints(cap: float | None, min_ess: float | None) -> None:
    # b = ±1 on two halves: ρ = 1 ± a there is the only way to Σ q (ρ - 1) b = a, with an effective size of 1/(1 + a²)
    b = np.tile([1.0, -1.0], 50)[None]
    q = np.full(100, 0.01)
    ceiling = np.inf if min_ess is None else (1 / min_ess - 1) / 2
    exact = min(1.0, (cap or np.inf) - 1, np.sqrt(2 * ceiling))
    found = Nearest(b, q, np.zeros(100, dtype=np.int64), cap or np.inf, ceiling)
    assert largest_strength(found, np.array([1.0]), 5.0) == pytest.approx(exact, rel=2e-3)
    words = {None: "", 0.6: "an effective sample size of 0.6", 0.9: "an effective sample size of 0.9"}[min_ess]
    with pytest.raises(pt.PatterningError, match=rf"more φ: strength 5 cannot be reached with ρ >= 0.*{words}"):
        nearest_weights(
            b, np.array([1.0]), q, np.ones(100, dtype=bool), what="more φ", strength=5.0, cap=cap, min_ess=min_ess
        )
    below = nearest_weights(
        b, np.array([1.0]), q, np.ones(100, dtype=bool), what="", strength=0.99 * exact, cap=cap, min_ess=min_ess
    )[0]
    np.testing.assert_allclose(below, 1 + 0.99 * exact * b[0], atol=1e-9)


def test_what_free_samples_cannot_move_is_refused() -> None:
    b, q = np.zeros((1, 10)), np.full(10, 0.1)
    b[0, :2] = [1.0, -1.0]
    moving = np.arange(10) > 1
    with pytest.raises(pt.PatterningError, match="frozen samples; nothing of it can be"):
        nearest_weights(b, np.array([0.1]), q, moving, what="it", strength=1.0)
    with pytest.raises(pt.PatterningError, match="within names 3000 groups"):
        nearest_weights(
            np.ones((1, 6000)), np.array([0.1]), np.full(6000, 1 / 6000), np.ones(6000, dtype=bool), what="it",
            strength=1.0, within=np.arange(6000) // 2,
        )  # fmt: skip


@pytest.fixture(scope="module")
def response() -> pt.Response:
    """Two observables and 20 samples, without noise."""
    given = known()
    return pt.measure(given.task, OBSERVABLES, sampler=KERNEL, estimator="first-order", progress=False)


def change(response: pt.Response, name: str, weights: pt.Weights) -> float:
    """Of a row, by linear response: nβ Σ q (ρ - 1) χ."""
    rho = weights.rho if not weights.per_token else weights.rho[response.row, response.position]
    row = response.chi[response.index(name)]
    return response.n_beta * float((response.base_weights * (rho - 1)) @ row)


def test_asked_rows_move_as_far_and_held_ones_stay_though_bounds_bind(response: pt.Response) -> None:
    plan = response.invert({"first": -1}, hold="rest")
    linear = response.n_beta * float((response.base_weights * plan.s) @ response.chi[response.index("first")])
    strength = 0.78
    rho = plan.weights(strength, "constrained", cap=2.0, min_ess=0.4)
    assert (rho.rho.min(), rho.rho.max()) == (0.0, pytest.approx(2.0))  # both bounds bind, and
    assert change(response, "first", rho) == pytest.approx(strength * linear, rel=1e-9)
    assert change(response, "rest", rho) == pytest.approx(0, abs=1e-9 * abs(linear))
    clipped = plan.weights(strength, "clip", cap=2.0)  # cuts what s asks for, and moves the held row
    assert abs(change(response, "first", clipped)) < 0.97 * strength * abs(linear)
    assert abs(change(response, "rest", clipped)) > 1e-3 * abs(linear)
    assert rho.summary().effective_sample_size >= 0.4
    proof = rho.facts["certificate"]
    assert abs(proof["gap"]) < 1e-9 * proof["objective"]  # type: ignore[index, call-overload]
    with pytest.raises(
        pt.PatterningError, match=r"lower first .-1.; rest held: strength 9 cannot .*the largest strength is 0.8[01]"
    ):
        plan.weights(9.0, "constrained", cap=2.0)


def test_samples_that_the_direction_was_not_made_for_stay(response: pt.Response) -> None:
    free = np.arange(len(response.row)) % 5 > 0
    plan = response.invert({"first": 1}, free=free)
    linear = response.n_beta * float((response.base_weights * plan.s) @ response.chi[0])
    rho = plan.weights(0.3, "constrained")
    assert (rho.rho[~free] == 1).all()
    np.testing.assert_array_equal(rho.free, free)
    np.testing.assert_allclose(rho.rho, 1 + 0.3 * plan.s, atol=1e-9)  # nothing binds
    fewer = plan.weights(0.3, "constrained", free=np.arange(len(free)) % 2 > 0)
    assert change(response, "first", fewer) == pytest.approx(0.3 * linear, rel=1e-9)  # by fewer samples
    assert fewer.facts["certificate"]["objective"] > rho.facts["certificate"]["objective"]  # type: ignore[index, call-overload]
    with pytest.raises(pt.PatterningError, match="no free sample has a base weight, of those that"):
        plan.weights(0.3, "constrained", free=~free)


def test_rows_of_tokens_have_one_weight_each() -> None:
    rng = np.random.default_rng(0)
    row, q = np.repeat(np.arange(12), 5), np.full(60, 1 / 60)
    b = rng.standard_normal((2, 60)) + rng.standard_normal((2, 12))[:, row]
    b -= b.mean(1, keepdims=True)
    s = 0.5 * b[0] - 0.2 * b[1]
    groups = np.arange(12)[row] % 3
    rho, certificate = constrained_weights(
        b, s, q, np.ones(60, dtype=bool), row, groups, what="it", strength=0.2, cap=3.0, min_ess=0.5
    )
    assert (rho.reshape(12, 5) == rho.reshape(12, 5)[:, :1]).all()
    np.testing.assert_allclose(b @ (q * (rho - 1)), 0.2 * b @ (q * s), atol=1e-10)
    for group in range(3):
        assert rho[groups == group].mean() == pytest.approx(1)
    assert 1 / (rho**2).mean() == pytest.approx(1 / (1 + 2 * certificate.objective))
    with pytest.raises(pt.PatterningError, match="within parts the samples of a row"):
        constrained_weights(b, s, q, np.ones(60, dtype=bool), row, np.arange(60) % 2, what="it", strength=0.1)
