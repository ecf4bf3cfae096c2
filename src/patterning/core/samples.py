"""Which samples a task's rows hold, and how often each is drawn."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError

DRAWS_PER_SAMPLE = 16
"""Most draws for each sample in an epoch, on average: how finely they follow uneven base weights."""


@dataclass(frozen=True)
class Samples:
    """The samples in some rows of the data, masked ones left out: `row`, `position` within it, and `weight` q, (n,).

    `place` (n,): where each lies among all cells of the rows, row by row. Weights sum to 1; `share` is what these
    samples have of the weight of all the data.
    """

    row: NDArray[np.int64]
    position: NDArray[np.int64]
    weight: NDArray[np.float64]
    place: NDArray[np.int64]
    share: float = 1.0

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class Data:
    """What weights must know of the data: `rows` × `per_row` cells, ids, fingerprint, base weights of the cells."""

    rows: int
    per_row: int
    ids: NDArray[Any]
    fingerprint: str
    base_weights: Floats


def draws_of(q: Tensor) -> Tensor:
    """Sample numbers int64 (N,), j about N q_j times: exactly, where q is in the ratio of small whole numbers.

    Whoever has a weight is drawn once at least; `times_too_often` says what that and rounding make of its weight.
    """
    ratios = (q / q[q > 0].min()).numpy()
    whole = np.allclose(ratios, ratios.round(), rtol=0, atol=1e-4) and ratios.sum() <= DRAWS_PER_SAMPLE * len(q)
    count = math.floor(ratios.sum() + 0.5) if whole else DRAWS_PER_SAMPLE * len(q)
    points = (np.arange(count) + 0.5) / count
    drawn = np.minimum(np.searchsorted(np.cumsum(q.numpy()), points), len(q) - 1)
    missed = np.flatnonzero((np.bincount(drawn, minlength=len(q)) == 0) & (q.numpy() > 0))
    return torch.from_numpy(np.sort(np.append(drawn, missed)))


def times_too_often(draws: Tensor, q: Tensor) -> Tensor:
    """How much more often than its weight q_j each sample j is drawn, (n,) float64; exactly 1 where it is not."""
    counts = torch.bincount(draws.cpu(), minlength=len(q)).double()
    ratio = torch.where(counts > 0, counts / len(draws) / q.double().cpu().clamp(min=1e-300), 1.0)
    return torch.where((ratio - 1).abs() < 1e-9, 1.0, ratio)


def samples_of(rows: Tensor, shares: Tensor, cells: Tensor | None, t: int) -> Samples:
    """The samples in rows `rows` (b,) of data whose rows have `shares` (n,) of L and samples of weight `cells` (n, t).

    Rows count alike where all have no share. Raises `PatterningError` where there is no sample.
    """
    own = torch.ones(len(rows), t) if cells is None else cells.cpu()[rows]
    # a row's share of L, dealt out to its samples
    total = own.double().sum(1, keepdim=True)
    weight = (shares[rows, None] * own.double() / total.clamp(min=1e-300)).flatten().numpy()
    place = np.flatnonzero(own.flatten().numpy() > 0)
    if not len(place):
        raise PatterningError("these rows hold no sample: each is masked")
    if not weight[place].sum() > 0:
        weight = own.double().flatten().numpy()
    return Samples(
        row=np.repeat(rows.numpy(), t)[place],
        position=np.tile(np.arange(t), len(rows))[place],
        weight=weight[place] / weight[place].sum(),
        place=place,
    )
