"""On a small trained network: what the four responses predict, and what re-sampling under new weights finds."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from zoo.known import Floats
from zoo.many import many_chains
from zoo.tiny_network import Reweighted, TinyNetwork, trained_network

from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response import solution_responses
from patterning.response.sample import SampledResponse
from patterning.response.solution_responses import FourResponses, four_responses

KERNEL = SGLD(n_beta=40.0, localization=40.0, step_size=2e-4)  # ε λ / 4 is 0.02 at the largest curvature
ALPHA = 0.1


def chains(task: TinyNetwork | Reweighted, anchor: torch.Tensor, seed: int) -> SampledResponse:
    config = ChainConfig(4, draws=50, burn_in=1000, steps_between_draws=40, batch_size=12, seed=seed)
    return many_chains(task, anchor, KERNEL, config, copies=48)


@dataclass(frozen=True)
class Experiment:
    """`base`: the responses at weights 1, made of `losses` (draws, chains, n).

    `up`, `down`: losses under the posterior at weights 1 ± α s, with the same noise.
    """

    s: Floats
    q: Floats
    at_anchor: Floats
    base: FourResponses
    losses: Floats
    up: Floats
    down: Floats

    def difference(self, values: list[Floats]) -> tuple[float, float]:
        """Central difference of two values (chains,) over 2 α, and its standard error: chains share their noise."""
        slope = (values[0] - values[1]) / (2 * ALPHA)
        return float(slope.mean()), float(slope.std(ddof=1) / len(slope) ** 0.5)


@cache
def experiment() -> Experiment:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solution_responses, "two_state_chains", lambda *_, **__: {})  # for time
        task, exact = trained_network()
        anchor, q = exact.float(), task.base_weights.numpy()
        pilot = four_responses(chains(task, anchor, seed=6), KERNEL)
        # other chains say along which s there is something to see of each response
        s = sum(row.values / np.sqrt(q @ row.values**2) for row in (pilot.llc_total, pilot.free_energy))
        s = s / np.sqrt(q @ s**2)
        base = chains(task, anchor, seed=5)
        assert base.moments is not None
        ends = []
        for sign in (1, -1):
            rho = 1 + sign * ALPHA * s
            tilted = chains(Reweighted(task, torch.from_numpy(rho)), anchor, seed=5)
            ends.append(tilted.watched_traces / rho)  # ρ_j ℓ_j was read
        at_anchor = base.moments.at_anchor
        return Experiment(s, q, at_anchor, four_responses(base, KERNEL), base.watched_traces, ends[0], ends[1])


def predicted(name: str) -> tuple[float, float]:
    row = experiment().base.along(experiment().s)[name]
    return float(row.values[0]), float(row.standard_error[0])


def agree(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return abs(a[0] - b[0]) < 3.5 * np.hypot(a[1], b[1])


@pytest.mark.long
def test_the_total_is_how_the_coefficient_measured_anew_moves() -> None:
    """λ̂ with the new L inside, at the same w*."""
    it = experiment()
    values = [
        KERNEL.n_beta * ((losses - it.at_anchor) @ (it.q * (1 + sign * ALPHA * it.s))).mean(0)
        for sign, losses in ((1, it.up), (-1, it.down))
    ]
    measured = it.difference(values)
    assert agree(measured, predicted("llc-total"))
    assert measured[0] > 8 * measured[1]
    assert not agree(measured, predicted("llc-posterior"))  # other in sign


@pytest.mark.long
def test_the_posterior_response_is_how_the_mean_of_the_old_observable_moves() -> None:
    it = experiment()
    measured = it.difference([KERNEL.n_beta * ((losses - it.at_anchor) @ it.q).mean(0) for losses in (it.up, it.down)])
    assert agree(measured, predicted("llc-posterior"))
    assert measured[0] < -4 * measured[1]
    assert not agree(measured, predicted("llc-total"))


@pytest.mark.long
def test_the_free_energy_is_the_change_of_minus_log_z() -> None:
    """Thermodynamic integration of F over α, by chains at new weights, against importance weights of the old ones."""
    it = experiment()
    tilt = it.q * it.s
    ends = [KERNEL.n_beta * (losses @ tilt).mean(0) for losses in (it.up, it.down)]
    middle = KERNEL.n_beta * (it.losses @ tilt).mean(0)
    integral = (ends[0] + 4 * middle + ends[1]) / 6  # Simpson's rule from -α to α, per α
    by_chain = [-np.log(np.exp(-sign * ALPHA * KERNEL.n_beta * (it.losses @ tilt)).mean(0)) for sign in (1, -1)]
    weighted = it.difference(by_chain)
    assert abs(integral.mean() - weighted[0]) < 0.02 * abs(weighted[0])
    free_energy = predicted("free-energy")
    assert agree(weighted, free_energy)
    assert abs(integral.mean() - free_energy[0]) < 0.02 * abs(free_energy[0])  # the same noise, and close to linear
    assert free_energy[0] > 20 * free_energy[1]
    # F bends: the second derivative of -log Z is minus the variance of nβ Σ q s ℓ
    bend = (ends[0] - ends[1]) / (2 * ALPHA)
    variance = (KERNEL.n_beta * (it.losses @ tilt)).var(0)
    assert bend.mean() == pytest.approx(-variance.mean(), rel=0.15)


def test_the_step_size_is_small_enough_for_these_comparisons() -> None:
    task, exact = trained_network()
    every = torch.arange(12)[None]
    hessian = torch.autograd.functional.hessian(lambda w: task.losses(w[None], every).mean(), exact)
    largest = float(torch.linalg.eigvalsh(torch.as_tensor(hessian))[-1])
    assert KERNEL.step_size * (KERNEL.n_beta * largest + KERNEL.localization) / 4 < 0.02
