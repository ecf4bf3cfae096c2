"""Devices by name, and what a task takes with it. What happens on another device: tests/device."""

import pytest
import torch
from torch import nn

from patterning.core.devices import device_of, find_device, moved
from patterning.core.errors import PatterningError
from patterning.core.rows import RowSource
from patterning.core.task import Task


def test_the_cpu_is_always_there() -> None:
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "why"),
    [("gpu", "no device of PyTorch's"), (None, "no device of PyTorch's"), ("mps", "float64"), ("meta", "no numbers")],
)
def test_what_cannot_be_computed_on_is_refused(name, why: str) -> None:
    with pytest.raises(PatterningError, match=why):
        find_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything() -> None:
    task = Task(nn.Linear(2, 1), lambda module, x: module(x).square(), torch.randn(8, 2))
    with pytest.raises(PatterningError, match=r"'cuda' cannot be used: PyTorch .* Use cpu"):
        task.to("cuda")


def test_a_task_that_is_there_already_is_left_alone() -> None:
    task = Task(nn.Linear(2, 1), lambda module, x: module(x).square(), torch.randn(8, 2))
    assert task.to("cpu") is task
    assert task.device == torch.device("cpu")


def test_a_module_on_two_devices_is_refused() -> None:
    split = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(PatterningError, match="cpu, meta: it must be on one device"):
        device_of(split)


def test_rows_that_are_read_by_number_are_moved_as_they_are_read() -> None:
    source = RowSource([{"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([3.0, 4.0])}])
    there = moved(source, torch.device("meta"))
    assert there.take(torch.tensor([1, 0]))["x"].device.type == "meta"
    assert moved(source, torch.device("cpu")) is source
    assert there.on(torch.device("cpu")).fingerprint == source.fingerprint
    batch = moved({"x": torch.ones(2), "y": None}, torch.device("meta"))
    assert batch["x"].device.type == "meta"
    assert batch["y"] is None
