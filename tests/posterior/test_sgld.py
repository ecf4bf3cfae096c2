"""The kernel against its formula, and the stationary law of the discretised chain."""

import math

import numpy as np
import pytest
import torch
from zoo.quadratic import chain_variance

from patterning.core.errors import PatterningError
from patterning.posterior.sgld import SGLD, State, init, update


def test_update_is_the_written_formula() -> None:
    rng = np.random.default_rng(0)
    w, anchor, gradient, noise = (torch.from_numpy(rng.standard_normal((3, 5))) for _ in range(4))
    kernel = SGLD(n_beta=30.0, localization=7.0, step_size=0.01)
    state = update(State(w, anchor), gradient, noise, kernel)
    for r in range(3):
        for i in range(5):
            drift = 30.0 * float(gradient[r, i]) + 7.0 * (float(w[r, i]) - float(anchor[r, i]))
            wanted = float(w[r, i]) - 0.005 * drift + 0.1 * float(noise[r, i])
            assert float(state.position[r, i]) == pytest.approx(wanted, abs=1e-14)
    assert torch.equal(state.anchor, anchor)


def test_chains_start_at_the_anchor_and_do_not_share_memory() -> None:
    anchor = torch.tensor([1.0, 2.0])
    state = init(anchor, 3)
    assert torch.equal(state.position, anchor.expand(3, 2))
    state.position[0] = 9
    assert torch.equal(state.position[1:], anchor.expand(2, 2))
    assert torch.equal(state.anchor, anchor.expand(3, 2))


@pytest.mark.parametrize("product", [0.2, 1.0, 2.0, 3.0])
def test_stationary_variance_is_the_discretised_chains(product: float) -> None:
    # ελ = product; 100,000 independent chains, so the variance is known to 0.4 %.
    n_beta, curvature, localization, chains = 30.0, 2.0, 40.0, 100_000
    total = n_beta * curvature + localization
    kernel = SGLD(n_beta, localization, product / total)
    state = init(torch.zeros(1, dtype=torch.float64), chains)
    noise = torch.Generator().manual_seed(11)
    for _ in range(120):  # the variance forgets its start as (1 - ελ/2)^(2 steps): 1e-11 at worst
        xi = torch.randn(chains, 1, generator=noise, dtype=torch.float64)
        state = update(state, curvature * state.position, xi, kernel)
    found, wanted = float(state.position.var()), chain_variance(total, kernel.step_size)
    error = math.sqrt(2 / (chains - 1))
    assert abs(found / wanted - 1) < 3.5 * error
    assert found * total - 1 > 4 * error  # the continuous law 1/λ is rejected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((float("nan"), 1.0, 0.1), "n_beta is nan"),
        ((-1.0, 1.0, 0.1), "n_beta is -1"),
        ((1.0, -1.0, 0.1), "localization is -1"),
        ((1.0, 0.0, 0.1), "localization is 0"),
        ((1.0, float("inf"), 0.1), "localization is inf"),
        ((1.0, 1.0, 0.0), "step_size is 0"),
        ((1.0, 1.0, float("nan")), "step_size is nan"),
    ],
)
def test_settings_that_define_no_chain_are_refused(settings: tuple[float, float, float], message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        SGLD(*settings)
    SGLD(0.0, 1.0, 0.1)  # nβ = 0 is the control without a loss landscape
