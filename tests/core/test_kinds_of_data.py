"""Data as it comes: parquet files, frames, dicts of splits."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch import nn

import patterning as pt
from patterning.core.batch import as_batch, count_rows, take_rows
from patterning.core.identity import digest
from patterning.core.parquet_rows import GROUPS_KEPT, ParquetRows
from patterning.core.rows import RowSource

X = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)
Y = np.arange(23)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    table = pyarrow.table({"x": list(X), "y": Y, "text": [f"row {i}" for i in range(23)]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=4)
    return tmp_path / "rows.parquet"


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (model(batch["x"])[:, 0] - batch["y"]) ** 2


def test_a_parquet_file_is_read_by_row(file: Path) -> None:
    for given in (file, str(file)):
        data = as_batch(given)
        assert isinstance(data, RowSource)
        assert (count_rows(data), data.left_out) == (23, ("text",))
        rows = torch.tensor([22, 0, 9, 22])
        taken = take_rows(data, rows)
        np.testing.assert_array_equal(taken["x"].numpy(), X[rows])
        np.testing.assert_array_equal(taken["y"].numpy(), Y[rows])
    source = ParquetRows(file)
    for row in np.random.default_rng(1).permutation(23):
        assert source[int(row)]["y"] == row
    assert len(source._kept) == GROUPS_KEPT
    again = pickle.loads(pickle.dumps(source))
    assert (again[5]["y"], len(again)) == (5, 23)


def test_a_task_on_a_parquet_file_is_the_task_on_its_arrays(file: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(file.parent)
        of_file = pt.Task(model, loss, "rows.parquet")
    of_arrays = pt.Task(model, loss, {"x": X, "y": Y})
    index = torch.arange(23)[None]
    flat = of_file.own_row()[None]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(file.parent)
        torch.testing.assert_close(of_file.losses(flat, index), of_arrays.losses(flat, index))
        weights = pt.Weights.uniform(of_file)
        weights.check(pt.Task(model, loss, file))
        pyarrow.parquet.write_table(pyarrow.table({"x": list(X[::-1]), "y": Y}), "other.parquet")
        with pytest.raises(pt.PatterningError, match="made for other data"):
            weights.check(pt.Task(model, loss, "other.parquet"))


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(pt.PatterningError, match=r"none\.parquet cannot be read as parquet"):
        as_batch(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(pt.PatterningError, match=r"text\.parquet cannot be read as parquet"):
        as_batch(str(tmp_path / "text.parquet"))


def test_frames_and_splits() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": Y, "b": Y * 0.5})
    np.testing.assert_array_equal(as_batch(frame).numpy(), np.stack([Y, Y * 0.5], 1).astype(np.float32))
    with pytest.raises(pt.PatterningError, match="columns t of the frame hold no numbers"):
        as_batch(frame.assign(t="x"))

    class Rows:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, row: int) -> float:
            return float(row)

    for splits in ({"train": Rows()}, (Rows(), np.ones(2))):
        with pytest.raises(pt.PatterningError, match="one data set as the whole of the data"):
            as_batch(splits)


def test_hugging_face_data_sets_with_and_without_format() -> None:
    datasets = pytest.importorskip("datasets")

    def made() -> object:
        return datasets.Dataset.from_dict({"x": X.tolist(), "y": Y.tolist(), "text": ["t"] * 23})

    rows = torch.tensor([[3, 0]])
    for one in (made(), made().with_format("torch"), made().with_format("numpy")):
        taken = take_rows(as_batch(one), rows)
        np.testing.assert_allclose(taken["x"].numpy(), X[rows], rtol=1e-6)
        np.testing.assert_array_equal(taken["y"].numpy(), Y[rows])
    assert digest(as_batch(made())) == digest(as_batch(made()))
    assert digest(as_batch(made())) != digest(as_batch(made().shuffle(seed=0)))
    with pytest.raises(pt.PatterningError, match=r"with_format\(None\)"):
        pt.Task(nn.Linear(3, 1), loss, made().with_format("arrow"))
    with pytest.raises(pt.PatterningError, match="rows are read again and again"):
        as_batch(made().to_iterable_dataset())
    with pytest.raises(pt.PatterningError, match="of a dict of splits, one split"):
        as_batch(datasets.DatasetDict(train=made()))
    # weights follow their rows through shuffling and filters
    weights = pt.Weights.of_rows(np.linspace(0, 2, 23))
    kept = weights.name_rows(made()).shuffle(seed=3).filter(lambda row: row["y"] % 2 == 0)
    np.testing.assert_allclose(weights.of(kept["row_id"]), np.linspace(0, 2, 23)[kept["y"]])
