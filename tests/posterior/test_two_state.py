"""Chains with two states: false alarms on AR(1) and on chains in one basin, detection on a double well."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from zoo.cases import CASES
from zoo.double_well import double_well
from zoo.many import many_chains
from zoo.processes import autoregression
from zoo.singular import Grid

from patterning.core.errors import PatterningError
from patterning.posterior.chains import ChainConfig
from patterning.posterior.level_shift import COEFFICIENTS, ratios
from patterning.posterior.sgld import SGLD
from patterning.posterior.two_state import FEWEST_DRAWS, two_state_chains
from patterning.response.sample import SampledResponse
from patterning.response.solution_responses import four_responses


@pytest.mark.parametrize("draws", [20, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("a", [0.0, 0.5, 0.9, 0.97])
def test_autoregressions_raise_no_more_alarms_than_stated(draws: int, a: float) -> None:
    calls, false_alarm = 120, 0.1
    alarms = sum(
        bool(two_state_chains({"L": autoregression(a, draws, 4, seed)}, false_alarm=false_alarm))
        for seed in range(calls)
    )
    assert alarms <= binom.isf(1e-4, calls, false_alarm)


@pytest.mark.parametrize("a", [0.0, 0.8])
def test_skewed_traces_raise_no_more_alarms_than_stated(a: float) -> None:
    """Squares of autoregressions, with one degree of freedom and with six, as losses of a basin are."""
    alarms = 0
    for seed in range(60):
        one = autoregression(a, 60, 4, seed) ** 2
        six = sum(autoregression(a, 60, 4, 1000 + 10 * seed + i) ** 2 for i in range(6))
        alarms += bool(two_state_chains({"one": one, "six": six}, false_alarm=0.1))
    assert alarms <= binom.isf(1e-4, 60, 0.1)


@pytest.mark.parametrize("name", ["quartic", "crossing", "reduced rank"])
def test_chains_in_one_basin_are_quiet(name: str) -> None:
    known, config = CASES[name].make(), CASES[name].config
    config = ChainConfig(4, 60, 200, config.steps_between_draws, config.batch_size, seed=9)
    response = many_chains(known.task, known.anchor, known.kernel, config, copies=8)
    traces = {"L": response.traces["llc"], "a sample": response.watched_traces[:, :, 0]}
    assert two_state_chains(traces) == {}


def two_levels(draws: int, chains: int, second: np.ndarray, distance: float, a: float = 0.5) -> np.ndarray:
    trace = autoregression(a, draws, chains, seed=5)
    trace[:, 1] += distance * second
    return trace


def test_a_switch_is_found_where_it_is() -> None:
    second = np.arange(100) >= 70
    found = two_state_chains({"L": two_levels(100, 4, second, 5.0)}, numbers=[0, 2, 3, 7])
    assert list(found) == [2]
    evidence = found[2]
    assert evidence.sign == "switch"
    assert evidence.share == pytest.approx(0.3, abs=0.03)
    assert evidence.separation == pytest.approx(5, abs=1.2)
    assert evidence.levels[1] - evidence.levels[0] == pytest.approx(5, abs=0.6)
    assert evidence.inflation == pytest.approx(1 + 0.21 * evidence.separation**2, rel=0.1)
    assert "chain 2 switches between two levels: L is" in str(evidence)


@pytest.mark.parametrize("kind", ["one excursion", "back and forth", "every few draws", "in a long trace"])
def test_rare_and_frequent_switches_are_found(kind: str) -> None:
    draws = 1000 if kind == "in a long trace" else 100
    place = np.arange(draws)
    second = {
        "one excursion": (place >= 40) & (place < 50),
        "back and forth": place // 12 % 2 == 1,
        "every few draws": np.random.default_rng(0).random(draws) < 0.4,
        "in a long trace": place // 90 % 2 == 1,
    }[kind]
    found = two_state_chains({"L": two_levels(draws, 4, second, 6.0)})
    assert list(found) == [1]
    assert found[1].separation > 3.5


def test_a_switch_too_small_to_matter_is_left_to_r_hat() -> None:
    second = np.arange(4000) >= 2000
    assert two_state_chains({"L": two_levels(4000, 4, second, 1.2, a=0.0)}) == {}
    assert list(two_state_chains({"L": two_levels(4000, 4, second, 2.6, a=0.0)})) == [1]


def test_chains_that_sit_elsewhere_are_named() -> None:
    trace = autoregression(0.5, 60, 5, seed=6)
    trace[:, [0, 3]] += 8
    found = two_state_chains({"L": trace})
    assert list(found) == [0, 3]
    assert found[3].sign == "apart"
    assert "chain 3 sits at another level" in str(found[3])
    pair = autoregression(0.5, 60, 2, seed=6) + np.array([0, 8])
    assert list(two_state_chains({"L": pair})) == [0, 1]  # nothing says which one left


def test_the_likelihood_ratio_is_that_of_the_whole_covariance_matrix() -> None:
    """By generalised least squares with the matrix a^|i-j|, the likelihood maximised over the same coefficients."""
    values = autoregression(0.6, 12, 1, seed=2)[:, 0]
    paths = np.array([[0] * 5 + [1] * 4 + [0] * 3, [1] * 6 + [0] * 6, [0, 1] * 6], dtype=float)
    lag = np.abs(np.subtract.outer(np.arange(12), np.arange(12)))

    def least(design: np.ndarray) -> float:
        found = []
        for a in COEFFICIENTS:
            matrix = a**lag / (1 - a**2)
            inverse = np.linalg.inv(matrix)
            beta = np.linalg.solve(design.T @ inverse @ design, design.T @ inverse @ values)
            left = values - design @ beta
            found.append(12 * np.log(left @ inverse @ left) + np.linalg.slogdet(matrix)[1])
        return min(found)

    ones = np.ones(12)
    wanted = [least(ones[:, None]) - least(np.stack([ones, path], 1)) for path in paths]
    np.testing.assert_allclose(ratios(values, paths), wanted, rtol=1e-8)


# A double well, sampled


def wells(n_beta: float, *, tilt: float = 0.0, seed: int = 3) -> SampledResponse:
    """Twelve chains that start at w = 1; the barrier is nβ / 10 nats high."""
    config = ChainConfig(4, 80, burn_in=50, steps_between_draws=40, batch_size=4, seed=seed)
    return many_chains(double_well(0.1, tilt), torch.ones(1), SGLD(n_beta, 0.5, 0.6 / n_beta), config, copies=3)


def other_well(response: SampledResponse) -> np.ndarray:
    """Share of each chain's draws in the other well: samples 0 and 2 tell w by 1 - w."""
    w = 1 - (response.watched_traces[:, :, 0] - response.watched_traces[:, :, 2])
    return (w < 0).mean(0)


