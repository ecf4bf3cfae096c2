"""Weights where data is loaded: rows drawn in proportion to them, and items that carry them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError, check_whole
from patterning.core.rng import Stream, generator
from patterning.intervention.row_ids import check_row, refuse_other_order, rows_at_hand


class WeightedRows(torch.utils.data.Sampler[int]):
    """Row numbers for a `DataLoader`, drawn with replacement in proportion to q ρ; a new order in each epoch.

    One uniform number in each of `rows` equal slices of [0, 1) picks the rows (unbiased, with less variance than
    independent draws), which are then shuffled. A function of the seed and of how often it was gone through.
    """

    def __init__(self, shares: Floats, seed: int, rows: int | None = None) -> None:
        """`shares` q ρ (n,)."""
        check_whole("seed", seed, 0)
        self._cumulative = np.cumsum(shares)
        self._seed, self._rows, self._epoch = seed, len(shares) if rows is None else rows, 0
        check_whole("rows", self._rows, 1)

    def __len__(self) -> int:
        return self._rows

    def set_epoch(self, epoch: int) -> None:
        """Which order comes next: for loops that go on after a break (accelerate calls it)."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = generator(self._seed, Stream.EPOCH, step=self._epoch)
        self._epoch += 1
        points = (np.arange(self._rows) + rng.random(self._rows)) / self._rows * self._cumulative[-1]
        picked = np.minimum(np.searchsorted(self._cumulative, points, side="right"), len(self._cumulative) - 1)
        return iter(rng.permutation(picked).tolist())


def attached(dataset: Any, values: NDArray[np.float32], ids: NDArray[Any]) -> Any:
    """`dataset` with a column "weight": a Hugging Face `Dataset`, a pandas frame, or a map-style data set.

    Raises `PatterningError` where it has a column of this name, or shows that its rows are not in the order of `ids`.
    """
    if (rows := rows_at_hand(dataset)) != len(ids):
        raise PatterningError(f"these weights are of {len(ids)} rows, and the data set has {rows}")
    refuse_other_order(dataset, ids)
    if "weight" in list(getattr(dataset, "column_names", getattr(dataset, "columns", ()))):
        raise PatterningError('the data set has a column "weight" already: rename or remove it first')
    if hasattr(dataset, "add_column"):
        return dataset.add_column("weight", list(values))
    if hasattr(dataset, "assign"):
        return dataset.assign(weight=list(values) if values.ndim == 2 else values)
    return Attached(dataset, torch.from_numpy(values))


class Attached(torch.utils.data.Dataset[Any]):
    """A map-style data set with the weight of each item."""

    def __init__(self, dataset: Any, weights: Tensor) -> None:
        self._dataset, self._weights = dataset, weights

    def __len__(self) -> int:
        return len(self._weights)

    def __getitem__(self, row: int) -> Any:
        check_row(row)
        item, weight = self._dataset[row], self._weights[row]
        return {**item, "weight": weight} if isinstance(item, Mapping) else (item, weight)
