"""Losses and modules that would give a wrong number without a word: refused by name, or given the right number."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.response.sample import sample_response
from tests.faults.common import CE, CHAINS, KERNEL, TOKENS, X, Y, chi, classify, ignoring, masked, seeded

ROWS = torch.arange(16)


class Net(nn.Module):
    """Two layers, with a place between them for what a test wants to go wrong."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, width), nn.Linear(width, 3)
        seeded(self)
        self.prepare()

    def prepare(self) -> None:
        pass

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.hidden(x))


def refused(message: str, make: Callable[[], Any]) -> None:
    with pytest.raises(PatterningError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def at_w_star(task: Task, replicas: int = 3) -> Tensor:
    """Losses of the first rows by replica, run together and one after the other, which must agree."""
    flat, index = task.own_row().expand(replicas, -1), ROWS.expand(replicas, -1)
    with torch.no_grad():
        together, in_turn = (task.run(task.named(flat), task.data, index, one_by_one=turn) for turn in (False, True))
    torch.testing.assert_close(together, in_turn)
    return together


# What is reached outside of the copied module.


def test_a_loss_that_uses_the_original_module_or_a_part_of_it() -> None:
    net = Net()
    for loss in (
        lambda _model, b: CE(net(b[0]), b[1]),
        lambda model, b: CE(model.c(torch.tanh(net.a(b[0]))), b[1]),
        lambda model, b: CE(model(b[0]), b[1]) + net.c(b[0][:, :5]).detach().square().mean(1),
    ):
        refused("calls the module it was written with.*copy.deepcopy", lambda loss=loss: Task(net, loss, (X, Y)))
    for loss in (
        lambda model, b: CE(F.linear(model.hidden(b[0]), net.c.weight), b[1]),
        lambda model, b: CE(model(b[0]), b[1]) + 0.1 * net.c.weight.detach().square().sum(),
    ):
        refused("reads parameters of the module it was written with", lambda loss=loss: Task(net, loss, (X, Y)))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    start = net.c.weight.detach().clone()
    task = Task(net, lambda model, b: classify(model, b) + (model.c.weight - start).square().sum(), (X, Y))
    torch.testing.assert_close(at_w_star(task)[0], classify(net, (X[:16], Y[:16])).detach())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class CapturedByLambda(Net):
    def prepare(self) -> None:
        self.function = lambda x: torch.tanh(self.a(x))

    def hidden(self, x: Tensor) -> Tensor:
        return self.function(x)


class CapturedByHook(Net):
    def prepare(self) -> None:
        self.a.register_forward_hook(lambda _m, inputs, _o: F.linear(inputs[0], self.a.weight))


class PlainList(Net):
    def prepare(self) -> None:
        self.more = [nn.Parameter(torch.randn(5, 6))]

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x) + F.linear(x, self.more[0]))


class ListOfItsOwn(PlainList):
    def prepare(self) -> None:
        self.more = [self.a.weight]


class ViewOfItsOwn(PlainList):
    def prepare(self) -> None:
        self.more = [self.a.weight.data]


class Cached(PlainList):
    """Keeps a tensor made of its parameters, from the first call on."""

    def prepare(self) -> None:
        self.more = None

    def hidden(self, x: Tensor) -> Tensor:
        if self.more is None:
            self.more = [self.a.weight * 2]
        return super().hidden(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (CapturedByLambda, "its part 'a'.*So must hooks and functions that the module holds"),
        (CapturedByHook, "reads parameters of the module it was written with"),
        (PlainList, r"tensor of shape \(5, 6\) that requires a gradient and is no parameter.*ParameterList"),
        (ListOfItsOwn, "past their names"),
        (ViewOfItsOwn, "attribute more is a view of parameter a.weight"),
    ],
)
def test_parameters_that_a_module_holds_elsewhere(make: type[Net], message: str) -> None:
    refused(message, lambda: Task(make(), classify, (X, Y)))


