"""`sample_response` against closed forms on a linear model, and what it does with chains that diverge."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo.quadratic import Forms, Gaussian, linear_regression

from patterning.core.errors import PatterningError
from patterning.core.supervised import ModuleTask
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response.sample import llc_observable, sample_response

P = 3
CHAINS = ChainConfig(chains=4, draws=20, burn_in=20, steps_between_draws=2, batch_size=8)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets) ** 2 / 2


@dataclass(frozen=True)
class Regression:
    """A linear module, its task, and the same losses as quadratic forms with a known posterior."""

    task: ModuleTask
    forms: Forms
    q: np.ndarray
    anchor: Tensor
    law: Gaussian
    kernel: SGLD


def regression(n_beta: float = 20.0, localization: float = 5.0) -> Regression:
    exact, x, y = linear_regression(seed=1, samples=12, parameters=P)
    task = ModuleTask(
        nn.Linear(P, 1, bias=False), half_square, torch.tensor(x), torch.tensor(y), exact.base_weights
    )  # fmt: skip
    q, anchor = exact.base_weights.numpy(), torch.full((P,), 0.3)
    law = exact.posterior(q, n_beta, localization, anchor.double().numpy())
    curvature, axes = np.linalg.eigh(np.linalg.inv(law.covariance))
    step = 0.4 / curvature.max()
    # the law of the discretised chain: 1 / (λ (1 - ελ/4)) along each axis
    chain = Gaussian(law.mean, axes @ np.diag(1 / (curvature * (1 - step * curvature / 4))) @ axes.T)
    return Regression(task, exact.forms, q, anchor, chain, SGLD(n_beta, localization, step))


def test_a_linear_models_susceptibilities_are_the_closed_form():
    known = regression()
    n_beta = known.kernel.n_beta
    # as many samples in a minibatch as draws in the data: stratified minibatches then carry no noise
    chains = ChainConfig(
        chains=8, draws=300, burn_in=100, steps_between_draws=6, batch_size=len(known.task.draws), seed=3
    )  # fmt: skip
    first = torch.eye(P)[:1]
    observables = {
        "llc": llc_observable(known.task, known.anchor, n_beta),
        "first weight": lambda flat: flat[:, 0],
        "probe": lambda flat: known.task.losses_on(first, torch.ones(1))(flat, torch.zeros(len(flat), 1).long())[:, 0],
    }

    found = sample_response(known.task, known.anchor, observables, known.kernel, chains)

    mean_loss = known.forms.mix(known.q)
    row = np.eye(P)[:1]
    forms = Forms(
        np.concatenate([n_beta * mean_loss.matrices, np.zeros((1, P, P)), row[:, :, None] * row[:, None, :]]),
        np.concatenate([n_beta * mean_loss.vectors, row, -row]),
        np.array([-n_beta * mean_loss.vectors[0] @ known.anchor.numpy(), 0.0, 0.5]),
    )
    covariance = forms.covariance(known.forms, known.law)
    exact = -(covariance - (covariance @ known.q)[:, None])
    chi = found.susceptibility
    assert chi.observables == ("llc", "first weight", "probe")
    assert chi.n_beta == n_beta
    z = (chi.chi - exact) / chi.standard_error
    assert 0.4 < np.sqrt((z**2).mean()) < 2
    assert np.abs(z).max() < 5
    for i in range(3):
        assert np.abs(chi.chi[i] - exact[i]).max() < 0.15 * np.abs(exact[i]).max()
    assert min(chi.reliability().values()) > 0.9

    # the means: of the observables, and of the loss
    start = float(mean_loss.values(known.anchor.double().numpy())[0])
    rise = float(mean_loss.means(known.law)[0]) - start
    assert found.rise == pytest.approx(rise, rel=0.05)
    expected = {"llc": n_beta * rise, "first weight": forms.means(known.law)[1], "probe": forms.means(known.law)[2]}
    assert found.excluded == {}
    for name, diagnostics in found.diagnostics.items():
        assert abs(diagnostics.mean - expected[name]) < 5 * diagnostics.standard_error
        assert diagnostics.r_hat < 1.02
        assert diagnostics.ess > 500
        assert found.traces[name].shape == (300, 8)
    assert list(found.sample_diagnostics) == [0, 1, 3, 4, 6, 7, 9, 11]
    assert all(d.r_hat < 1.02 for d in found.sample_diagnostics.values())


class Poisoned:
    """A task whose loss turns NaN for one row of the batch from call `start` of the sampler on."""

    def __init__(self, task: ModuleTask, bad: list[int], start: int) -> None:
        self.task, self.bad, self.start, self.calls = task, bad, start, 0
        self.base_weights, self.draws, self.init = task.base_weights, task.draws, task.init

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        value = self.task.losses(flat, index)
        if len(flat) == CHAINS.chains:  # the sampler's own call: `evaluate` goes row by row
            self.calls += 1
            if self.calls > self.start:
                mask = torch.zeros(len(flat), 1)
                mask[self.bad] = torch.nan
                value = value + mask
        return value


def first_weight(flat: Tensor) -> Tensor:
    return flat[:, 0]


@pytest.mark.parametrize("start", [5, 57])
def test_a_diverged_chain_is_named_and_in_no_number(start):
    known = regression()
    positions: list[np.ndarray] = []

    def watched(flat: Tensor) -> Tensor:
        if len(flat) == CHAINS.chains:  # not those that try it before sampling
            positions.append(flat.numpy().copy())
        return flat[:, 0]

    call = partial(sample_response, observables={"w": watched}, kernel=known.kernel, chains=CHAINS)
    clean = call(known.task, known.anchor)
    positions.clear()
    found = call(Poisoned(known.task, [2], start), known.anchor)
    assert list(found.excluded) == [2]
    assert "chain 2" in found.excluded[2]
    assert found.traces["w"].shape == (20, 3)
    assert np.array_equal(found.traces["w"], clean.traces["w"][:, [0, 1, 3]])
    assert np.isfinite(found.susceptibility.standard_error).all()
    # χ and E[ℓ] by hand, from the positions of the other three chains
    kept = np.stack(positions)[:, [0, 1, 3]].astype(np.float64)  # (draw, chain, P)
    losses = known.forms.values(kept)
    centred = losses - (losses @ known.q)[..., None]
    w = kept[:, :, 0] - kept[:, :, 0].mean(0)
    by_hand = -np.einsum("dc,dcj->cj", w, centred - centred.mean(0)).mean(0) / 19
    np.testing.assert_allclose(found.susceptibility.row("w"), by_hand, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.susceptibility.mean_losses, losses.mean((0, 1)), rtol=1e-4)


def test_an_observable_undefined_at_one_draw_costs_its_chain_by_name():
    known = regression()
    calls = []

    def sometimes(flat: Tensor) -> Tensor:
        value = flat[:, 0].clone()
        if len(flat) == CHAINS.chains:
            calls.append(len(flat))
            if len(calls) in (8, 9):  # draws 7 and 8
                value[1] = torch.inf if len(calls) == 8 else -torch.inf
        return value

    found = sample_response(known.task, known.anchor, {"sometimes": sometimes}, known.kernel, CHAINS)
    assert found.excluded == {1: "chain 1: an observable or a sample's loss is NaN or infinite at draw 7"}
    assert np.isfinite(found.susceptibility.chi).all()
    assert found.diagnostics["sometimes"].mean == found.traces["sometimes"].mean()


def test_a_chain_that_leaves_its_loss_band_is_named():
    known = regression()
    start = float(known.forms.mix(known.q).values(known.anchor.double().numpy())[0])
    with pytest.raises(PatterningError, match=r"4 of 4 chains diverged and χ needs 2 \(chain 0: .* above its band"):
        sample_response(known.task, known.anchor, {"w": first_weight}, known.kernel, CHAINS, loss_band=start / 100)


def test_fewer_than_two_chains_left_is_an_error_that_names_the_others():
    known = regression()
    with pytest.raises(
        PatterningError, match=r"3 of 4 chains diverged and χ needs 2 \(chain 0: .*chain 1: .*chain 3: "
    ):
        sample_response(
            Poisoned(known.task, [0, 1, 3], 0), known.anchor, {"w": first_weight}, known.kernel, CHAINS
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chains": replace(CHAINS, chains=1)}, "1 chain gives no error bar"),
        ({"chains": replace(CHAINS, draws=3)}, "3 draws in 4 batches"),
        ({"batches": 1}, "in 1 batches"),
        ({"batches": 21}, "in 21 batches"),
        ({"observables": {}}, "there is no observable"),
        ({"observables": {"a": first_weight, "b": lambda flat: flat}}, r"'b' gave shape \(1, 3\) for 1 replicas"),
        ({"observables": {"a": first_weight, "b": lambda flat: flat.sum(1).log()}}, "'b' is nan at w"),
        ({"anchor": torch.full((P,), torch.nan), "observables": {"a": lambda flat: torch.zeros(len(flat))}},
         r"w\* holds 3 NaN or infinite parameters"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_sampling(change, message):
    known = regression()
    settings = {"anchor": -known.anchor, "observables": {"w": first_weight}, "chains": CHAINS} | change
    with pytest.raises(PatterningError, match=message):
        sample_response(known.task, kernel=known.kernel, **settings)


def test_a_checkpoint_that_requires_a_gradient_is_taken_as_it_is():
    known = regression()
    call = partial(sample_response, observables={"w": first_weight}, kernel=known.kernel, chains=CHAINS)
    with_gradient = call(known.task, known.anchor.clone().requires_grad_())
    assert np.array_equal(with_gradient.susceptibility.chi, call(known.task, known.anchor).susceptibility.chi)
