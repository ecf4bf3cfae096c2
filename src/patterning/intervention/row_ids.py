"""Row ids as a column of a data set: what weights are looked up by once rows were shuffled, filtered or split."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from patterning.core.errors import PatterningError

ROW_ID = "row_id"


class Named(torch.utils.data.Dataset[Any]):
    """A map-style data set with the id of each item."""

    def __init__(self, dataset: Any, ids: NDArray[Any], column: str) -> None:
        self._dataset, self._ids, self._column = dataset, ids, column

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> Any:
        item, name = self._dataset[row], self._ids[row].item()
        return {**item, self._column: name} if isinstance(item, Mapping) else (item, name)


def with_ids(dataset: Any, ids: NDArray[Any], column: str = ROW_ID) -> Any:
    """`dataset` with a column of `ids` (n,): a Hugging Face `Dataset`, a pandas frame, or a map-style data set.

    A torch data set yields (item, id), or its item with one more key where that is a dict. Raises `PatterningError`
    for another number of rows, and where the column is taken.
    """
    if not hasattr(dataset, "__len__"):
        raise PatterningError(
            f"{type(dataset).__name__} has no length: row ids are given by place, so all rows must be at hand"
        )
    if len(dataset) != len(ids):
        raise PatterningError(f"there are {len(ids)} ids, and the data set has {len(dataset)} rows")
    columns = getattr(dataset, "column_names", getattr(dataset, "columns", ()))
    if column in list(columns):
        raise PatterningError(f"the data set has a column {column!r} already: give another name, column=...")
    if hasattr(dataset, "add_column"):
        return dataset.add_column(column, np.asarray(ids).tolist())
    if hasattr(dataset, "assign"):
        return dataset.assign(**{column: ids})
    return Named(dataset, ids, column)
