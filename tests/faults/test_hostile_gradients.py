"""Losses whose gradient a chain would follow astray, or that other scales and shapes of a batch would change."""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning.core.task import Task
from tests.faults.common import (
    CE,
    ROWS,
    TOKENS,
    Net,
    X,
    Y,
    at_w_star,
    chi,
    classify,
    ignoring,
    masked,
    refused,
    seeded,
)  # fmt: skip


class Clamping(Net):
    def hidden(self, x: Tensor) -> Tensor:
        self.a.weight.data.clamp_(-0.1, 0.1)
        return super().hidden(x)


def test_parameters_changed_in_place_and_global_switches() -> None:
    refused(r"changes its parameters \(a.weight\) in place", lambda: Task(Clamping(), classify, (X, Y)))

    def switching(model, b) -> Tensor:
        torch.set_default_dtype(torch.float64)
        return classify(model, b)

    refused("default number type", lambda: Task(Net(), switching, (X, Y)))
    assert torch.get_default_dtype() == torch.float32


# Gradients that are not those of the loss.


class Padded(nn.Sequential):
    def __init__(self, padding: int | None) -> None:
        super().__init__(nn.Embedding(9, 6, padding_idx=padding), nn.Linear(6, 9))
        seeded(self)


class Straight(Net):
    """Rounded weights with the gradient of unrounded ones."""

    def hidden(self, x: Tensor) -> Tensor:
        rounded = self.a.weight + (torch.round(self.a.weight * 50) / 50 - self.a.weight).detach()
        return torch.tanh(F.linear(x, rounded, self.a.bias))


class Rounded(Net):
    def hidden(self, x: Tensor) -> Tensor:
        return F.linear(x, torch.round(3 * self.a.weight), self.a.bias)


