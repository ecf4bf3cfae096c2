"""The four responses of a solution against closed forms, quadrature and the law of our own sampler."""

import math

import numpy as np
import pytest
import torch
from zoo.exact_moments import of_gaussian, of_grid
from zoo.known import Floats
from zoo.many import many_chains
from zoo.quadratic import Forms, Gaussian, QuadraticTask, discretised, quadratic_task, random_forms
from zoo.singular import Grid, crossing, crossing_posterior, quartic, quartic_posterior

from patterning.core.errors import PatterningError
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response import solution_responses
from patterning.response.moments import Moments
from patterning.response.sample import Draws, SampledResponse, summarise
from patterning.response.solution_responses import NAMES, four_responses

SMALL = 1e-5


def convex_task(seed: int, samples: int, parameters: int) -> QuadraticTask:
    """Random curvatures around a positive mean, and slopes that cancel in the mean: w* = 0 is the minimum of L."""
    forms = random_forms(seed, samples, parameters)
    forms.matrices[:] = 0.3 * forms.matrices + 3 * np.eye(parameters)
    q = np.arange(1, samples + 1) / np.arange(1, samples + 1).sum()
    forms.vectors[:] -= q @ forms.vectors
    return quadratic_task(forms, range(1, samples + 1))


def traces(
    task: QuadraticTask, n_beta: float, gamma: float, covariance: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    """P, X (n,) at a minimum by the trace formulas, and T for ε → 0; `covariance` S in place of A⁻¹."""
    q = task.base_weights.numpy()
    hessian = task.forms.mix(q).matrices[0]
    bend = task.forms.matrices - hessian
    inverse = np.linalg.inv(n_beta * hessian + gamma * np.eye(len(hessian)))
    s = inverse if covariance is None else covariance

    def trace(*parts: Floats) -> Floats:
        product = parts[0]
        for part in parts[1:]:
            product = product @ part
        return np.trace(product, axis1=-2, axis2=-1)

    return (
        -(n_beta**2) / 2 * trace(hessian @ s, bend, s),
        n_beta / 2 * trace(bend, s),
        n_beta * gamma / 2 * trace(inverse, bend, inverse),
    )


@pytest.mark.parametrize("gamma", [50.0, 1.0])
def test_a_quadratic_basin_has_the_trace_formulas(gamma: float) -> None:
    task, n_beta, origin = convex_task(0, 6, 4), 20.0, np.zeros(4)
    q = task.base_weights.numpy()
    law = task.posterior(q, n_beta, gamma, origin)
    found = four_responses(of_gaussian(task.forms, law, origin, q, n_beta), SGLD(n_beta, gamma, 1e-3))
    p, x, t = traces(task, n_beta, gamma)
    np.testing.assert_allclose(found.llc_posterior.values, p, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.entropic.values, x, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.llc_total.values, t, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.energy, n_beta * (task.forms.constants - q @ task.forms.constants), atol=1e-9)
    assert np.corrcoef(p, t)[0, 1] < -0.9  # P is not the derivative of the coefficient: it has the other sign
    assert found.coefficient == pytest.approx(n_beta / 2 * np.trace(task.forms.mix(q).matrices[0] @ law.covariance))


def test_the_number_worked_by_hand_in_the_documentation() -> None:
    """docs/llc-responses.md: L = w², ℓ_j = 1.5 w² + 0.1, nβ 30, γ 5; the other sample makes up the mean."""
    forms = Forms(np.array([[[3.0]], [[1.0]]]), np.zeros((2, 1)), np.array([0.1, -0.1]))
    task, q, origin = quadratic_task(forms, [1, 1]), np.full(2, 0.5), np.zeros(1)
    law = task.posterior(q, 30.0, 5.0, origin)
    found = four_responses(of_gaussian(forms, law, origin, q, 30.0), SGLD(30.0, 5.0, 1e-3))
    assert found.coefficient == pytest.approx(0.462, abs=5e-4)
    assert found.energy[0] == pytest.approx(3)
    values = [found.row(name).values[0] for name in NAMES]
    assert values == pytest.approx([-0.213, 0.231, 0.018, 3.231], abs=5e-4)


def test_total_is_the_sum_of_its_parts_and_every_response_is_centred() -> None:
    task, n_beta, anchor = convex_task(1, 7, 3), 20.0, np.array([0.3, -0.2, 0.1])
    q = task.base_weights.numpy()
    law = task.posterior(q, n_beta, 30.0, anchor)
    found = four_responses(of_gaussian(task.forms, law, anchor, q, n_beta), SGLD(n_beta, 30.0, 1e-3))
    np.testing.assert_allclose(found.llc_total.values, found.llc_posterior.values + found.entropic.values, rtol=1e-12)
    np.testing.assert_allclose(found.free_energy.values, found.energy + found.entropic.values, rtol=1e-12)
    for name in NAMES:
        assert abs(found.row(name).values @ q) < 1e-9 * np.abs(found.row(name).values).max()
    with pytest.raises(PatterningError, match="'llc' is no response"):
        found.row("llc")


def test_without_localization_the_total_vanishes_and_the_entropic_part_is_minus_the_posterior_one() -> None:
    task, n_beta, origin = convex_task(2, 6, 4), 20.0, np.zeros(4)
    q = task.base_weights.numpy()
    sizes = []
    for gamma in (1.0, 1e-2, 1e-4):
        law = task.posterior(q, n_beta, gamma, origin)
        found = four_responses(of_gaussian(task.forms, law, origin, q, n_beta), SGLD(n_beta, gamma, 1e-3))
        sizes.append(np.abs(found.llc_total.values).max() / np.abs(found.entropic.values).max())
    assert sizes[0] > 0.01
    np.testing.assert_allclose(sizes[1:], [sizes[0] / 100, sizes[0] / 10_000], rtol=0.05)
    np.testing.assert_allclose(found.entropic.values, -found.llc_posterior.values, rtol=1e-4, atol=1e-4)


def derivatives(points: Floats, losses: Floats, at_anchor: Floats, n_beta: float, gamma: float) -> list[Floats]:
    """d⟨φ⟩/dh with the old L in φ, dλ̂/dh with the new one, d(-log Z)/dh, by differences of sums over a grid."""
    n = losses.shape[1]
    q = np.full(n, 1 / n)

    def at(weights: Floats) -> tuple[float, float, float]:
        log_weight = -n_beta * losses @ weights - gamma / 2 * (points**2).sum(1)
        weight = np.exp(log_weight - log_weight.max())
        rise = n_beta * (weight @ losses / weight.sum() - at_anchor)
        return float(rise @ q), float(rise @ weights), float(-math.log(weight.sum()) - log_weight.max())

    steps = SMALL * (np.eye(n) - q)
    ends = [[np.array(at(q + sign * step)) for step in steps] for sign in (1, -1)]
    return list((np.array(ends[0]) - np.array(ends[1])).T / (2 * SMALL))


@pytest.mark.parametrize("name", ["quartic", "crossing"])
def test_singular_minima_answer_as_quadrature_says(name: str) -> None:
    n_beta, gamma = 100.0, 4.0
    kernel = SGLD(n_beta, gamma, 1e-3)
    known = quartic(kernel) if name == "quartic" else crossing(kernel)
    grid: Grid = quartic_posterior(n_beta, gamma) if name == "quartic" else crossing_posterior(n_beta, gamma)
    q = known.task.base_weights.numpy()
    w = torch.from_numpy(grid.points)
    losses = known.task.losses(w, torch.arange(len(q)).expand(len(w), -1)).numpy()
    found = four_responses(of_grid(grid, losses, np.zeros(len(q)), q, n_beta), kernel)
    p, t, f = derivatives(grid.points, losses, np.zeros(len(q)), n_beta, gamma)
    np.testing.assert_allclose(found.llc_posterior.values, p, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.llc_total.values, t, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.free_energy.values, f, rtol=1e-6, atol=1e-6)
    assert np.abs(p).max() > 0.05
    assert np.abs(p - t).max() > 0.05


# Sampled


def test_sampled_responses_are_those_of_the_chains_law_at_its_step_size() -> None:
    curvature = np.diag([1.0, 8.0])
    forms = Forms(np.stack([1.5 * curvature, 0.5 * curvature]), np.array([[0.2, 0], [-0.2, 0]]), np.array([0.1, 0.3]))
    task, origin = quadratic_task(forms, [1, 1]), torch.zeros(2)
    kernel = SGLD(n_beta=30.0, localization=60.0, step_size=0.004)  # ε λ / 4 is 0.3 and 0.09
    config = ChainConfig(4, draws=150, burn_in=100, steps_between_draws=10, batch_size=2, seed=1)
    found = four_responses(many_chains(task, origin, kernel, config, copies=50), kernel)
    law = task.posterior(np.full(2, 0.5), kernel.n_beta, kernel.localization, np.zeros(2))
    p, x, limit = traces(task, kernel.n_beta, kernel.localization, discretised(law, kernel.step_size).covariance)
    e = kernel.n_beta * np.array([-0.1, 0.1])
    np.testing.assert_allclose(found.energy, e, rtol=1e-6)
    for name, truth in (("llc-posterior", p), ("entropic", x), ("llc-total", p + x), ("free-energy", x + e)):
        row = found.row(name)
        assert (np.abs(row.values - truth) < 4 * row.standard_error).all(), name
        assert name == "llc-total" or (np.abs(row.values) > 5 * row.standard_error).all(), name
    # the step size is part of T, the small difference of two large numbers: at this one nothing is left of it
    assert abs(found.llc_total.values[0] - limit[0]) > 5 * found.llc_total.standard_error[0]
    assert found.chains == tuple(range(200))
    assert (found.n_beta, found.localization, found.step_size) == (30.0, 60.0, 0.004)
    assert abs(found.coefficient - 15 * np.trace(curvature @ discretised(law, kernel.step_size).covariance)) < (
        4 * found.coefficient_error
    )


def test_errors_over_chains_cover_and_those_of_the_total_are_not_a_sum_of_variances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Independent draws of the exact law, 400 times: what each states as its error, against what the values scatter."""
    task, n_beta, gamma, origin = convex_task(3, 3, 2), 20.0, 5.0, np.zeros(2)
    q = task.base_weights.numpy()
    law = task.posterior(q, n_beta, gamma, origin)
    truth = traces(task, n_beta, gamma)
    monkeypatch.setattr(solution_responses, "two_state_chains", lambda *_, **__: {})  # for time: it has its own tests
    rng = np.random.default_rng(4)
    values, errors, covered = ({name: [] for name in NAMES[:3]} for _ in range(3))
    for _ in range(400):
        found = four_responses(_response_of(task, law, q, n_beta, rng), SGLD(n_beta, gamma, 1e-3))
        for name, right in zip(NAMES[:3], truth, strict=True):
            row = found.row(name)
            values[name].append(row.values)
            errors[name].append(row.standard_error)
            covered[name].append(np.abs(row.values - right) < row.half_width())
    for name, right in zip(NAMES[:3], truth, strict=True):
        mean, scatter = np.mean(values[name], 0), np.std(values[name], 0)
        assert (np.abs(mean - right) < 4 * scatter / 20).all(), name
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(errors[name]), 0)), scatter, rtol=0.12)
        assert 0.90 < np.mean(covered[name]) < 0.99, name
    together = np.hypot(*(np.sqrt(np.mean(np.square(errors[name]), 0)) for name in NAMES[:2]))
    assert (np.std(values["llc-total"], 0) < 0.9 * together).all()


def _response_of(
    task: QuadraticTask, law: Gaussian, q: Floats, n_beta: float, rng: np.random.Generator
) -> SampledResponse:
    """A `SampledResponse` from 6 chains of 60 exact draws, as `sample_response` makes one."""
    w = law.sample(rng, 60, 6)
    losses = task.forms.values(w)
    phi = n_beta * (losses - task.forms.values(np.zeros(2))) @ q
    moments = Moments.empty(6, 4, task.forms.values(np.zeros(2)), np.zeros(1))
    for draw in range(60):
        moments.add(draw * 4 // 60, phi[draw, :, None], losses[draw])
    watched = np.arange(3)
    draws = Draws(moments, phi[:, :, None], losses[:, :, watched], watched, np.zeros((60, 6), np.float32), {})
    return summarise(draws, ("llc",), q, n_beta)
