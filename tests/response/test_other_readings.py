"""First-order χ, the free-energy gap, the ensemble of runs and groups, against closed forms."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from zoo.quadratic import Gaussian, quadratic_task, random_forms

from patterning.core.errors import PatterningError
from patterning.response.ensemble import ensemble_susceptibility
from patterning.response.first_order import first_order_susceptibility
from patterning.response.free_energy import gap_direction
from patterning.response.groups import cluster_samples, group_means
from patterning.response.susceptibility import Susceptibility

RNG = np.random.default_rng(5)


def test_first_order_is_the_exact_covariance_at_strong_localization() -> None:
    forms = random_forms(0, 8, 4)
    task = quadratic_task(forms, [1, 2, 1, 1, 3, 1, 1, 2])
    q, anchor, gamma = task.base_weights.numpy(), RNG.standard_normal(4), 1e5
    phi = random_forms(1, 2, 4)
    index = torch.arange(2)[None]
    probe = quadratic_task(phi, [1, 1])
    observables = {f"phi{i}": lambda flat, i=i: probe.losses(flat, index)[:, i] for i in range(2)}
    found = first_order_susceptibility(task, torch.from_numpy(anchor), observables, localization=gamma)
    exact = phi.covariance(forms, Gaussian(anchor, np.eye(4) / gamma))
    wanted = -(exact - (exact @ q)[:, None])
    np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())
    np.testing.assert_allclose(found @ q, 0, atol=1e-12)


def test_first_order_names_an_observable_without_a_gradient() -> None:
    task = quadratic_task(random_forms(0, 4, 3), [1, 1, 1, 1])
    with pytest.raises(PatterningError, match="'still' has a gradient of size 0"):
        first_order_susceptibility(task, torch.ones(3), {"still": lambda flat: (flat * 0).sum(1)}, localization=1.0)


def response(mean_losses: np.ndarray, n_beta: float = 10.0) -> Susceptibility:
    n = len(mean_losses)
    blank = np.zeros((1, n))
    q = np.arange(1, n + 1) / np.arange(1, n + 1).sum()
    return Susceptibility(("phi",), n_beta, q, blank, blank, 1, np.zeros((2, 1, n)), mean_losses, np.full(n, 0.1))


def test_gap_direction_lowers_the_free_energy_of_a_relative_to_b() -> None:
    """Against a finite difference of exact Gaussian free energies of two basins, F = -log Z."""
    forms, n_beta, gamma, n = random_forms(2, 6, 3), 4.0, 50.0, 6
    task = quadratic_task(forms, [1] * n)
    q = np.arange(1, n + 1) / np.arange(1, n + 1).sum()
    anchors = [np.zeros(3), np.ones(3)]

    def free_energy(weights: np.ndarray, anchor: np.ndarray) -> float:
        """-log ∫ exp(-nβ L - γ/2 |w - w*|²): the integrand at the mode over the density of its Gaussian there."""
        law = task.posterior(weights, n_beta, gamma, anchor)
        loss = float(forms.values(law.mean) @ weights)
        log_integrand = -n_beta * loss - gamma / 2 * float(((law.mean - anchor) ** 2).sum())
        return -(log_integrand - multivariate_normal.logpdf(law.mean, law.mean, law.covariance))

    a, b = (response(forms.means(task.posterior(q, n_beta, gamma, anchor)), n_beta) for anchor in anchors)
    s, z = gap_direction(a, b)
    s = s - q @ s
    assert z > 0
    alpha = 1e-5
    gaps = [free_energy(q * (1 + sign * alpha * s), anchors[0]) - free_energy(q * (1 + sign * alpha * s), anchors[1])
            for sign in (1, -1)]  # fmt: skip
    slope = (gaps[0] - gaps[1]) / (2 * alpha)
    assert slope == pytest.approx(n_beta * float((q * s) @ (a.mean_losses - b.mean_losses)), rel=1e-5)
    assert slope < 0


def test_gap_of_different_data_is_refused() -> None:
    with pytest.raises(PatterningError, match="different n_beta"):
        gap_direction(response(np.ones(4)), response(np.ones(4), n_beta=11.0))


def test_ensemble_of_two_kinds_of_runs_is_the_gap_between_them() -> None:
    """Runs in two basins with losses a and b: -Cov(φ, ℓ) = p (1 - p) Δφ (b - a), the gap direction times a factor."""
    runs, n = 40, 7
    a, b = RNG.random(n), RNG.random(n)
    q = np.full(n, 1 / n)
    kind = np.arange(runs) % 4 == 0
    losses, outcome = np.where(kind[:, None], a, b), np.where(kind, 1.0, 0.2)
    found = ensemble_susceptibility("phi", outcome, losses, q)
    gap = (b - b @ q) - (a - a @ q)
    np.testing.assert_allclose(found.chi[0], 0.25 * 0.75 * 0.8 * gap * runs / (runs - 1), rtol=1e-10)
    with pytest.raises(PatterningError, match="same outcome"):
        ensemble_susceptibility("phi", np.ones(runs), losses, q)
    with pytest.raises(PatterningError, match="5 runs are too few"):
        ensemble_susceptibility("phi", outcome[:5], losses[:5], q)


def test_ensemble_errors_cover_the_truth() -> None:
    n, runs, repeats = 30, 300, 200  # at 60 runs the errors are 12 % too small: products are skewed
    slope, q = RNG.standard_normal(n), np.full(30, 1 / 30)
    z = []
    for _ in range(repeats):
        outcome = RNG.standard_normal(runs)
        losses = outcome[:, None] * slope + RNG.standard_normal((runs, n))
        found = ensemble_susceptibility("phi", outcome, losses, q)
        z.append((found.chi[0] + (slope - slope.mean())) / found.standard_error[0])
    assert np.std(z) == pytest.approx(1, abs=0.08)
    assert abs(np.mean(z)) < 0.05


def test_groups_keep_the_total_and_find_separate_clusters() -> None:
    centres = np.array([[0.0, 0], [9, 0], [0, 9]])
    truth = np.arange(60) % 3
    groups = cluster_samples(centres[truth] + RNG.standard_normal((60, 2)), 3)
    assert all(len(set(groups[truth == i])) == 1 for i in range(3))
    assert len(set(groups)) == 3
    values, q = RNG.standard_normal(60), RNG.random(60)
    means = group_means(values, groups, q)
    assert q @ means == pytest.approx(q @ values)
    mine = truth == 1
    assert means[mine] == pytest.approx(np.average(values[mine], weights=q[mine]))
    with pytest.raises(PatterningError, match="2 samples cannot make 3 groups"):
        cluster_samples(np.zeros((2, 1)), 3)


def test_frozen_results_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        response(np.ones(3)).n_beta = 2.0  # pyright: ignore[reportAttributeAccessIssue]