class HalfDetached(Net):
    def hidden(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return h + 0.5 * h.detach()


class Silent(torch.autograd.Function):
    """tanh, whose backward returns 0."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


class WithSilent(Net):
    def hidden(self, x: Tensor) -> Tensor:
        return Silent.apply(self.a(x))


class Reversing(Net):
    """Turns its gradient round, as adversarial training does."""

    def hidden(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        if h.requires_grad:
            h.register_hook(lambda grad: -grad)
        return h


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Straight, "not that of its values"),
        (lambda: Straight(2000), "not that of its values"),
        (Rounded, "depends on parameter a.weight, but its gradient is 0 wherever it was tried"),
        (HalfDetached, "not that of its values"),
        (WithSilent, "but its gradient is 0 wherever it was tried"),
        (Reversing, "not that of its values"),
    ],
)
def test_gradients_that_a_chain_would_follow_astray(make: Callable[[], Net], message: str) -> None:
    refused(message, lambda: Task(make(), classify, (X, Y)))


def test_rows_of_an_embedding_that_are_kept_still() -> None:
    tokens = TOKENS[:, :5]
    refused("with 0.weight the loss changes .* padding_idx", lambda: Task(Padded(1), ignoring, tokens))
    assert Task(Padded(None), ignoring, tokens).samples_per_row == 4
    assert Task(Padded(0), masked, TOKENS).samples_per_row == 7  # padding that no sample feels


class Kinked(nn.Module):
    """ReLU and max-pooling, with a layer that starts at 0: right gradients, kinks exactly at w*."""

    def __init__(self, zero: bool) -> None:
        super().__init__()
        self.conv, self.middle, self.out = nn.Conv1d(1, 8, 3), nn.Linear(16, 64), nn.Linear(64, 3)
        seeded(self)
        if zero:
            for p in (*self.middle.parameters(), self.out.weight):
                p.detach().zero_()

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool1d(F.relu(self.conv(x[:, None])), 2).flatten(1)
        return self.out(F.relu(self.middle(pooled)))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_kinks_and_any_scale_of_the_loss_are_no_fault(zero: bool, scale: float) -> None:
    assert Task(Kinked(zero), lambda model, b: scale * classify(model, b), (X, Y)).notes == ()


# Tolerances, and batches that change their shape.


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1.0, 1e6])
def test_checks_hold_at_any_scale_of_the_loss(scale: float) -> None:
    refused(
        "depends on the other rows",
        lambda: Task(Net(), lambda m, b: scale * CE(m(b[0] - b[0].mean(0)), b[1]), (X, Y)),
    )
    refused(
        "not the same twice",
        lambda: Task(Net(), lambda m, b: scale * CE(F.dropout(m(b[0]), 0.1), b[1]), (X, Y)),
    )


def test_losses_of_rounding_alone_are_no_fault_and_large_constants_are() -> None:
    sure = seeded(nn.Linear(6, 3))
    labels = sure(X).argmax(1)
    for p in sure.parameters():
        p.detach().mul_(300)
    assert float(Task(sure, classify, (X, labels)).base_weights.sum()) == pytest.approx(1)
    exact = seeded(nn.Linear(6, 3))
    targets = exact(X).detach() + 1e-5
    assert Task(exact, lambda m, b: (m(b[0]) - b[1]).square().mean(1), (X, targets)).notes == ()
    refused("Subtract the constant", lambda: Task(Net(), lambda m, b: classify(m, b) + 1e6, (X, Y)))
    refused("must return float32", lambda: Task(Net(), lambda m, b: classify(m, b).half(), (X, Y)))


@pytest.mark.parametrize("short", [torch.arange(64) % 4 + 2, torch.where(torch.arange(64) == 33, 3, 8)])
def test_a_loss_that_trims_its_batch(short: Tensor) -> None:
    """Also where a single row is short, and in no batch of those tried."""
    tokens = torch.where(torch.arange(8) < short[:, None], TOKENS.clamp(min=1), 0).repeat(10, 1)

    def trimmed(model, b: Tensor) -> tuple[Tensor, Tensor]:
        return masked(model, b[:, : int((b != 0).sum(1).max())])

    refused("must not trim its batch", lambda: Task(Padded(None), trimmed, tokens))


# Losses with derivatives of their own.


def physics(create_graph: bool, detach: bool, enable: bool) -> Callable[..., Tensor]:
    """(du/dx - 1)²: the loss of a physics-informed network."""

    def loss(model, b) -> Tensor:
        with torch.set_grad_enabled(enable or torch.is_grad_enabled()):
            x = b[0].clone().requires_grad_()
            u = model(x).sum(1)
            (slope,) = torch.autograd.grad(u.sum(), x, create_graph=create_graph)
        found = (slope - 1).square().mean(1) + 0.1 * (u - b[0][:, 0]).square()
        return found.detach() if detach else found

    return loss


@pytest.mark.parametrize("enable", [True, False])
def test_losses_that_differentiate_by_their_inputs(enable: bool) -> None:
    task = Task(Net(), physics(True, False, enable), (X,))
    assert "one after the other" in " ".join(task.notes)
    losses = at_w_star(task)
    torch.testing.assert_close(losses[0], physics(True, False, True)(Net(), (X[:16],)).detach())
    flat = task.own_row()[None].requires_grad_()
    (slope,) = torch.autograd.grad(task.losses(flat, ROWS[None]).sum(), flat)
    net = Net()
    physics(True, False, True)(net, (X[:16],)).sum().backward()
    expected = torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in net.parameters()]
    )
    torch.testing.assert_close(slope[0], expected)
    assert np.isfinite(chi(task).chi()).all()
    refused("create_graph=True", lambda: Task(Net(), physics(False, False, enable), (X,)))
    refused("does not depend on the module's parameters", lambda: Task(Net(), physics(True, True, enable), (X,)))


def test_construction_stays_quick() -> None:
    Task(Net(), classify, (X, Y))  # what is imported and compiled once
    begun = time.process_time()
    Task(Net(), classify, (X, Y))
    assert time.process_time() - begun < 1
