"""Pathwise χ against finite differences of its own chains, and what it may leave out or choose at random."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from patterning.core.task import Task
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior import chains, sgld
from patterning.posterior.chains import ChainConfig, gaussian, minibatches
from patterning.response import adjoint
from patterning.response.pathwise import pathwise_chains
from patterning.response.way_back import DATA


class Line(nn.Module):
    """Two weights, one loss each: a quadratic with curvature x²."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.3]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def cubic_losses(call, batch):
    """Not a quadratic, so that the response has all its terms."""
    error = call(batch[0]) - batch[1]
    return error**2 / 2 + error**3 / 20


LINE_X, LINE_Y = (torch.randn(*shape, generator=torch.Generator().manual_seed(3)) for shape in ((8, 2), (8,)))
LINE = Task(Line(), cubic_losses, (LINE_X, LINE_Y))
LINE_KERNEL = sgld.SGLD(n_beta=20.0, localization=10.0, step_size=0.01)
LINE_Q = np.full(8, 1 / 8)


def line_response(config: ChainConfig, kernel: sgld.SGLD = LINE_KERNEL, phi: str = "probes", **settings) -> np.ndarray:
    """Pathwise χ (chains, 8) of all 8 samples."""
    free = Restricted(LINE, LINE.flatten(LINE.module), "full")
    probe = Probe(free, torch.arange(8), config.replicas)
    readings = {"L": DATA} if phi == "data" else None
    (chains,) = pathwise_chains(free, probe, LINE_Q, kernel, config, readings, **settings).values()
    return chains.chi


def mean_phi(config: ChainConfig, i: int, h: float, read_after: int) -> np.ndarray:
    """Mean L (chains,) over the 20 positions from `read_after` on, in chains whose drift is moved by h nβ ∇(ℓ_i - L).

    The same noise and minibatches, in plain float64.
    """
    state = sgld.init(LINE.flatten(LINE.module).double(), config.chains)
    phi = np.zeros(config.chains)
    for step in range(31):
        w = state.position.detach().requires_grad_()
        error = w @ LINE_X.double().T - LINE_Y.double()
        loss = error**2 / 2 + error**3 / 20  # (r, n)
        if read_after <= step < read_after + 20:
            phi += loss.detach().mean(1).numpy() / 20
        index = minibatches(np.cumsum(LINE_Q), config, 0, step)
        total = loss.gather(1, index).mean(1) + h * (loss[:, i] - loss.mean(1))
        (slope,) = torch.autograd.grad(total.sum(), w)
        noise = gaussian(torch.zeros(config.chains, 2), config.seed, 0, step).double()
        state = sgld.update(state, slope, noise, LINE_KERNEL)
    return phi


