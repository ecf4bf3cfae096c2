"""Losses and modules that would give a wrong number without a word: refused by name, or given the right number."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning.core.task import Task
from patterning.response.sample import sample_response
from tests.faults.common import (
    CE,
    CHAINS,
    KERNEL,
    ROWS,
    Net,
    X,
    Y,
    at_w_star,
    chi,
    classify,
    refused,
    seeded,
)  # fmt: skip

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
