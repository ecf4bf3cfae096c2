"""χ in linear regression, where the posterior is a Gaussian and every covariance of quadratics is closed."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from scipy.stats import spearmanr
from zoo.quadratic import Floats, Forms, Gaussian, QuadraticTask, linear_regression, random_forms

from patterning.core.errors import PatterningError
from patterning.posterior.chains import ChainConfig, run_chains
from patterning.posterior.sgld import SGLD
from patterning.response.moments import Moments
from patterning.response.susceptibility import Susceptibility, rank_correlation, step_up, susceptibility

SAMPLES, PARAMETERS, N_BETA, GAMMA = 10, 3, 20.0, 15.0
TASK, _, _ = linear_regression(0, SAMPLES, PARAMETERS)
Q = TASK.base_weights.numpy()
ANCHOR = np.random.default_rng(1).standard_normal(PARAMETERS)
PHI = random_forms(2, 3, PARAMETERS)
NAMES = ("a", "b", "c")
LAW = TASK.posterior(Q, N_BETA, GAMMA, ANCHOR)


def exact_chi(task: QuadraticTask = TASK, law: Gaussian = LAW) -> Floats:
    covariance = PHI.covariance(task.forms, law)
    return -(covariance - (covariance @ Q)[:, None])


def collect(w: Floats, batches: int, forms: Forms = TASK.forms) -> Moments:
    """Moments of draws w (draws, chains, P) cut into equal batches."""
    moments = Moments.empty(w.shape[1], batches, forms.values(ANCHOR), PHI.values(ANCHOR))
    phi, losses = PHI.values(w), forms.values(w)
    for draw in range(len(w)):
        moments.add(draw * batches // len(w), phi[draw], losses[draw])
    return moments


def estimate(seed: int, draws: int = 200, chains: int = 6, batches: int = 10) -> Susceptibility:
    w = LAW.sample(np.random.default_rng(seed), draws, chains)
    return susceptibility(collect(w, batches), NAMES, Q, N_BETA)


@pytest.fixture(scope="module")
def estimates() -> list[Susceptibility]:
    return [estimate(seed) for seed in range(80)]


def test_the_closed_forms_of_the_zoo_hold_by_brute_force() -> None:
    w = LAW.sample(np.random.default_rng(3), 400_000)
    found = np.cov(PHI.values(w).T, TASK.forms.values(w).T)[:3, 3:]
    wanted = PHI.covariance(TASK.forms, LAW)
    scale = np.sqrt(np.outer(np.diag(PHI.covariance(PHI, LAW)), np.diag(TASK.forms.covariance(TASK.forms, LAW))))
    assert np.abs((found - wanted) / scale).max() < 0.01
    np.testing.assert_allclose(PHI.values(w).mean(0), PHI.means(LAW), atol=0.02)


def test_estimates_are_unbiased_and_their_standard_errors_cover(estimates: list[Susceptibility]) -> None:
    chi = np.stack([found.chi for found in estimates])
    z = (chi - exact_chi()) / np.stack([found.standard_error for found in estimates])
    assert z.shape == (80, 3, SAMPLES)
    assert math.sqrt((z**2).mean()) == pytest.approx(1, abs=0.15)
    rms = np.sqrt((z**2).mean(axis=(0, 2)))  # for each observable
    assert ((rms > 0.75) & (rms < 1.25)).all()
    mean_z = (chi.mean(0) - exact_chi()) / (chi.std(0, ddof=1) / math.sqrt(80))
    assert np.abs(mean_z).max() < 4
    assert (np.abs(z) < 1.96).mean() == pytest.approx(0.95, abs=0.03)


def test_mean_losses_and_their_errors_cover_the_closed_form(estimates: list[Susceptibility]) -> None:
    wanted = TASK.forms.means(LAW)
    found = np.stack([one.mean_losses for one in estimates])
    assert np.abs((found.mean(0) - wanted) / (found.std(0, ddof=1) / math.sqrt(80))).max() < 4
    # six chains are five degrees of freedom: the errors are right in the mean square
    errors = np.stack([one.mean_losses_error for one in estimates])
    ratio = (errors**2).mean(0) / found.var(0, ddof=1)
    assert ((ratio > 0.6) & (ratio < 1.6)).all()


def correlated(seed: int, a: float, draws: int, chains: int) -> Floats:
    """Stationary AR(1) chains with law LAW: (draws, chains, P)."""
    noise = np.random.default_rng(seed).standard_normal((draws, chains, PARAMETERS)) * math.sqrt(1 - a**2)
    noise[0] /= math.sqrt(1 - a**2)
    return LAW.mean + lfilter([1], [1, -a], noise, axis=0) @ np.linalg.cholesky(LAW.covariance).T


def rms_z(batches: int) -> float:
    squares = []
    for seed in range(40):
        found = susceptibility(collect(correlated(seed, 0.8, 600, 6), batches), NAMES, Q, N_BETA)
        squares.append(((found.chi - exact_chi()) / found.standard_error) ** 2)
    return math.sqrt(np.mean(squares))


def test_batch_means_account_for_correlated_draws() -> None:
    assert rms_z(batches=6) == pytest.approx(1, abs=0.2)  # batches of 100 draws, autocorrelation time 9
    assert rms_z(batches=600) > 1.5  # one draw a batch would claim too much: this test can tell


def test_the_response_formula_is_the_finite_difference_of_reweighted_posteriors() -> None:
    rng = np.random.default_rng(4)
    for _ in range(5):
        s = rng.standard_normal(SAMPLES)
        s -= (Q * s).sum()
        up, down = (PHI.means(TASK.posterior(Q * (1 + h * s), N_BETA, GAMMA, ANCHOR)) for h in (1e-4, -1e-4))
        np.testing.assert_allclose((up - down) / 2e-4, N_BETA * exact_chi() @ (Q * s), rtol=1e-6)


def test_estimated_chi_predicts_the_finite_difference(estimates: list[Susceptibility]) -> None:
    s = np.random.default_rng(5).standard_normal(SAMPLES)
    s -= (Q * s).sum()
    up, down = (PHI.means(TASK.posterior(Q * (1 + h * s), N_BETA, GAMMA, ANCHOR)) for h in (1e-4, -1e-4))
    slope = (up - down) / 2e-4
    predicted = np.stack([N_BETA * found.chi @ (Q * s) for found in estimates])
    error = predicted.std(0, ddof=1) / math.sqrt(len(estimates))
    assert (np.abs(predicted.mean(0) - slope) < 4 * error).all()
    assert (np.abs(predicted.mean(0) + slope) > 10 * error).any()  # the other sign is told apart


def test_moving_weight_onto_a_sample_of_positive_chi_raises_the_observable() -> None:
    j = int(np.argmax(np.abs(exact_chi()[0])))
    s = -np.full(SAMPLES, Q[j])
    s[j] += 1
    moved = PHI.means(TASK.posterior(Q * (1 + 1e-3 * s), N_BETA, GAMMA, ANCHOR))[0] - PHI.means(LAW)[0]
    assert math.copysign(1, moved) == math.copysign(1, estimate(0).chi[0, j])


def test_rows_have_mean_zero_under_q(estimates: list[Susceptibility]) -> None:
    for found in estimates[:5]:
        np.testing.assert_allclose(found.chi @ Q, 0, atol=1e-12 * np.abs(found.chi).max())
        np.testing.assert_allclose(found.halves @ Q, 0, atol=1e-12 * np.abs(found.chi).max())


def test_chi_of_a_group_is_the_weighted_mean_of_its_members() -> None:
    group = np.array([1, 4, 7])
    rest = np.setdiff1d(np.arange(SAMPLES), group)
    mix = np.zeros((len(rest) + 1, SAMPLES))
    mix[np.arange(len(rest)), rest] = 1
    mix[-1, group] = Q[group] / Q[group].sum()
    w = LAW.sample(np.random.default_rng(6), 50, 4)
    single = susceptibility(collect(w, 5), NAMES, Q, N_BETA)
    grouped_q = np.append(Q[rest], Q[group].sum())
    grouped = susceptibility(collect(w, 5, TASK.forms.mix(mix)), NAMES, grouped_q, N_BETA)
    np.testing.assert_allclose(grouped.chi, single.chi @ mix.T, atol=1e-10)


def test_halves_are_the_even_and_the_odd_chains() -> None:
    w = LAW.sample(np.random.default_rng(7), 40, 5)
    found = susceptibility(collect(w, 4), NAMES, Q, N_BETA)
    for half, chains in enumerate(([0, 2, 4], [1, 3])):
        alone = susceptibility(collect(w[:, chains], 4), NAMES, Q, N_BETA)
        np.testing.assert_allclose(found.halves[half], alone.chi, atol=1e-12)


def test_chi_does_not_depend_on_the_order_of_chains_or_on_what_a_constant_is_added() -> None:
    w = LAW.sample(np.random.default_rng(8), 40, 4)
    found = susceptibility(collect(w, 4), NAMES, Q, N_BETA)
    turned = susceptibility(collect(w[:, ::-1], 4), NAMES, Q, N_BETA)
    raised = Forms(TASK.forms.matrices, TASK.forms.vectors, TASK.forms.constants + 100)
    lifted = susceptibility(collect(w, 4, raised), NAMES, Q, N_BETA)
    for other in (turned, lifted):
        np.testing.assert_allclose(other.chi, found.chi, atol=1e-10)
        np.testing.assert_allclose(other.standard_error, found.standard_error, atol=1e-10)
    np.testing.assert_allclose(lifted.mean_losses, found.mean_losses + 100, atol=1e-9)


def test_sampled_chains_give_the_closed_form_of_the_discretised_law() -> None:
    # The whole way: SGLD with minibatches, streaming sums, χ. The chain of 900 steps is 40 autocorrelation times long.
    precision = np.linalg.inv(LAW.covariance)
    kernel = SGLD(N_BETA, GAMMA, 0.4 / np.linalg.eigvalsh(precision)[-1])
    discrete = Gaussian(LAW.mean, LAW.covariance @ np.linalg.inv(np.eye(PARAMETERS) - kernel.step_size * precision / 4))
    chains, batches, draws = 12, 4, 100
    config = ChainConfig(chains, draws, burn_in=100, steps_between_draws=8, batch_size=64, seed=9)
    moments = Moments.empty(chains, batches, TASK.forms.values(ANCHOR), PHI.values(ANCHOR))

    def on_draw(draw: int, position: torch.Tensor) -> None:
        w = position.double().numpy()
        moments.add(draw * batches // draws, PHI.values(w), TASK.forms.values(w))

    trace = run_chains(TASK, torch.from_numpy(ANCHOR.astype(np.float32)), kernel, config, on_draw)
    assert not trace.diverged
    found, wanted = susceptibility(moments, NAMES, Q, N_BETA), exact_chi(law=discrete)
    assert np.abs((found.chi - wanted) / found.standard_error).max() < 3.5
    assert np.corrcoef(found.chi.ravel(), wanted.ravel())[0, 1] > 0.98
    mean_z = (found.mean_losses - TASK.forms.means(discrete)) / found.mean_losses_error
    assert np.abs(mean_z).max() < 4.5  # twelve chains: eleven degrees of freedom


def test_rows_are_found_by_name_and_one_chain_is_refused() -> None:
    found = estimate(0)
    np.testing.assert_array_equal(found.row("b"), found.chi[1])
    with pytest.raises(PatterningError, match="1 chain is left"):
        estimate(0, chains=1)


def test_reliability_is_the_stepped_up_rank_correlation_of_the_halves() -> None:
    found = estimate(1)
    free = np.arange(SAMPLES) != 3
    reliability = found.reliability(free)
    for i, name in enumerate(NAMES):
        r = spearmanr(found.halves[0, i, free], found.halves[1, i, free]).statistic
        assert reliability[name] == pytest.approx(2 * r / (1 + r), abs=1e-12)
    assert found.reliability() != reliability


def test_rank_correlation_is_scipys_and_undefined_for_a_constant() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, size=30).astype(float), rng.standard_normal(30)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5.0)))


def test_step_up_is_the_reliability_of_a_longer_measurement() -> None:
    assert step_up(0.5) == pytest.approx(2 / 3)
    assert step_up(0.25, 4) == pytest.approx(4 / 7)
    # simulated: signal variance 1, noise variance 1 in each half, so the halves correlate ½ and their mean 2/3
    rng = np.random.default_rng(1)
    signal = rng.standard_normal(200_000)
    a, b, c, d = (signal + rng.standard_normal(200_000) for _ in range(4))
    assert step_up(np.corrcoef(a, b)[0, 1]) == pytest.approx(np.corrcoef(a + b, c + d)[0, 1], abs=0.01)
