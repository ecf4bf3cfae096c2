"""Checkpoints, components and observables that gave a wrong number without a word: right now, or refused by name."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.core.functions import OfModule
from patterning.core.task import Task
from patterning.face.measure import measure
from patterning.models.components import Component, find_component
from patterning.response.sample import OfLosses, sample_response
from tests.faults.common import CE, CHAINS, KERNEL, TOKENS, X, Y, chi, classify, linear_task, seeded


def sampled(task: Task, observables=None, anchor=None):
    phis = observables or {"w": lambda flat: flat[:, 0]}
    return sample_response(task, task.own_row() if anchor is None else anchor, phis, KERNEL, CHAINS)


# complex and wide numbers


class Rotating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.randn(6, 3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.complex64) @ self.z).abs()


def test_complex_parameters_are_refused_by_name() -> None:
    with pytest.raises(PatterningError, match="parameter z is complex"):
        Task(Rotating(), classify, (X, Y))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_checkpoint_of_another_number_type_is_sampled_in_float32(dtype) -> None:
    """A row or a module: χ is that of its numbers in float32."""
    task = linear_task()
    row = task.own_row().to(dtype)
    expected = sampled(task, anchor=row.float()).susceptibility.chi
    np.testing.assert_array_equal(sampled(task, anchor=row).susceptibility.chi, expected)
    module = copy.deepcopy(task.module).to(dtype)
    np.testing.assert_array_equal(sampled(task, anchor=task.flatten(module)).susceptibility.chi, expected)


@pytest.mark.parametrize("value", [1e39, -1e200])
def test_a_checkpoint_past_float32_is_refused(value: float) -> None:
    task = linear_task()
    row = task.own_row().double()
    row[3] = value
    module = nn.Linear(6, 3).double()
    module.weight.detach()[0, 3] = value
    for call in (
        lambda: sampled(task, anchor=row),
        lambda: task.flatten(module),
        lambda: Task(module, classify, (X, Y)),
    ):
        with pytest.raises(PatterningError, match="which float32 cannot"):
            call()


@pytest.mark.parametrize(
    ("anchor", "message"),
    [
        (torch.zeros(20), "must be a row of 21"),
        (torch.zeros(1, 21), "must be a row of 21"),
        (torch.zeros(21, dtype=torch.int64), "must be a row of 21"),
        (torch.zeros(21, dtype=torch.complex64), "must be a row of 21"),
        (torch.full((21,), torch.inf), "21 NaN or infinite"),
        (torch.zeros(21, device="meta"), "on meta"),
        (np.zeros(21), "is ndarray"),
    ],
)
def test_sample_response_checks_its_checkpoint(anchor, message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        sampled(linear_task(), anchor=anchor)


# modules that a row does not tell


class Normed(nn.Module):
    def __init__(self, slope: float = 1.0, act: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.norm, self.c, self.slope = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3), slope
        self.act = act or nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.act(self.slope * self.norm(self.a(x))))


def test_a_checkpoint_with_other_buffers_or_frozen_parameters_is_refused() -> None:
    base = seeded(Normed())
    task = Task(base, classify, (X, Y))
    other = copy.deepcopy(base)
    other.norm.running_mean += 1
    with pytest.raises(
        PatterningError, match=r"norm.running_mean has other values there.*; make the task of this module"
    ):
        task.flatten(other)
    other = copy.deepcopy(base)
    other.norm.num_batches_tracked += 5  # decides nothing
    assert torch.equal(task.flatten(other), task.own_row())
    assert torch.equal(task.flatten(copy.deepcopy(base).bfloat16()), task.own_row().bfloat16().float())
    base.a.requires_grad_(False)
    task, other = Task(base, classify, (X, Y)), copy.deepcopy(base)
    other.a.weight.detach().mul_(2)
    with pytest.raises(PatterningError, match=r"a\.weight has other values there"):
        task.flatten(other)
    assert task.init([0]).shape == (1, task.num_parameters)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (lambda: seeded(Normed(slope=3.0)), "slope differs"),
        (lambda: seeded(Normed(act=nn.ReLU())), "act differs"),
    ],
)
def test_a_checkpoint_of_a_module_that_computes_something_else_is_refused(other, what: str) -> None:
    task = Task(seeded(Normed()), classify, (X, Y))
    with pytest.raises(PatterningError, match=what):
        task.flatten(other())
    renamed = seeded(Normed())
    renamed.steps_trained = 1000  # differs, and decides nothing
    assert torch.equal(task.flatten(renamed), task.own_row())


# tied weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Embedding(9, 6), nn.Linear(6, 9)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.encoder(tokens))


def test_a_pattern_means_a_tied_weight_in_any_of_its_places_and_says_so() -> None:
    task = Task(seeded(Tied()), lambda model, b: CE(model(b[:, 0]), b[:, 1]), TOKENS)
    for pattern, count in (("decoder.*", 63), ("encoder.*", 54), ("encoder.weight", 54)):
        component = find_component(task.module, pattern)
        assert component.count(task.module) == count
        assert "encoder.weight is tied to decoder.weight" in component.note
    assert "tied" in chi(task, ["decoder.*"]).by_component["decoder.*"].note
    assert "tied" in find_component(task.module, Component("mine", {"encoder.weight": None})).note
    with pytest.raises(PatterningError, match=r"Name encoder\.weight instead"):
        find_component(task.module, "decoder.weight")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing.*", "is no component"),
        ("", "is no component"),
        (Component("c", {"weight": torch.ones(2, 2, dtype=torch.bool)}), r"must be bool \(3, 6\)"),
        (Component("c", {"weight": torch.ones(3, 6)}), "must be bool"),
        (Component("c", {"weight": [True] * 18}), "must be a tensor of bool"),  # type: ignore[dict-item]
        (Component("c", {"weight": torch.zeros(3, 6, dtype=torch.bool)}), "selects no parameter"),
        (Component("c", ["weight"]), "must be a dict"),  # type: ignore[arg-type]
        (Component("a\nb", {"weight": None}), "a line of text"),
    ],
)
def test_components_that_mean_nothing_are_refused(what, message: str) -> None:
    with pytest.raises(PatterningError, match=message) as raised:
        chi(linear_task(), [what])
    assert "\n" not in str(raised.value)


# observables


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


@pytest.mark.parametrize("seeds", [3, 0.5, [0.5], [True], [-1], [], "12", [np.float64(1)]])
def test_seeds_that_are_no_whole_numbers_are_refused(seeds) -> None:
    with pytest.raises(PatterningError, match="seed"):
        linear_task().init(seeds)


def test_seeds_may_come_one_by_one() -> None:
    task = linear_task()
    assert torch.equal(task.init(seed for seed in (1, np.int64(2))), task.init([1, 2]))  # type: ignore[arg-type]


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


def test_a_row_is_not_loaded_into_a_module_with_other_buffers() -> None:
    task, other = Task(seeded(Normed()), classify, (X, Y)), seeded(Normed())
    other.norm.running_mean += 3
    with pytest.raises(PatterningError, match=r"norm\.running_mean has other values"):
        task.load(other, task.own_row())


class Aliased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(6, 3))
        self.b = nn.Parameter(self.a.detach()[:, :1])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a + x @ self.b


def test_parameters_that_share_numbers_are_refused() -> None:
    with pytest.raises(PatterningError, match=r"(a and b|b and a) share memory"):
        Task(Aliased(), classify, (X, Y))
    module = nn.Linear(6, 3)
    module.weight = nn.Parameter(module.weight.detach()[:, :1].expand(3, 6))
    with pytest.raises(PatterningError, match="weight repeats the same numbers"):
        Task(module, classify, (X, Y))
    for empty in (nn.Linear(6, 3, device="meta"), nn.LazyLinear(3)):
        with pytest.raises(PatterningError, match="no numbers yet"):
            Task(empty, classify, (X, Y))
    with pytest.raises(PatterningError, match="base_weights must be 128 numbers"):
        Task(nn.Linear(6, 3), classify, (X, Y), torch.ones(128) + 0j)
