"""Bradley-Terry by its formula, exchanged labels by their gradient."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import patterning as pt
from patterning.core.samples import Data, Samples
from patterning.intervention.direction import Direction
from patterning.intervention.weights import make_weights, swaps
from patterning.tasks.preference import accuracy_on, exchange, exchanged, loss_on
from patterning.verification.verify import _key

N = 8
RNG = np.random.default_rng(0)
CHOSEN, REJECTED = (torch.from_numpy(RNG.normal(size=(N, 3))).float() for _ in range(2))


def linear(zero: bool = False) -> nn.Linear:
    torch.manual_seed(1)
    model = nn.Linear(3, 1)
    if zero:
        nn.init.zeros_(model.weight)
    return model


def losses(model: nn.Module, task: pt.Task) -> torch.Tensor:
    return task.losses(task.flatten(model)[None], torch.arange(N)[None])[0]


def test_the_loss_is_that_of_the_stated_preference() -> None:
    model = linear()
    task = pt.preference_task(model, CHOSEN, REJECTED)
    margin = (CHOSEN - REJECTED) @ model.weight[0].detach()  # the bias cancels
    torch.testing.assert_close(losses(model, task), -torch.sigmoid(margin).log())
    expected = float(-torch.sigmoid(margin).log().mean())
    assert float(loss_on(CHOSEN, REJECTED)(model).detach()) == pytest.approx(expected, rel=1e-5)
    assert accuracy_on(CHOSEN, REJECTED)(model) == pytest.approx(float((margin > 0).float().mean()))
    assert accuracy_on(CHOSEN, REJECTED)(linear(zero=True)) == 0.5


class ByName(nn.Module):
    """Called as a Hugging Face model is: by name, and with an answer that has logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.layer(input_ids * attention_mask)}