@pytest.mark.parametrize(("n_beta", "tilt"), [pytest.param(45.0, 0.0, marks=pytest.mark.long), (75.0, -0.04)])
def test_chains_that_visit_the_other_well_are_named_and_others_are_not(n_beta: float, tilt: float) -> None:
    """At tilt 0 both wells have the same mean loss: only the losses of single samples know of a switch."""
    response = wells(n_beta, tilt=tilt)
    found, share = four_responses(response, SGLD(n_beta, 0.5, 0.6 / n_beta)), other_well(response)
    assert ((share > 0.1) & (share < 0.9)).sum() >= 3
    assert (share == 0).sum() >= 3
    assert set(np.flatnonzero(share > 0.1)) <= set(found.two_state)
    assert not set(np.flatnonzero(share == 0)) & set(found.two_state)
    if tilt == 0:
        assert all("the loss of sample" in why for why in found.two_state.values())
        assert two_state_chains({"L": response.traces["llc"]}) == {}


def test_escapes_turn_the_posterior_response_around_and_inflate_it_until_they_are_left_out() -> None:
    """w* is the worse of two wells, and some chains find the better one."""
    kernel = SGLD(75.0, 0.5, 0.6 / 75)
    both = wells(75.0, tilt=-0.04)
    mixed = four_responses(both, kernel)
    alone = four_responses(both, kernel, leave_out=list(mixed.two_state))
    assert set(alone.left_out) == set(mixed.two_state)
    assert any("sits at another level" in why for why in alone.left_out.values())
    assert sorted((*alone.chains, *alone.left_out)) == list(range(12))
    assert alone.two_state == {}
    p, truth = mixed.llc_posterior.values, one_well_posterior(75.0, -0.04)
    assert p[0] > 5 * abs(truth[0])
    assert truth[0] < 0
    z = (alone.llc_posterior.values - truth) / alone.llc_posterior.standard_error
    assert (np.abs(z) < 4).all()
    with pytest.raises(PatterningError, match="names chain 12, which is not among"):
        four_responses(both, kernel, leave_out=[12])


def one_well_posterior(n_beta: float, tilt: float) -> np.ndarray:
    """P of the well around w = 1 alone, by quadrature down to the top of the barrier."""
    task, w = double_well(0.1, tilt), np.linspace(0, 2, 4001)[:, None]
    losses = task.losses(torch.from_numpy(w), torch.arange(4).expand(len(w), -1)).numpy()
    mean = losses.mean(1)
    p = np.exp(-n_beta * mean - 0.25 * (w[:, 0] - 1) ** 2)
    law = Grid(w, p / p.sum())
    return -(n_beta**2) * law.covariance(mean[:, None], losses - mean[:, None])[0]


def test_traces_that_cannot_be_tested_are_refused_or_left() -> None:
    trace = autoregression(0.5, FEWEST_DRAWS - 1, 3)
    trace[8:, 1] += 100
    assert two_state_chains({"L": trace}) == {}
    assert two_state_chains({"L": np.ones((40, 3))}) == {}
    with pytest.raises(PatterningError, match="of one size"):
        two_state_chains({"L": np.ones((40, 3)), "other": np.ones((41, 3))})
    with pytest.raises(PatterningError, match="of one size"):
        two_state_chains({})
    with pytest.raises(PatterningError, match="false_alarm is 0"):
        two_state_chains({"L": np.ones((40, 3))}, false_alarm=0)
    with pytest.raises(PatterningError, match="trace of L is not finite"):
        two_state_chains({"L": np.full((40, 3), np.nan)})
