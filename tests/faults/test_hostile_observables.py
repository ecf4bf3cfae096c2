"""Observables that reach where they should not, or that no chain can read."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.core.functions import OfModule
from patterning.core.task import Task
from patterning.face.measure import measure
from patterning.response.sample import OfLosses
from tests.faults.common import KERNEL, Normed, X, Y, chi, classify, linear_task, sampled, seeded


def hollow(m: nn.Module) -> Tensor:
    m.a.weight.mul_(0)
    return m(X).square().mean()


def hollow_data(m: nn.Module) -> Tensor:
    m.a.weight.data.zero_()
    m.norm.running_var.data.fill_(4.0)
    return m(X).square().mean()


def switched(m: nn.Module) -> Tensor:
    m.slope *= 0.5
    return m.train()(X).square().mean()


def hooked(m: nn.Module) -> Tensor:
    m.a.register_forward_hook(lambda _m, _i, output: output * 0)
    return m(X).square().mean()


def replaced(m: nn.Module) -> Tensor:
    m.act = nn.Identity()
    return m(X).square().mean()


@pytest.mark.parametrize("function", [hollow, hollow_data, switched, hooked, replaced])
def test_an_observable_cannot_reach_the_chain_or_the_module(function) -> None:
    """It gets the same number however often it is called, and χ of another observable is what it is alone."""
    task = Task(seeded(Normed()), classify, (X, Y))
    key, row = task.fingerprint, task.own_row()
    with torch.no_grad():
        expected = function(seeded(Normed()).eval())
    phi = OfModule(task, "hostile", function)
    alone = sampled(task).susceptibility.row("w")
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(phi(row[None])[0], expected)
    both = sampled(task, {"hostile": phi, "w": lambda flat: flat[:, 0]})
    np.testing.assert_allclose(both.susceptibility.row("w"), alone, rtol=1e-9)
    assert torch.equal(task.own_row(), row)
    assert task.fingerprint == key


def test_an_observable_that_writes_into_frozen_parameters_is_refused() -> None:
    base = seeded(Normed())
    base.a.requires_grad_(False)
    task = Task(base, classify, (X, Y))
    key = task.fingerprint
    for function in (hollow, hollow_data):
        with pytest.raises(PatterningError, match=r"changes the frozen parameter a\.weight in place"):
            sampled(task, {"hostile": OfModule(task, "hostile", function)})
    assert task.fingerprint == key


def test_functions_of_rows_and_of_losses_get_copies() -> None:
    task = linear_task()
    alone = sampled(task)

    def spoiling(flat: Tensor) -> Tensor:
        return flat.mul_(0.5).sum(1)

    def spoiling_losses(losses: Tensor) -> Tensor:
        return losses.mul_(0).sum(1)

    found = sampled(task, {"s": spoiling, "l": OfLosses(spoiling_losses), "w": lambda flat: flat[:, 0]})
    np.testing.assert_allclose(found.susceptibility.row("w"), alone.susceptibility.row("w"), rtol=1e-9)
    np.testing.assert_array_equal(found.susceptibility.mean_losses, alone.susceptibility.mean_losses)


RNG = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("phi", "message"),
    [
        (lambda flat: flat, r"gave shape \(1, 21\)"),
        (lambda flat: flat[:, 0] / 0, "is -?inf at w"),
        (lambda flat: flat[:, 0] * torch.nan, "is nan at w"),
        (lambda _flat: 3.0, "returned float"),
        (lambda flat: flat[:, 0] + 1j, "must be real"),
        (lambda flat: torch.ones(len(flat)), "whatever the parameters are"),
        (lambda flat: flat[:, 0].to("meta"), "on meta"),
        (lambda flat: flat.missing, "cannot be evaluated"),
        (lambda flat: flat[:, 0] + torch.rand(1, generator=RNG), "not the same twice"),
        (lambda flat: flat[:, 0] - flat.mean(), "beside other rows"),
    ],
)
def test_observables_that_cannot_serve_are_refused(phi, message: str) -> None:
    for call in (lambda: sampled(linear_task(), {"phi": phi}), lambda: chi(linear_task(), observables={"phi": phi})):
        with pytest.raises(PatterningError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_whole_numbers_and_numbers_of_other_types_are_observables() -> None:
    found = sampled(
        linear_task(), {"count": lambda flat: (flat > 0).sum(1), "double": lambda flat: flat[:, 0].double()}
    )
    assert np.isfinite(found.susceptibility.chi).all()
    np.testing.assert_allclose(found.susceptibility.row("double"), sampled(linear_task()).susceptibility.row("w"))


@pytest.mark.parametrize("names", [["a\nb"], [""], [" a"], [3], ["Head", "head"]])
def test_names_that_a_table_cannot_hold_are_refused(names: list) -> None:
    phis = {name: lambda flat: flat[:, 0] for name in names}
    for call in (lambda: sampled(linear_task(), phis), lambda: chi(linear_task(), observables=phis)):
        with pytest.raises(PatterningError, match=r"called|capital letters"):
            call()


def closure_over_another_module(task: Task):
    net = copy.deepcopy(task.module)
    return OfModule(task, "phi", lambda _m: net(X).mean())


def test_an_observable_of_another_module_or_that_writes_into_the_data_is_refused() -> None:
    task = linear_task()
    with pytest.raises(PatterningError, match="whatever the parameters are"):
        sampled(task, {"phi": closure_over_another_module(task)})
    x = X.clone()
    task = Task(seeded(nn.Linear(6, 3)), classify, (x, Y))
    with pytest.raises(PatterningError, match="writes into the task's data"):
        sampled(task, {"phi": OfModule(task, "phi", lambda m: m(x.mul_(0.9)).mean())})


def test_an_observable_cannot_move_the_checkpoint_that_was_given() -> None:
    task = linear_task()
    row = task.own_row()
    found = sampled(task, {"w": lambda flat: flat[:, 0] + 0 * row.mul_(0.5)[0]}, row)
    np.testing.assert_allclose(found.susceptibility.chi, sampled(task).susceptibility.chi, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("estimator", ["pathwise", "first-order"])
def test_an_observable_in_place_has_its_gradient(estimator) -> None:
    def in_place(m: nn.Module) -> Tensor:
        m.weight.mul_(0.5)
        return m(X).square().mean()

    def plain(m: nn.Module) -> Tensor:
        return (X @ m.weight.T * 0.5 + m.bias).square().mean()

    task = linear_task()
    one, other = (
        measure(
            task, {"phi": phi}, sampler=KERNEL, chains=2, draws=8, burn_in=4, batch_size=64, budget=1, progress=False,
            estimator=estimator,
        ).tree["susceptibility"]["chi"].values
        for phi in (in_place, plain)
    )  # fmt: skip
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-7)