def test_a_cache_of_the_weights_is_refused_when_full_and_emptied_otherwise() -> None:
    module = Cached()
    fresh = Task(module, classify, (X, Y))
    torch.testing.assert_close(at_w_star(fresh)[0], classify(Cached(), (X[:16], Y[:16])).detach())
    moved = 2 * fresh.own_row()
    with torch.no_grad():
        expected = classify(fresh.load(Cached(), moved), (X[:16], Y[:16]))
        torch.testing.assert_close(fresh.losses(moved[None], ROWS[None])[0], expected)
    module(X)
    refused("requires a gradient and is no parameter", lambda: Task(module, classify, (X, Y)))


def test_another_trainable_module_must_be_frozen_or_joined() -> None:
    encoder, scale = nn.Linear(6, 6), nn.Parameter(torch.ones(3))
    refused(
        r"shape \(6, 6\).*put the other module into this one, or freeze it",
        lambda: Task(Net(), lambda model, b: CE(model(encoder(b[0])), b[1]), (X, Y)),
    )
    refused("shape \\(3,\\)", lambda: Task(Net(), lambda model, b: CE(model(b[0]) * scale, b[1]), (X, Y)))
    encoder.requires_grad_(False)
    task = Task(Net(), lambda model, b: CE(model(encoder(b[0])), b[1]), (X, Y))
    torch.testing.assert_close(at_w_star(task)[0], CE(Net()(encoder(X[:16])), Y[:16]).detach())


def test_memory_that_two_parameters_share() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
    net[2].weight.data = net[0].weight.data
    refused("0.weight and 2.weight share memory.*assign the same Parameter", lambda: Task(net, classify, (X, Y)))
    net[2].weight = net[0].weight
    assert Task(net, classify, (X, Y)).num_parameters == 36 + 6 + 6 + 21
    kept = nn.Linear(6, 3)
    kept.register_buffer("old", kept.weight.data)
    refused("old and weight share memory", lambda: Task(kept, classify, (X, Y)))


