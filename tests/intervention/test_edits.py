"""Edits against linear regression, whose response to weights is known exactly."""

from dataclasses import replace

import numpy as np
import pytest

import patterning as pt
from patterning.intervention import edits

RNG = np.random.default_rng(0)
N = 400
X = np.stack([np.ones(N), RNG.normal(size=N)], 1)
Y = X @ np.array([0.5, -1.0]) + RNG.normal(size=N)


def slope(x: np.ndarray, y: np.ndarray, rho: np.ndarray | None = None) -> float:
    """The observable: the second coefficient of (weighted) least squares."""
    weight = np.ones(len(y)) if rho is None else rho
    return float(np.linalg.solve(x.T @ (weight[:, None] * x), x.T @ (weight * y))[1])


def response() -> np.ndarray:
    """d slope / d(q ρ_j), exactly: (XᵀX / n)⁻¹ x_j times the residual of row j."""
    inverse = np.linalg.inv(X.T @ X / N)
    residual = Y - X @ np.linalg.solve(X.T @ X, X.T @ Y)
    return (X @ inverse)[:, 1] * residual


WEIGHTS = pt.Weights.of_rows(np.ones(N))


@pytest.mark.parametrize("times", [0, 2, 3])
def test_drops_and_duplicates_are_weights_exactly(times: int) -> None:
    places = [3, 50, 51, 200]
    kept = edits.drop(range(N), places) if times == 0 else edits.duplicate(range(N), places, times)
    weights = edits.dropped(WEIGHTS, places) if times == 0 else edits.duplicated(WEIGHTS, places, times)
    assert slope(X[kept], Y[kept]) == pytest.approx(slope(X, Y, weights.rho), rel=1e-12)
    assert len(kept) == N + (times - 1) * 4


def test_the_predicted_effect_is_exact_to_first_order() -> None:
    chi, places = response(), [3, 50, 51, 200]
    errors = []
    for scale in (1.0, 0.5, 0.25):  # part of a drop: what is left over falls with the square
        weights = edits.duplicated(WEIGHTS, places, 1 - scale)
        predicted = edits.effect_of(weights, chi)
        assert np.isnan((predicted.low, predicted.high)).all()  # χ was given without its error
        errors.append(abs(slope(X, Y, weights.rho) - slope(X, Y) - predicted.value))
    assert errors[0] / abs(edits.effect_of(edits.dropped(WEIGHTS, places), chi).value) < 0.05
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.15)


def test_an_error_of_chi_is_an_interval_of_the_effect() -> None:
    chi, se = response(), np.full(N, 0.3)
    weights = edits.dropped(WEIGHTS, range(10))
    found = edits.effect_of(weights, chi, se)
    change = (weights.rho - 1) / N
    assert found.value == pytest.approx(float(change @ chi))
    assert found.high - found.value == pytest.approx(1.959964 * 0.3 * np.sqrt((change**2).sum()), rel=1e-6)
    noise = np.array([edits.effect_of(weights, chi + RNG.normal(0, 0.3, N)).value for _ in range(2000)])
    assert np.mean((noise > found.low) & (noise < found.high)) == pytest.approx(0.95, abs=0.02)


def test_groups_and_a_start_that_is_not_uniform() -> None:
    chi, groups = response(), np.arange(N) % 4
    rho = {0: 1.1, 1: 1.0, 2: 0.95, 3: 0.95}
    found = edits.effect_of_groups(rho, groups, chi)
    weights = pt.Weights.of_groups(groups, rho)
    assert found.value == pytest.approx(slope(X, Y, weights.rho) - slope(X, Y), rel=0.1)
    assert edits.effect_of(weights, chi, before=weights).value == 0.0
    tokens = replace(WEIGHTS, rho=np.ones((N, 1)), base_weights=np.ones((N, 1)), free=np.ones((N, 1), dtype=bool))
    assert edits.dropped(tokens, [1]).rho[1, 0] == 0


def test_texts_are_rewritten() -> None:
    assert edits.collapse_whitespace(["  a\t b\n\nc ", ""]) == ["a b c", ""]
    assert edits.expand_delimiters(["f(a,b)", "x: [1 ,2]", "plain"]) == ["f ( a , b )", "x : [ 1 , 2 ]", "plain"]


def test_what_cannot_be_edited_is_refused() -> None:
    for use, message in (
        (lambda: edits.collapse_whitespace("one text"), "one text: give a list"),
        (lambda: edits.expand_delimiters(["a", 3]), "text 1 is int"),
        (lambda: edits.drop([1, 2], [2]), "place 2 is none of the 2 rows"),
        (lambda: edits.duplicate([1, 2], [0], 0), "times is 0"),
        (lambda: edits.duplicated(WEIGHTS, [0], -1), "give a number >= 0"),
        (lambda: edits.dropped(WEIGHTS, range(N)), "all zero"),
        (lambda: edits.effect_of(WEIGHTS, np.ones(3)), "chi has shape"),
        (lambda: edits.effect_of(edits.dropped(WEIGHTS, [0]), np.full(N, np.nan)), "chi is NaN"),
    ):
        with pytest.raises(pt.PatterningError, match=message):
            use()
