"""The gap between solutions, and the four responses of the pathwise estimator."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import nn
from zoo.exact_moments import of_gaussian
from zoo.known import Floats
from zoo.quadratic import Forms, QuadraticTask, quadratic_task, random_forms

from patterning.core.errors import PatterningError
from patterning.core.supervised import ModuleTask
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response.chain_errors import Estimate, cosine, jackknife, weighted_sum
from patterning.response.components import component_response
from patterning.response.free_energy import free_energy_gap, gap_direction
from patterning.response.pathwise import pathwise_chains
from patterning.response.sample import llc_observable, sample_response
from patterning.response.solution_responses import NAMES, FourResponses, four_responses, responses_by_chain

N_BETA, GAMMA = 6.0, 3.0
KERNEL = SGLD(N_BETA, GAMMA, 1e-3)


def hilly_task() -> QuadraticTask:
    forms = random_forms(2, 6, 3)
    forms.matrices[:] = 0.3 * forms.matrices + 2 * np.eye(3)
    return quadratic_task(forms, [1, 2, 3, 1, 1, 2])


def around(task: QuadraticTask, anchor: Floats, kernel: SGLD = KERNEL) -> FourResponses:
    q = task.base_weights.numpy()
    law = task.posterior(q, kernel.n_beta, kernel.localization, anchor)
    return four_responses(of_gaussian(task.forms, law, anchor, q, kernel.n_beta), kernel)


def minus_log_z(task: QuadraticTask, weights: Floats, anchor: Floats) -> float:
    """The integrand at the mode over the density of its Gaussian there."""
    law = task.posterior(weights, N_BETA, GAMMA, anchor)
    loss = float(task.forms.values(law.mean) @ weights)
    log_integrand = -N_BETA * loss - GAMMA / 2 * float(((law.mean - anchor) ** 2).sum())
    return -(log_integrand - multivariate_normal.logpdf(law.mean, law.mean, law.covariance))


ANCHORS = (np.zeros(3), np.array([0.5, -0.4, 0.3]))


def test_the_gap_is_the_derivative_of_the_difference_of_free_energies_and_favours_a() -> None:
    task = hilly_task()
    q = task.base_weights.numpy()
    gap = free_energy_gap(*(around(task, anchor) for anchor in ANCHORS))
    slopes = []
    for j in range(6):
        step = 1e-5 * (np.eye(6)[j] - q)
        ends = [[minus_log_z(task, q + sign * step, anchor) for anchor in ANCHORS] for sign in (1, -1)]
        slopes.append((np.diff(ends[0])[0] - np.diff(ends[1])[0]) / 2e-5)
    np.testing.assert_allclose(gap.free_energy.values, slopes, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gap.free_energy.values, gap.energy + gap.entropic.values, rtol=1e-10)
    # weights along the gap raise the free energy of B beside that of A
    s = gap.free_energy.values
    moved = [minus_log_z(task, q * (1 + 1e-3 * s), anchor) - minus_log_z(task, q, anchor) for anchor in ANCHORS]
    assert moved[1] - moved[0] == pytest.approx(1e-3 * (q @ s**2), rel=0.01)
    assert gap.between_solutions is None
    assert gap.notes == ()


def test_parts_of_the_gap_and_their_cosines() -> None:
    task = hilly_task()
    a, b = (around(task, anchor) for anchor in ANCHORS)
    q, gap = task.base_weights.numpy(), free_energy_gap(a, b)
    for name in NAMES:
        values = getattr(gap, name.replace("-", "_")).values
        np.testing.assert_allclose(values, b.row(name).values - a.row(name).values, rtol=1e-10)
    losses = task.forms.values(np.stack(ANCHORS))
    energy = N_BETA * (losses - (losses @ q)[:, None])
    np.testing.assert_allclose(gap.energy, energy[1] - energy[0], rtol=1e-9)
    assert gap.cosine.value == pytest.approx(cosine(gap.energy, gap.free_energy.values, q))
    assert gap.cosine_parts.value == pytest.approx(cosine(gap.energy, gap.entropic.values, q))
    assert gap.cosine.standard_error == pytest.approx(0, abs=1e-9)  # exact moments
    back = free_energy_gap(b, a)
    np.testing.assert_allclose(back.free_energy.values, -gap.free_energy.values)
    assert back.cosine.value == pytest.approx(gap.cosine.value)


def test_gap_direction_is_the_gap_over_n_beta_less_a_constant() -> None:
    task = hilly_task()
    q = task.base_weights.numpy()
    responses = []
    for anchor in ANCHORS:
        law = task.posterior(q, N_BETA, GAMMA, anchor)
        responses.append(of_gaussian(task.forms, law, anchor, q, N_BETA))
    s, _ = gap_direction(*(response.susceptibility for response in responses))
    gap = free_energy_gap(*(four_responses(response, KERNEL) for response in responses))
    np.testing.assert_allclose(N_BETA * (s - q @ s), gap.free_energy.values, rtol=1e-8, atol=1e-10)


def test_several_solutions_have_an_error_over_solutions_too() -> None:
    task, rng = hilly_task(), np.random.default_rng(0)
    sides = [[around(task, anchor + 0.1 * rng.standard_normal(3)) for _ in range(3)] for anchor in ANCHORS]
    gap = free_energy_gap(*sides)
    means = [np.mean([solution.free_energy.values for solution in side], 0) for side in sides]
    np.testing.assert_allclose(gap.free_energy.values, means[1] - means[0], rtol=1e-10)
    spread = [np.var([solution.free_energy.values for solution in side], 0, ddof=1) for side in sides]
    assert gap.between_solutions is not None
    np.testing.assert_allclose(gap.between_solutions, np.sqrt((spread[0] + spread[1]) / 3), rtol=1e-10)
    assert (gap.between_solutions > 100 * gap.free_energy.standard_error).all()  # no Monte Carlo error here
    assert (len(gap.a), len(gap.b)) == (3, 3)
    assert free_energy_gap(sides[0], sides[1][0]).between_solutions is None


def noisy(truth: Floats, chains: int, rng: np.random.Generator) -> FourResponses:
    """Chains whose rise is `truth` (n,) plus noise of size 0.1 that the samples share in part."""
    noise = 0.07 * rng.standard_normal((chains, 1)) * np.linspace(-1, 1, len(truth))
    rise = truth + noise + 0.07 * rng.standard_normal((chains, len(truth)))
    q = np.full(len(truth), 1 / len(truth))
    return responses_by_chain(np.zeros_like(rise), rise, np.linspace(0, 1, len(truth)) ** 2, q, KERNEL)


def test_errors_of_a_gap_and_of_its_cosine_are_those_over_repeated_runs() -> None:
    rng = np.random.default_rng(3)
    truths = rng.random((2, 12))
    q = np.full(12, 1 / 12)
    exact = N_BETA * (truths[1] - truths[0] - (truths[1] - truths[0]) @ q)
    values, errors, covered, cosines = [], [], [], []
    for _ in range(300):
        a, b = noisy(truths[0], 5, rng), noisy(truths[1], 8, rng)
        gap = free_energy_gap(a, b)
        values.append(gap.free_energy.values)
        errors.append(gap.free_energy.standard_error)
        covered.append(np.abs(gap.free_energy.values - exact) < gap.free_energy.half_width())
        cosines.append((a.cosine.value, a.cosine.standard_error))
        assert (gap.free_energy.degrees_of_freedom >= 4).all()
        assert (gap.free_energy.degrees_of_freedom <= 11).all()
    np.testing.assert_allclose(np.mean(values, 0), exact, atol=4 * np.std(values, 0).max() / 300**0.5)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(errors), 0)), np.std(values, 0), rtol=0.15)
    assert 0.93 < np.mean(covered) < 0.97
    stated = np.sqrt(np.mean(np.square([error for _, error in cosines])))
    assert stated == pytest.approx(np.std([value for value, _ in cosines]), rel=0.15)


def test_a_jackknife_of_a_mean_is_its_standard_error_and_independent_errors_add_in_squares() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((5, 1)), rng.standard_normal((9, 1))
    found = jackknife(lambda means: float(means[1][0] - means[0][0]), [a, b])
    assert found.value == pytest.approx(b.mean() - a.mean())
    assert found.standard_error == pytest.approx(np.sqrt(a.var(ddof=1) / 5 + b.var(ddof=1) / 9))
    one = Estimate(np.ones(1), np.array([3.0]), np.array([4.0]))
    other = Estimate(np.ones(1), np.array([4.0]), np.array([np.inf]))
    total = weighted_sum([one, other], [1.0, -1.0])
    assert total.standard_error == pytest.approx([5.0])
    assert total.degrees_of_freedom == pytest.approx([25**2 / (81 / 4)])
    assert np.isinf(weighted_sum([other, other], [1.0, 1.0]).degrees_of_freedom).all()


def test_solutions_that_cannot_be_compared_are_refused_or_noted() -> None:
    task = hilly_task()
    a = around(task, ANCHORS[0])
    with pytest.raises(PatterningError, match="different n_beta"):
        free_energy_gap(a, around(task, ANCHORS[1], SGLD(7.0, GAMMA, 1e-3)))
    with pytest.raises(PatterningError, match="at least one solution A"):
        free_energy_gap([], a)
    with pytest.raises(PatterningError, match=r"different γ .*SGLD at γ 3, SGLD at γ 5"):
        free_energy_gap(a, around(task, ANCHORS[1], SGLD(N_BETA, 5.0, 1e-3)))
    with pytest.raises(PatterningError, match=r"different samplers \(SGLD at γ 3, RMSPropSGLD at γ 3"):
        free_energy_gap(a, replace(around(task, ANCHORS[1]), sampler="RMSPropSGLD"))
    gap = free_energy_gap(a, around(task, ANCHORS[1], SGLD(N_BETA, GAMMA, 2e-3)))
    assert gap.notes == (
        "the solutions were sampled with different steps ε (0.001, 0.002), whose biases do not cancel",
    )


# What is refused, and the pathwise estimator

P, ROWS = 3, 10


def half_square(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output[:, 0] - target) ** 2 / 2


def regression() -> tuple[ModuleTask, torch.Tensor, Forms]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, P))
    y = x @ rng.standard_normal(P) + 0.2 * rng.standard_normal(ROWS)
    model = nn.Linear(P, 1, bias=False)
    task = ModuleTask(model, half_square, torch.tensor(x).float(), torch.tensor(y).float())
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    forms = Forms(x[:, :, None] * x[:, None, :], -y[:, None] * x, y**2 / 2)
    return task, torch.tensor(best).float(), forms


def test_every_estimator_gives_the_four_responses_of_a_component() -> None:
    task, anchor, forms = regression()
    kernel = SGLD(n_beta=20.0, localization=10.0, step_size=4e-3)
    config = ChainConfig(8, 60, 60, 4, ROWS, seed=2)
    q = np.full(ROWS, 1 / ROWS)
    exact = QuadraticTask(forms, torch.from_numpy(q), torch.arange(ROWS))
    law = exact.posterior(q, 20.0, 10.0, anchor.double().numpy())
    truth = four_responses(of_gaussian(forms, law, anchor.double().numpy(), q, 20.0), kernel)
    at_anchor = task.losses(anchor[None], torch.arange(ROWS)[None])[0].double().numpy()

    sampled = component_response(task, anchor, ["full"], kernel, config).by_component["full"]
    found = four_responses(sampled, kernel)  # its φ is L - L(w*), without nβ
    differentiated = component_response(task, anchor, ["full"], kernel, config, estimator="pathwise").by_component[
        "full"
    ]
    bounded = four_responses(differentiated, kernel, at_anchor=at_anchor)
    free = Restricted(task, anchor, "full")
    (chains,) = pathwise_chains(free, Probe(free, torch.arange(ROWS), 8), q, kernel, config).values()
    by_chain = responses_by_chain(400 * chains.chi, chains.mean_losses - at_anchor, at_anchor, q, kernel)

    for response in (found, bounded, by_chain):
        for name in NAMES:
            row, right = response.row(name), truth.row(name).values
            step = 0.03 * np.abs(right).max()  # ε λ / 4 is 0.05 at most
            assert (np.abs(row.values - right) < 4.5 * row.standard_error + step).all(), name
            if response is by_chain and name != "llc-total":  # and it is not all noise
                assert (np.abs(right) > 4 * row.standard_error).any(), name
        np.testing.assert_allclose(response.energy, truth.energy, atol=1e-4)
    for name in NAMES:
        np.testing.assert_allclose(bounded.row(name).values, by_chain.row(name).values, atol=1e-4)
        assert (bounded.row(name).standard_error > 0.99 * by_chain.row(name).standard_error).all()
    assert "upper bounds" in bounded.notes[0]
    assert np.isnan(bounded.cosine.standard_error)
    assert by_chain.cosine.standard_error > 0
    with pytest.raises(PatterningError, match="only means over chains were kept"):
        bounded.along(np.ones(ROWS))
    with pytest.raises(PatterningError, match="pass those of its 10 samples as at_anchor"):
        four_responses(differentiated, kernel)
    with pytest.raises(PatterningError, match="leave_out has nothing to act on"):
        four_responses(differentiated, kernel, at_anchor=at_anchor, leave_out=[1])
    mixed = free_energy_gap(bounded, found)
    assert np.isnan(mixed.cosine.standard_error)
    np.testing.assert_allclose(mixed.energy, 0, atol=1e-4)


def test_what_is_not_the_loss_of_these_samples_is_refused() -> None:
    task, anchor, _ = regression()
    kernel, config = SGLD(20.0, 10.0, 4e-3), ChainConfig(3, 8, 5, 2, ROWS, seed=2)
    observables = {"w": lambda flat: flat[:, 0], "llc": llc_observable(task, anchor, 20.0)}
    found = sample_response(task, anchor, observables, kernel, config)
    assert four_responses(found, kernel).notes == (
        "8 draws a chain are too few to tell whether one holds two states (16 are needed)",
    )
    assert four_responses(found, kernel, observable="llc").coefficient > 0
    with pytest.raises(PatterningError, match="'w' is L"):
        four_responses(found, kernel, observable="w")
    with pytest.raises(PatterningError, match="there is no observable 'loss': χ has rows for w, llc"):
        four_responses(found, kernel, observable="loss")
    with pytest.raises(PatterningError, match="ran at n_beta 20, not 30"):
        four_responses(found, SGLD(30.0, 10.0, 4e-3))
    with pytest.raises(PatterningError, match="1 chain is left"):
        four_responses(found, kernel, leave_out=[0, 1])
    only = sample_response(task, anchor, {"w": observables["w"]}, kernel, config)
    with pytest.raises(PatterningError, match="no observable is L"):
        four_responses(only, kernel)