class Merging(nn.Linear):
    """Merges a low-rank term into its weight on eval(), as adapters do, and returns nothing from train()."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        self.low = nn.Parameter(torch.ones(3, 1))

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        if not mode and hasattr(self, "low"):
            self.weight.data += self.low.data


class CopiesNothing(nn.Linear):
    def __deepcopy__(self, memo: object) -> "CopiesNothing":
        return self


def test_copies_that_are_other_modules() -> None:
    refused("eval\\(\\) changes the values of parameter weight", lambda: Task(Merging(), classify, (X, Y)))
    refused("__deepcopy__ does not copy", lambda: Task(CopiesNothing(6, 3), classify, (X, Y)))
    refused("parameter weight has no numbers yet", lambda: Task(nn.LazyLinear(3), classify, (X, Y)))


def test_parameters_without_effect_are_named() -> None:
    net = nn.ModuleDict({"used": nn.Linear(6, 3), "spare": nn.Linear(6, 3)})
    task = Task(net, lambda model, b: CE(model["used"](b[0]), b[1]), (X, Y))
    assert "no effect on the loss of 16 rows" in task.notes[0]
    assert "spare.weight, spare.bias" in task.notes[0]
    assert Task(Net(), classify, (X, Y)).notes == ()


# Samples that a loss ignored.


@pytest.mark.parametrize("ignored", [slice(None, None, 3), slice(77, 78)])
def test_rows_that_a_loss_ignores_are_no_samples(ignored: slice) -> None:
    """One of them among 128, which is not among those tried first, is found as well."""
    labels = Y.clone()
    labels[ignored] = -100
    first = 0 if ignored.step else 77
    refused(rf"first: row {first}\) is exactly 0 at any parameters", lambda: Task(Net(), classify, (X, labels)))
    task = Task(Net(), lambda model, b: (classify(model, b), b[1] != -100), (X, labels))
    assert float(task.base_weights[ignored].sum()) == 0
    assert Task(Net(), lambda m, b: (classify(m, b), torch.ones(len(b[1]))), (X, labels)).base_weights[first] > 0


def test_margins_that_are_met_are_samples() -> None:
    """A hinge loss is exactly 0 where w* has the margin, but not at other parameters."""
    module = seeded(nn.Linear(6, 1))
    signs = module(X).detach()[:, 0].sign()
    module.weight.data.mul_(30)
    task = Task(module, lambda model, b: F.relu(1 - b[1] * model(b[0])[:, 0]), (X, signs))
    assert float((task.losses(task.own_row()[None], torch.arange(128)[None]) == 0).float().mean()) > 0.5


# Calls that change what the next one reads.


def test_a_loss_that_writes_into_its_batch() -> None:
    def doubling(model, b) -> Tensor:
        b[0].mul_(2)
        return CE(model(b[0]), b[1])

    def popping(model, b) -> Tensor:
        b["x"] = b["x"] * 2
        return CE(model(b["x"]), b.pop("y"))

    x = X.clone()
    expected = CE(Net()(2 * X[:16]), Y[:16]).detach()
    for task in (Task(Net(), doubling, (x, Y)), Task(Net(), popping, {"x": x, "y": Y})):
        for losses in at_w_star(task):
            torch.testing.assert_close(losses, expected)
    assert torch.equal(x, X)


class Counting(Net):
    """Keeps count in buffers and attributes, replaced and written into, and its outputs show it."""

    def prepare(self) -> None:
        self.register_buffer("written", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))
        self.number, self.seen, self.table = 0, [], {"n": 0}

    def hidden(self, x: Tensor) -> Tensor:
        self.written += 1
        self.replaced = self.replaced + 1
        self.number += 1
        self.seen.append(0)
        self.table["n"] += 1
        total = self.written + self.replaced + self.number + len(self.seen) + self.table["n"]
        return torch.tanh(self.a(x)) * (1 + 1e-3 * total)


def test_what_a_module_counts_is_put_back_after_every_call() -> None:
    task = Task(Counting(), classify, (X, Y))
    expected = classify(Counting(), (X[:16], Y[:16])).detach()
    for losses in (*at_w_star(task), *at_w_star(task)):
        torch.testing.assert_close(losses, expected)
    key = task.fingerprint
    response = chi(task)
    task.check_still_the_same()
    assert task.fingerprint == key
    assert np.isfinite(response.chi()).all()


def test_state_outside_of_the_module_is_noticed_at_once_or_after_sampling() -> None:
    state = {"n": 0}

    def counting(model, b) -> Tensor:
        state["n"] += 1
        return classify(model, b) * (1 + 1e-5 * max(0, state["n"] - state["from"]))

    state["from"] = 0
    refused("not the same twice.*a counter", lambda: Task(Net(), counting, (X, Y)))
    for read in (
        lambda task: sample_response(task, task.own_row(), {"p": lambda f: f[:, 0]}, KERNEL, CHAINS),
        chi,
    ):
        state.update(n=-(10**6), **{"from": 0})
        task = Task(Net(), counting, (X, Y))
        task.check_still_the_same()
        state["n"] = 30
        refused("was .* when the task was made, and is", lambda read=read, task=task: read(task))


def test_data_that_changes_later_and_caches_by_batch() -> None:
    x, kept = X.clone(), dict[Any, Tensor]()
    task = Task(Net(), classify, (x, Y))
    x.mul_(2)
    refused("or the data", task.check_still_the_same)

    def by_rows(model, b) -> Tensor:
        key = b[0].numpy().tobytes()
        kept.setdefault(key, model.hidden(b[0]).detach())
        return CE(model.c(kept[key]), b[1])

    refused("keep something of an earlier call", lambda: Task(Net(), by_rows, (X, Y)))


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
