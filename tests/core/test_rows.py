"""Data sets that are read by row number: the same numbers as tensors, and little of them in memory."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import patterning as pt
from patterning.core.rows import RowSource


class Squares(torch.utils.data.Dataset):
    """Rows made on demand; counts how many were held at a time."""

    def __init__(self, n: int, *, as_dict: bool = False) -> None:
        self.n, self.as_dict, self.read = n, as_dict, 0
        self.x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        self.read += 1
        x, y = self.x[i], self.x[i].sum()
        return {"x": x, "y": y.item(), "what": f"row {i}"} if self.as_dict else (x, y)


def loss(model: nn.Module, batch) -> Tensor:
    x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
    return (model(x)[:, 0] - y).square()


@pytest.mark.parametrize("as_dict", [False, True])
def test_chi_of_a_data_set_is_that_of_its_tensors(as_dict: bool) -> None:
    torch.manual_seed(0)
    model, rows = nn.Linear(3, 1), Squares(30, as_dict=as_dict)
    plain = pt.Task(model, loss, (rows.x, rows.x.sum(1)))
    lazy = pt.Task(model, loss, rows)
    assert any("what of the data set is text" in note for note in lazy.notes) == as_dict
    settings = {"sampler": pt.SGLD(30, 30, 1e-3), "draws": 8, "batch_size": 10, "budget": 1, "progress": False}
    chi = [pt.measure(task, {"bias": lambda m: m.bias[0]}, **settings).chi for task in (plain, lazy)]
    np.testing.assert_array_equal(*chi)


def test_another_order_is_other_data() -> None:
    rows = Squares(12)
    first = pt.Task(nn.Linear(3, 1), loss, rows)
    same = pt.Task(nn.Linear(3, 1), loss, Squares(12))
    assert first.data_fingerprint == same.data_fingerprint
    rows.x = rows.x.flip(0)
    assert pt.Task(nn.Linear(3, 1), loss, rows).data_fingerprint != first.data_fingerprint


def test_sampling_reads_rows_and_not_the_whole() -> None:
    rows = Squares(20_000)
    task = pt.Task(nn.Linear(3, 1), loss, rows)
    rows.read = 0
    task.losses(task.own_row()[None], torch.arange(16)[None])
    assert rows.read == 16


class Ragged(Squares):
    def __getitem__(self, i: int):
        return torch.ones(3 + i % 2), torch.tensor(1.0)


class Broken(Squares):
    def __getitem__(self, i: int):
        if i == 7:
            raise ValueError("no such file")
        return super().__getitem__(i)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (Ragged(10), "of the data set have shapes (3,) and (4,): pad rows"),
        (Broken(10), "row 7 of the data set cannot be read (ValueError: no such file)"),
        (Squares(0), "the data set is empty"),
    ],
)
def test_bad_data_sets_are_one_sentence(data: Squares, sentence: str) -> None:
    with pytest.raises(pt.PatterningError) as error:
        pt.Task(nn.Linear(3, 1), loss, data)
    assert sentence in str(error.value)


def test_numbers_of_one_row_are_not_taken_for_a_column() -> None:
    """Close to each other in a row, and far apart over the rows: rounding to float32 does not matter."""
    rows = [np.array([1e5 * i + 1e-3, 1e5 * i + 2e-3]) for i in range(1, 5)]
    source = RowSource(MapStyle(rows))
    np.testing.assert_allclose(source.take(torch.arange(4)).numpy(), np.stack(rows), rtol=1e-6)
    with pytest.raises(pt.PatterningError, match="cannot tell such numbers apart"):
        RowSource(MapStyle([np.array([16777217.0])])).take(torch.zeros(1, dtype=torch.int64))


class MapStyle:
    def __init__(self, rows: list[np.ndarray]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.rows[i]
