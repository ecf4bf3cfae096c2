"""Checkpoints, components and observables that gave a wrong number without a word: right now, or refused by name."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.models.components import Component, find_component
from tests.faults.common import CE, TOKENS, Normed, X, Y, chi, classify, linear_task, sampled, seeded

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


@pytest.mark.parametrize("seeds", [3, 0.5, [0.5], [True], [-1], [], "12", [np.float64(1)]])
def test_seeds_that_are_no_whole_numbers_are_refused(seeds) -> None:
    with pytest.raises(PatterningError, match="seed"):
        linear_task().init(seeds)


def test_seeds_may_come_one_by_one() -> None:
    task = linear_task()
    assert torch.equal(task.init(seed for seed in (1, np.int64(2))), task.init([1, 2]))  # type: ignore[arg-type]


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
