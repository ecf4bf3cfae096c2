"""The rows of χ: which (component, observable) pairs of a stored response are shown, and by what names."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit

from patterning.core.arrays import Floats, check_level
from patterning.core.identity import digest
from patterning.core.task import Task
from patterning.response.sample import COMPONENT_LOSS

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class ChiRow:
    """A row of χ: its `name`, and the places `c`, `o` of its component and observable in the stored arrays."""

    name: str
    component: str
    observable: str
    c: int
    o: int

    def of(self, data: "xarray.Dataset", field: str) -> Floats:
        """A field (component, observable, ...) of this row."""
        return data[field].transpose("component", "observable", ...).values[self.c, self.o]

    def halves(self, data: "xarray.Dataset") -> Floats:
        """χ of the two halves of the chains, (2, n)."""
        return data["halves"].transpose("half", "component", "observable", "sample").values[:, self.c, self.o]

    def trace(self, tree: "xarray.DataTree") -> Floats:
        """φ at each draw (draws, kept chains); no column where nothing was sampled."""
        phi = tree["posterior"]["phi"].transpose("component", "observable", "draw", "chain").values[self.c, self.o]
        return phi[:, ~np.isnan(phi).all(0)]  # chains that were excluded or not run hold nothing


@dataclass(frozen=True)
class RowMeans:
    """χ averaged over the samples of each row of the data: `chi`, `standard_error` (k, m) of rows `row` (m,)."""

    names: tuple[str, ...]
    row: NDArray[np.int64]
    chi: Floats
    standard_error: Floats
    degrees_of_freedom: float

    def half_width(self, level: float = 0.95) -> Floats:
        """χ ± this (k, m) is an interval for each entry."""
        check_level(level)
        return float(stdtrit(self.degrees_of_freedom, (1 + level) / 2)) * self.standard_error


def attributes_of_data(task: Task, rows: NDArray[np.int64]) -> dict[str, str | int | float]:
    """What a stored χ says of the data that its probed `rows` are a part of. A share is by base weights.

    A forecast needs the share: weights on a tenth of the data change the loss that is trained on by a tenth of what
    they change the mean loss of the probed rows by.
    """
    probed = np.unique(rows)
    return {
        "data_fingerprint": digest(task.data_fingerprint, task.base_weights),
        "rows_probed": len(probed),
        "data_rows": len(task.base_weights),
        "share_of_data": float(task.base_weights[torch.from_numpy(probed)].sum() / task.base_weights.sum()),
    }


def of_data(data: "xarray.Dataset") -> str:
    """How many rows of the data were probed, where not all: χ is relative to their mean, so that it sums to 0."""
    rows, count = (int(data.attrs.get(name, 0)) for name in ("rows_probed", "data_rows"))
    return f" in {rows:,} of {count:,} rows (χ is relative to their mean)" if rows < count else ""


def share_of_data(data: "xarray.Dataset") -> float:
    """The share of the data's weight that the probed rows have: all, where it was not stored."""
    rows, count = (int(data.attrs.get(name, 1)) for name in ("rows_probed", "data_rows"))
    return float(data.attrs.get("share_of_data", rows / count))


def shown_rows(data: "xarray.Dataset") -> list[ChiRow]:
    """Every component with every observable; the component loss only where there is no other observable.

    A row is called by its observable where one component was measured, by its component where one observable was, else
    "component: observable".
    """
    components = [str(name) for name in data["component"].values]
    observables = [str(name) for name in data["observable"].values]
    shown = [name for name in observables if name != COMPONENT_LOSS] or observables
    return [
        ChiRow(_name(what, phi, len(components), len(shown)), what, phi, c, observables.index(phi))
        for c, what in enumerate(components)
        for phi in shown
    ]


def _name(component: str, observable: str, components: int, observables: int) -> str:
    if observables == 1 and (observable == COMPONENT_LOSS or components > 1):
        return component
    return observable if components == 1 else f"{component}: {observable}"
