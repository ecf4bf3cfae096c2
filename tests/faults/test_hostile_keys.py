"""Modules with a memory, values without an address, and numbers that float32 cannot hold."""

import collections
import os
import random
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patterning.core.arrays import as_floats
from patterning.core.batch import as_batch
from patterning.core.errors import PatterningError, PatterningWarning
from patterning.core.identity import digest, digest_of
from patterning.core.modules import copy_module
from patterning.core.task import Task
from patterning.intervention.data_weights import Weights
from tests.faults.common import CE, X, Y, chi, classify, seeded

# keys


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.cell, self.out = kind(6, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x[:, None])[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_modules_have_a_key(kind) -> None:
    """Two tasks made alike, as before and after a kill; and another key at other weights."""
    one, two = (Task(seeded(Recurrent(kind)), classify, (X, Y)) for _ in range(2))
    key = one.fingerprint
    assert key == two.fingerprint
    chi(one)
    assert one.fingerprint == key
    assert Task(seeded(Recurrent(kind), 1), classify, (X, Y)).fingerprint != key


class WithAttribute(nn.Module):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.layer, self.value = nn.Linear(6, 3), value

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Table(dict):
    """A dict with more to it."""

    def __init__(self, scale: float) -> None:
        super().__init__(a=1)
        self.scale = scale


class Scale(float):
    """A number with more to it."""


def scale(extra: float) -> Scale:
    made = Scale(1.0)
    made.extra = extra  # type: ignore[attr-defined]
    return made


def quantised(step: float) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.arange(4.0), step, 0, torch.qint8)


def compressed(value: float) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (value * torch.eye(3)).to_sparse_csr()


def nested(value: float) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2), torch.full((3,), value)])


@pytest.mark.parametrize(
    "make",
    [
        lambda v: (v * torch.eye(3)).to_sparse(),
        compressed,
        quantised,
        nested,
        lambda v: torch.full((2,), complex(1, v)).conj(),
        lambda v: torch.full((2,), complex(1, v)).conj().imag,
        lambda v: random.Random(int(v)),
        lambda v: np.random.default_rng(int(v)),
        lambda v: torch.Generator().manual_seed(int(v)),
        lambda v: collections.deque([v]),
        lambda v: collections.deque([(lambda x: x + 1) if v == 1 else (lambda x: x + 2)]),
        Table,
        scale,
    ],
)
def test_values_of_every_kind_have_a_key_of_their_own(make) -> None:
    assert digest(make(1.0)) == digest(make(1.0))
    assert digest(make(1.0)) != digest(make(2.0))


def test_sparse_entries_in_any_order_have_one_key() -> None:
    one = torch.sparse_coo_tensor(torch.tensor([[0, 1, 0]]), torch.tensor([1.0, 2.0, 3.0]), (2,), check_invariants=True)
    other = torch.sparse_coo_tensor(torch.tensor([[0, 1]]), torch.tensor([4.0, 2.0]), (2,), check_invariants=True)
    assert digest(one) == digest(other)


@dataclass(frozen=True)
class Plain:
    """A dataclass with all that its decorator, `cached_property` and annotations put into a class."""

    items: tuple[int, ...] = (1, 2)
    either: list[str] | None = None
    made: dict[str, float] = field(default_factory=dict)

    @cached_property
    def once(self) -> int:
        return len(self.items)

    @property
    def twice(self) -> int:
        return 2 * self.once


@dataclass(frozen=True, slots=True)
class Slotted:
    items: tuple[int, ...] = (1, 2)
    made: list[int] = field(default_factory=list)


