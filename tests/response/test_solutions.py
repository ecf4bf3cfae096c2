"""The table of free energies: its derivatives, what it predicts where shares are exact, and dF/dρ on the toy model."""

import numpy as np
import pytest

from patterning.core.errors import PatterningError
from patterning.posterior.langevin import walk
from patterning.posterior.sgld import SGLD
from patterning.response.solutions import (
    gap_direction,
    gap_parts,
    predict_shares,
    prediction_intervals,
    symmetric_shares,
)
from patterning.tasks import superposition as toy

RNG = np.random.default_rng(0)
Q = np.array([0.1, 0.2, 0.3, 0.4])
SHARES = np.array([0.5, 0.3, 0.2])
LOSSES = RNG.uniform(0, 0.1, (3, 4))


@pytest.mark.parametrize("target", [0, 1, 2])
def test_the_gap_is_the_gradient_of_the_log_share(target: int) -> None:
    s = gap_direction(LOSSES, SHARES, target, Q)
    assert Q @ s == pytest.approx(0, abs=1e-15)
    assert np.abs(s).max() == pytest.approx(1)
    h = 1e-6
    slopes = [
        np.log(
            predict_shares(SHARES, LOSSES, 1 + h * e, Q, 300.0)[target]
            / predict_shares(SHARES, LOSSES, 1 - h * e, Q, 300.0)[target]
        )
        / (2 * h)
        for e in np.eye(4)
    ]
    gradient = np.array(slopes) / Q  # per unit of weight moved onto a sample
    np.testing.assert_allclose(gradient / np.abs(gradient).max(), s, rtol=1e-5, atol=1e-7)


def test_predicted_shares_are_exact_for_basins_of_equal_shape() -> None:
    # two intervals of constant losses: E_B[ℓ] does not depend on ρ, so first order is all there is
    losses = np.array([[0.02, 0.05], [0.03, 0.01]])
    rho, q, n_beta = np.array([1.6, 0.4]), np.array([0.5, 0.5]), 100.0
    volume = np.array([3.0, 1.0])
    exact = [volume * np.exp(-n_beta * losses @ (q * weights / (q @ weights))) for weights in (np.ones(2), rho)]
    base, weighted = (value / value.sum() for value in exact)
    np.testing.assert_allclose(predict_shares(base, losses, rho, q, n_beta), weighted, rtol=1e-12)
    np.testing.assert_allclose(predict_shares(base, losses, 5 * rho, q, n_beta), weighted, rtol=1e-12)
    np.testing.assert_allclose(predict_shares(base, losses, np.ones(2), q, n_beta), base, rtol=1e-12)


def test_parts_add_up_and_know_their_cosines() -> None:
    at_minimum = LOSSES - RNG.uniform(0, 0.01, (3, 4))
    parts = gap_parts(at_minimum, LOSSES, SHARES, 0, Q)
    np.testing.assert_array_equal(parts["s"], gap_direction(LOSSES, SHARES, 0, Q))
    together = np.stack([parts["energy"], parts["entropic"]], axis=1)
    residual = np.linalg.lstsq(together, parts["s"], rcond=None)[1]
    assert residual[0] < 1e-20  # s is a combination of the two
    assert gap_parts(LOSSES / 2, LOSSES, SHARES, 0, Q)["cosines"] == pytest.approx(
        {"gap_energy": 1, "gap_entropic": 1, "energy_entropic": 1}
    )


def test_intervals_of_predictions_cover() -> None:
    classes = (np.array([0]), np.array([1, 2]))
    base, rho, q, n_beta = np.array([0.6, 0.2, 0.2]), np.array([1.5, 0.9, 1.0, 0.9]), np.full(4, 0.25), 300.0
    truth = predict_shares(base, LOSSES, rho, q, n_beta)
    rng, covered = np.random.default_rng(2), []
    for _ in range(120):
        chains = [means + rng.normal(0, 0.01, (20, 4)) for means in LOSSES]
        counts = rng.multinomial(300, base)
        low, high = prediction_intervals(classes, counts, chains, rho[None], q, n_beta, resamples=400)
        covered.append(low[0, 0] <= truth[0] <= high[0, 0])
    assert 0.87 < np.mean(covered) < 0.99


def test_solutions_of_a_class_share_alike() -> None:
    shares = symmetric_shares((np.array([0]), np.array([1, 2, 3])), np.array([60, 5, 20, 15]))
    assert shares.sum() == pytest.approx(1)
    np.testing.assert_allclose(shares, [60.5 / 101, *[40.5 / 3 / 101] * 3])
    assert (symmetric_shares((np.array([0]), np.array([1])), np.array([10, 0])) > 0).all()


def test_a_target_that_nothing_tells_apart_is_refused() -> None:
    with pytest.raises(PatterningError, match="no rival"):
        gap_direction(LOSSES, np.array([1.0, 0, 0]), 0, Q)
    with pytest.raises(PatterningError, match="same losses"):
        gap_direction(np.ones((3, 4)), SHARES, 0, Q)


def test_free_energy_answers_to_weights_as_the_mean_losses_say() -> None:
    """dF/dh = nβ Σ q s E[ℓ]: F is differentiated by Laplace's formula under new weights, at a large nβ."""
    n_beta, localization, home = 3000.0, 300.0, toy.find_minima()[3]
    s = np.random.default_rng(0).normal(size=toy.GROUPS)
    s = (s - s.mean()) / np.abs(s - s.mean()).max()

    def free_energy(h: float) -> float:
        rho, w = 1 + h * s, home
        gradient = toy.gradient_under(rho)

        def slope(rows: np.ndarray) -> np.ndarray:
            return n_beta * gradient(rows) + localization * (rows - home)

        def curvature(w: np.ndarray) -> np.ndarray:
            steps = 1e-6 * np.eye(toy.PARAMETERS)
            return (slope(w + steps) - slope(w - steps)) / 2e-6

        for _ in range(6):  # Newton's method from nearby
            w = w - np.linalg.solve(curvature(w), slope(w[None])[0])
        energy = n_beta * toy.group_losses(w[None])[0] @ rho / rho.sum() + localization / 2 * ((w - home) ** 2).sum()
        return energy + np.linalg.slogdet(curvature(w))[1] / 2

    at_minimum = n_beta * toy.group_losses(home[None])[0] @ s / toy.GROUPS
    entropic = (free_energy(1e-3) - free_energy(-1e-3)) / 2e-3 - at_minimum
    draws: list[np.ndarray] = []

    def visit(step: int, position: np.ndarray) -> None:
        if step > 500 and step % 10 == 0:
            draws.append(toy.group_losses(position))

    kernel, rows = SGLD(n_beta, localization, 2e-5), [(5, i) for i in range(256)]
    start = np.tile(home, (256, 1))
    walk(toy.gradient_under(np.ones(toy.GROUPS)), start, home, kernel, rows, 3000, visit)
    chains = n_beta * np.mean(draws, axis=0) @ s / toy.GROUPS - at_minimum
    error = chains.std(ddof=1) / np.sqrt(len(chains))
    assert error < 0.05
    assert abs(entropic) > 1  # so that the comparison tells signs and sizes
    assert chains.mean() == pytest.approx(entropic, abs=4 * error)