@pytest.mark.parametrize(("phi", "batch", "first"), [("probes", 2, 11), ("data", 8, 10)])
def test_pathwise_is_the_derivative_of_the_chain_itself(phi, batch, first) -> None:
    """Against a finite difference of ⟨φ⟩; with minibatches of all the data, φ read off them is φ itself."""
    config = ChainConfig(chains=3, draws=20, burn_in=10, steps_between_draws=1, batch_size=batch, seed=1)
    chi = line_response(config, phi=phi)
    for i in (0, 5):
        expected = (mean_phi(config, i, 1e-4, first) - mean_phi(config, i, -1e-4, first)) / 2e-4 / LINE_KERNEL.n_beta
        np.testing.assert_allclose(chi[:, i], expected, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(chi @ LINE_Q, 0, atol=1e-9)


def test_phi_read_off_minibatches_is_unbiased() -> None:
    """The same chains with φ read on all the data at every step, and off the two rows of each minibatch."""
    config = ChainConfig(chains=400, draws=20, burn_in=10, steps_between_draws=1, batch_size=2, seed=1)
    found = line_response(config, phi="data")
    for i in (0, 5):
        truth = (mean_phi(config, i, 1e-4, 10) - mean_phi(config, i, -1e-4, 10)) / 2e-4 / LINE_KERNEL.n_beta
        error = found[:, i] - truth
        assert abs(error.mean()) < 3 * error.std() / 20
        assert error.std() / 20 < 0.15 * abs(truth.mean())


@pytest.mark.parametrize("matched", [False, True])
@pytest.mark.parametrize("phi", ["probes", "data"])
def test_a_antithetic_chain_is_the_mean_of_a_chain_and_one_of_opposite_noise(phi, matched, monkeypatch) -> None:
    config = ChainConfig(chains=3, draws=6, burn_in=4, steps_between_draws=1, batch_size=2, seed=1, matched=matched)
    found = line_response(replace(config, antithetic=True), phi=phi)
    plain = line_response(config, phi=phi)
    monkeypatch.setattr(chains, "gaussian", lambda *arguments: -gaussian(*arguments))
    opposite = line_response(config, phi=phi)
    np.testing.assert_allclose(found, (plain + opposite) / 2, rtol=1e-5, atol=1e-7)
    assert np.abs(plain - opposite).max() > 0.1 * np.abs(found).max()


def test_antithetic_chains_have_less_variance_than_twice_as_many() -> None:
    """Away from a minimum φ has a slope, and what is odd in the noise is most of the error."""
    config = ChainConfig(chains=200, draws=20, burn_in=10, steps_between_draws=1, batch_size=8, seed=1)
    plain, antithetic = line_response(config), line_response(replace(config, antithetic=True))
    error = plain.std(0, ddof=1) / np.sqrt(2)  # of two chains
    assert (antithetic.std(0, ddof=1) < 0.7 * error).mean() > 0.7
    assert np.abs((antithetic.mean(0) - plain.mean(0)) / (plain.std(0) / np.sqrt(200))).max() < 4


def test_one_derivative_for_several_steps_is_unbiased(monkeypatch) -> None:
    """χ of eight steps between draws, against a derivative of the probe at every step: the same chains."""
    kernel = sgld.SGLD(n_beta=20.0, localization=30.0, step_size=0.01)  # takes 0.15 off λ at each step
    config = ChainConfig(chains=400, draws=5, burn_in=16, steps_between_draws=8, batch_size=8, seed=1)

    found = {}
    for steps in (1, 8):
        monkeypatch.setattr(adjoint, "steps_at_once", lambda *_, steps=steps: steps)
        found[steps] = line_response(config, kernel)
    error = found[8] - found[1]
    assert np.abs(error.mean(0) / (error.std(0) / np.sqrt(len(error)))).max() < 4
    assert error.std() > 0
    assert error.var(0).sum() < (8 / 12) ** 2 * found[1].var(0).sum()


def test_pieces_cover_every_step_once_and_span_no_draw() -> None:
    kernel = replace(LINE_KERNEL, localization=30.0)  # takes 0.15 off λ at each step
    assert [adjoint.steps_at_once(kernel, every) for every in (1, 4, 5, 8, 9)] == [1, 4, 3, 4, 3]
    config = ChainConfig(chains=3, draws=4, burn_in=7, steps_between_draws=5, batch_size=2, seed=1, antithetic=True)
    pieces = list(adjoint.parts_of_the_way(config, kernel, 27, 0))
    assert [k for piece, _ in pieces for k in piece] == list(range(27, 0, -1))
    for piece, phase in pieces:
        assert not {12, 17, 22} & set(piece[1:])  # a draw is the first of its piece
        assert phase.shape == (3,)
    later = list(adjoint.parts_of_the_way(replace(config, chains=1), kernel, 27, 2))
    assert [phase[0] for _, phase in later] == [phase[2] for _, phase in pieces]
    many = np.array([phase for _, phase in adjoint.parts_of_the_way(replace(config, draws=400), kernel, 2007, 0)])
    np.testing.assert_allclose((many < 0.3).mean(0), 0.3, atol=0.01)


def test_the_step_that_stands_for_a_piece_is_unbiased_and_shared_by_a_mirror_image() -> None:
    rng = torch.Generator().manual_seed(0)
    positions, adjoints = torch.randn(3, 4, 2, generator=rng), torch.randn(3, 4, 2, generator=rng)
    adjoints[1] *= 5
    total, grid = torch.zeros(4), (np.arange(2000) + 0.5) / 2000
    for x in grid:
        at, along = adjoint.stand_in(positions, adjoints, torch.tensor([x, (x + 0.5) % 1]))
        total += (at * along).sum(1) / len(grid)
        steps = [[int((positions[:, r] == at[r]).all(1).nonzero()[0]) for r in pair] for pair in ((0, 2), (1, 3))]
        assert all(one == other for one, other in steps)
    torch.testing.assert_close(total, (positions * adjoints).sum((0, 2)), rtol=0.02, atol=0.02)
    at, along = adjoint.stand_in(positions, torch.zeros_like(adjoints), torch.tensor([0.2, 0.9]))
    assert torch.equal(along, torch.zeros(4, 2))
    assert torch.equal(at[0], positions[0, 0])