class Answers:
    """A data set that is read by row number."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.values[row], "attention_mask": torch.ones(3)}


def test_tokenizer_batches_and_data_sets_are_the_same_pairs() -> None:
    expected = losses(linear(), pt.preference_task(linear(), CHOSEN, REJECTED))
    model = ByName()
    batches = [{"input_ids": side, "attention_mask": torch.ones(N, 3)} for side in (CHOSEN, REJECTED)]
    for chosen, rejected in (batches, (Answers(CHOSEN), Answers(REJECTED))):
        torch.testing.assert_close(losses(model, pt.preference_task(model, chosen, rejected)), expected)


def test_what_are_no_pairs_is_refused() -> None:
    for chosen, rejected, message in (
        (CHOSEN, REJECTED[:5], "8 chosen answers and 5 rejected"),
        (CHOSEN, REJECTED.long(), "same parts"),
        (Answers(CHOSEN), REJECTED, "data of one kind"),
    ):
        with pytest.raises(pt.PatterningError, match=message):
            pt.preference_task(linear(), chosen, rejected)
    with pytest.raises(pt.PatterningError, match="one number an answer"):
        pt.preference_task(nn.Linear(3, 2), CHOSEN, REJECTED)


def test_swap_is_the_size_of_the_weight_and_an_exchange_where_it_is_negative() -> None:
    s, q = np.array([-3.0, -1.0, 0.5, 1.0, 2.5]), np.full(5, 0.2)
    z = 1.2 * s / np.sqrt((s**2).mean())
    rho = make_weights(s, q, policy="swap", alpha=1.2)
    np.testing.assert_allclose(rho, np.abs(1 + z) / np.abs(1 + z).mean())
    np.testing.assert_array_equal(swaps(s, q, alpha=1.2), z < -1)
    small = 0.1
    np.testing.assert_allclose(
        make_weights(s, q, policy="swap", alpha=small), make_weights(s, q, policy="clip", alpha=small)
    )
    assert not swaps(s, q, alpha=small).any()


def swapping(task: pt.Task, strength: float = 1.5) -> pt.Weights:
    rows = np.arange(N)
    q = np.full(N, 1 / N)
    samples = Samples(rows, np.zeros(N, dtype=np.int64), q, rows)
    data = Data(N, 1, rows, task.data_fingerprint, q[:, None])
    s = np.linspace(-1.7, 1.7, N)
    return Direction(s, {"x": 1.0}, {}, None, samples, data).weights(strength, policy="swap")


def test_where_rewards_are_equal_exchanged_pairs_pull_as_negative_weights_do() -> None:
    """To first order the policy is exact: Σ (1 + α s) ∇ℓ, up to the factor that keeps the total weight."""
    model = linear(zero=True)
    task = pt.preference_task(model, CHOSEN, REJECTED)
    weights = swapping(task)
    assert weights.swapped is not None
    assert 0 < weights.swapped.sum() < N
    own = pt.preference_task(model, REJECTED, CHOSEN)  # every pair exchanged
    flat = task.flatten(model)[None].clone().requires_grad_()
    index = torch.arange(N)[None]
    loss = weights.loss(task.losses(flat, index)[0], range(N), exchanged=own.losses(flat, index)[0])
    (found,) = torch.autograd.grad(loss, flat)
    signed = torch.from_numpy(np.where(weights.swapped, -weights.rho, weights.rho)).float()
    (wanted,) = torch.autograd.grad((signed * task.losses(flat, index)[0]).mean(), flat)
    torch.testing.assert_close(found, wanted)
    s = np.linspace(-1.7, 1.7, N)
    z = 1 + 1.5 * s / np.sqrt((s**2).mean())
    np.testing.assert_allclose(signed / signed.abs().mean(), z / np.abs(z).mean(), rtol=1e-6)


def test_fit_trains_on_exchanged_pairs() -> None:
    task = pt.preference_task(linear(), CHOSEN, REJECTED)
    weights = swapping(task)
    chosen, rejected = exchange(CHOSEN, REJECTED, weights.swapped)
    for row, swapped in enumerate(weights.swapped):
        assert torch.equal(chosen[row], (REJECTED if swapped else CHOSEN)[row])
        assert torch.equal(rejected[row], (CHOSEN if swapped else REJECTED)[row])
    plain = pt.Weights(weights.rho, weights.ids, weights.base_weights, weights.free)
    by_hand = pt.fit(pt.preference_task(linear(), chosen, rejected), plain, 3, steps=5, batch_size=4)
    found = pt.fit(task, weights, 3, steps=5, batch_size=4)
    assert torch.equal(found.weight, by_hand.weight)
    assert not torch.equal(found.weight, pt.fit(task, plain, 3, steps=5, batch_size=4).weight)
    with pytest.raises(pt.PatterningError, match="preference_task"):
        exchanged(pt.Task(linear(), lambda model, batch: model(batch)[:, 0] ** 2, CHOSEN), weights.swapped)


def test_exchanges_travel_with_their_weights(tmp_path: Path) -> None:
    weights = swapping(pt.preference_task(linear(), CHOSEN, REJECTED))
    weights.to_parquet(tmp_path / "rho.parquet")
    again = pt.Weights.from_parquet(tmp_path / "rho.parquet")
    np.testing.assert_array_equal(again.swapped, weights.swapped)
    np.testing.assert_array_equal(again.rho, weights.rho)
    assert f"labels of {weights.swapped.sum()} rows exchanged" in repr(weights)
    dealt = weights.permuted(4)
    both = [sorted(zip(one.rho.tolist(), one.swapped.tolist(), strict=True)) for one in (weights, dealt)]
    assert both[0] == both[1]
    assert not np.array_equal(dealt.swapped, weights.swapped)
    plain = pt.Weights(weights.rho, weights.ids, weights.base_weights, weights.free)
    assert _key("code", weights, 0) != _key("code", plain, 0)


def test_what_would_forget_an_exchange_is_refused() -> None:
    task = pt.preference_task(linear(), CHOSEN, REJECTED)
    weights = swapping(task)
    for use in (
        lambda: weights.loss(torch.ones(N), range(N)),
        lambda: weights.sampler(0),
        lambda: weights.attach(torch.utils.data.TensorDataset(CHOSEN)),
        lambda: weights.extend(task),
    ):
        with pytest.raises(pt.PatterningError, match="exchanged under these weights"):
            use()
    with pytest.raises(pt.PatterningError, match="single tokens"):
        pt.Weights(np.ones((2, 2)), np.arange(2), np.ones((2, 2)), np.ones((2, 2), bool), swapped=np.ones(2, bool))