@pytest.mark.parametrize("kind", [Plain, Slotted])
def test_dataclasses_have_a_key_and_it_is_that_of_another_process(kind) -> None:
    assert digest_of(kind, kind())[1] == []
    assert digest(kind, kind()) == digest(kind, kind()) != digest(kind, kind((1, 3)))
    command = (
        f"from patterning.core.identity import digest; from {__name__} import {kind.__name__} as kind; "
        "print(digest(kind, kind()))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "1"}
    told = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == digest(kind, kind())


def test_locks_are_left_out_and_what_has_no_value_is_told() -> None:
    assert digest(WithAttribute(None).value, threading.Lock()) == digest(None, threading.Lock())

    def loss_with(numbers):
        return lambda model, batch: (numbers, classify(model, batch))[1]

    task = Task(seeded(nn.Linear(6, 3)), loss_with(i for i in range(3)), (X, Y))
    with pytest.warns(PatterningWarning, match=r"a generator held by .*loss_with"):
        first = task.fingerprint
    with pytest.warns(PatterningWarning):
        assert task.fingerprint != first


def test_an_attribute_that_cannot_be_copied_is_named() -> None:
    with pytest.raises(PatterningError, match=r"remove its attribute 0\.value \(a generator\)"):
        copy_module(nn.Sequential(WithAttribute(i for i in range(3))))


# modules with a memory


class Counting(nn.Module):
    """Sums up in a list what it has seen, and adds it to what it gives."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(6, 3), kind
        self.seen: list[Tensor] = []
        self.by_name: dict[str, Tensor] = {}
        self.holder = Holder()
        self.register_buffer("table", torch.zeros(3), persistent=False)
        self.plain = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        mark = torch.ones(3) * torch.arange(3)
        match self.kind:
            case "list":
                y = y + sum((t for t in self.seen), torch.zeros(3))
                self.seen.append(mark.clone())
            case "dict":
                self.by_name["sum"] = self.by_name.get("sum", 0) + mark
                y = y + self.by_name["sum"]
            case "object":
                y = y + sum((t for t in self.holder.items), torch.zeros(3))
                self.holder.items.append(mark.clone())
            case "buffer":
                y = y + self.table
                self.table += mark
            case "data":
                y = y + self.table
                self.table.data.add_(mark)
            case "tensor":
                y = y + self.plain
                self.plain += mark
            case _:
                raise AssertionError(self.kind)
        return y


class Holder:
    """A cache as libraries write them."""

    def __init__(self) -> None:
        self.items: list[Tensor] = []


@pytest.mark.parametrize("kind", ["list", "dict", "object", "buffer", "data", "tensor"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_every_call_of_a_module_with_a_cache_is_the_first(kind: str) -> None:
    module = seeded(Counting(kind))
    task = Task(module, classify, (X, Y))
    key = task.fingerprint
    rows = task.own_row() * torch.tensor([[1.0], [1.3], [0.7]])
    with torch.no_grad():
        expected = torch.stack([classify(task.load(Counting(kind), row), (X, Y)) for row in rows])
        for _ in range(2):
            torch.testing.assert_close(task.losses(rows, torch.arange(128).expand(3, -1)), expected)
    chi(task)
    assert task.fingerprint == key


def test_a_module_that_comes_with_a_full_cache_is_copied() -> None:
    module = seeded(Counting("list"))
    module.holder.items.append(module(X).sum(0))  # a result of a computation, in an object
    module.seen.clear()
    assert len(copy_module(module).holder.items) == 1


class Clipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight.data.clamp_(-10, 0.1)
        return self.layer(x)


def test_a_forward_pass_that_writes_into_parameters_is_refused() -> None:
    module = seeded(Clipping())
    module.layer.weight.detach().clamp_(-10, 0.05)  # within its bounds at w*
    with pytest.raises(PatterningError, match=r"changes its parameters \(layer\.weight\) in place"):
        Task(module, classify, (X, Y))


# numbers


@pytest.mark.parametrize(
    "values",
    [
        np.array([1e9, 1e9 + 1, 1e9 + 2]),
        torch.tensor([1e9, 1e9 + 1, 1e9 + 2], dtype=torch.float64),
        [1e9, 1e9 + 1.0, 1e9 + 2.0],
        1.7e9 + np.array([0.25, 0.5, 100.75]),
        np.array([[1.0, 1e8 + 0.1], [2.0, 1e8 + 0.2]]),
        np.array([1.0, 1e39]),
        np.array([16777217.0]),
    ],
)
def test_data_that_float32_cannot_tell_apart_is_refused(values) -> None:
    with pytest.raises(PatterningError, match="float32, which cannot tell such numbers apart"):
        as_batch((values, None))


@pytest.mark.parametrize(
    "values",
    [
        np.array([0.1, 0.2, 1 / 3]),
        np.array([1 / 3, 1 / 3, 1 / 3]),
        np.array([0.1 + 0.2, 0.3]),
        np.array([1e9, 2e9, np.nan, np.inf]),
        np.array([1e-300, 1.0]),
        np.array([123.456, 1e5]),
        (1e9 + np.arange(3)).astype(np.float32),
        np.arange(3, dtype=">f8"),
        np.arange(3, dtype=">i4"),
    ],
)
def test_rounding_that_does_not_matter_passes(values) -> None:
    np.testing.assert_allclose(as_batch(values).numpy(), np.asarray(values), rtol=1e-6, atol=1e-38)


def test_masks_and_layouts_that_would_be_lost_are_refused() -> None:
    some = np.ma.masked_array(np.arange(128.0), mask=np.arange(128) == 3)
    for call in (
        lambda: as_batch(some),
        lambda: as_floats("x", some),
        lambda: Task(nn.Linear(6, 3), classify, (X, Y), some),
        lambda: Weights.of_rows(some),
    ):
        with pytest.raises(PatterningError, match="1 masked entries"):
            call()
    np.testing.assert_array_equal(as_batch(np.ma.masked_array(np.arange(3))).numpy(), np.arange(3))
    for values in (X.to_sparse(), quantised(0.1), nested(2.0), X.to("meta")):
        with pytest.raises(PatterningError, match="must be plain tensors"):
            as_batch(values)
    with pytest.raises(PatterningError, match=r"below 2\*\*63"):
        as_batch(np.array([2**63], dtype=np.uint64))
    assert as_floats("x", torch.tensor([1.5], dtype=torch.bfloat16)).tolist() == [1.5]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "a"], "'a' is the id of row 0 and of row 2"),
        ([3, 1, 1], "1 is the id of row 1 and of row 2"),
        ([1, "1", 2], "all whole numbers or all text"),
        ([0.5, 1.5, 2.5], "all whole numbers or all text"),
        ([True, False, True], "all whole numbers or all text"),
    ],
)
def test_ids_that_name_no_row_or_two_are_refused(ids, message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        Weights.of_rows([1.0, 2.0, 3.0], ids=ids)


def test_a_recurrent_run_is_found_again(tmp_path, monkeypatch) -> None:
    from patterning.core.store import RunFolder
    from patterning.core.workers import Workers
    from patterning.response import one_component

    results = []
    for _ in range(2):
        task = Task(seeded(Recurrent()), lambda model, b: CE(model(b[0]), b[1]), (X, Y))
        with Workers(RunFolder(tmp_path / "run"), 1) as pool:
            results.append(chi(task, ["out.*"], pool=pool).chi())
        monkeypatch.setattr(one_component, "sample_component", None)  # the second time nothing is sampled
    np.testing.assert_array_equal(*results)
