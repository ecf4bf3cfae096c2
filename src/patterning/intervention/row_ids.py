"""Row ids as a column of a data set: what weights are looked up by once rows were shuffled, filtered or split."""

import math
import operator
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError
from patterning.core.shapes import SampleNumbers

ROW_ID = "row_id"


class Named(torch.utils.data.Dataset[Any]):
    """A map-style data set with the id of each item."""

    def __init__(self, dataset: Any, ids: NDArray[Any], column: str) -> None:
        self._dataset, self._ids, self._column = dataset, ids, column

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> Any:
        check_row(row)
        item, name = self._dataset[row], self._ids[row].item()
        return {**item, self._column: name} if isinstance(item, Mapping) else (item, name)


def rows_at_hand(dataset: Any) -> int:
    """How many rows a data set has; raises `PatterningError` for a stream."""
    if not hasattr(dataset, "__len__"):
        raise PatterningError(
            f"{type(dataset).__name__} has no length: ids and weights go by place, so all rows must be at hand"
        )
    return len(dataset)


def with_ids(dataset: Any, ids: NDArray[Any], column: str = ROW_ID) -> Any:
    """`dataset` with a column of `ids` (n,): a Hugging Face `Dataset`, a pandas frame, or a map-style data set.

    A torch data set yields (item, id), or its item with one more key where that is a dict. Raises `PatterningError`
    for another number of rows, and where the column is taken.
    """
    if (rows := rows_at_hand(dataset)) != len(ids):
        raise PatterningError(f"there are {len(ids)} ids, and the data set has {rows} rows")
    columns = getattr(dataset, "column_names", getattr(dataset, "columns", ()))
    if column in list(columns):
        raise PatterningError(f"the data set has a column {column!r} already: give another name, column=...")
    refuse_other_order(dataset, ids)
    if hasattr(dataset, "add_column"):
        return dataset.add_column(column, np.asarray(ids).tolist())
    if hasattr(dataset, "assign"):
        return dataset.assign(**{column: ids})
    return Named(dataset, ids, column)


def as_labels(groups: Any) -> NDArray[Any]:
    """Labels (n,) of rows; those that are tuples stay so, which numpy would make a matrix of."""
    if not isinstance(groups, list | tuple) or not any(isinstance(label, tuple) for label in groups):
        return np.asarray(groups)
    labels = np.empty(len(groups), dtype=object)
    for row, label in enumerate(groups):
        labels[row] = label
    return labels


def _is_missing(label: object) -> bool:
    """None, NaN, and what pandas writes for them."""
    missing = label is None or (isinstance(label, float) and math.isnan(label))
    return missing or type(label).__name__ in ("NAType", "NaTType")


def numbered(what: str, labels: NDArray[Any], named: Collection[Any] = ()) -> tuple[list[Any], NDArray[np.int64]]:
    """The different ones of `labels` (n,), in the order in which they come, and which of them each row has (n,).

    Raises `PatterningError` where a row has none (NaN or None), unless that is one of the labels that are `named`.
    """
    known: dict[Any, int] = {}
    place = [known.setdefault(label, len(known)) for label in labels.tolist()]
    bare = [row for row, label in enumerate(labels.tolist()) if _is_missing(label) and label not in named]
    if bare:
        raise PatterningError(
            f"{what} have no label (NaN or None) in {len(bare)} rows, the first is row {bare[0]}: give these a name, "
            "as groups.fillna('none') does"
        )
    return list(known), np.array(place, dtype=np.int64)


def in_groups(groups: Any, rho_by_group: Any) -> tuple[dict[Any, float], NDArray[np.int64]]:
    """The ρ of each label of (n,), in the order in which labels come, and which of them each row has (n,).

    Raises `PatterningError` unless `rho_by_group`, a dict or a pandas series, names exactly these labels.
    """
    if not hasattr(rho_by_group, "items"):
        raise PatterningError(f"rho_by_group is a {type(rho_by_group).__name__}: give a dict, label → ρ")
    named = dict(rho_by_group.items())
    labels = as_labels(groups)
    if labels.ndim != 1:
        raise PatterningError(f"groups are {labels.shape}: give one label for each row, (n,)")
    known, place = numbered("groups", labels, named)
    if set(known) != set(named):
        raise PatterningError(
            f"groups {labels.shape} are {known[:8]} and rho_by_group names {list(named)[:8]}: give a label a row, and "
            "a ρ for each of these labels"
        )
    return {kind: named[kind] for kind in known}, place


def check_row(row: Any) -> None:
    """Raise `PatterningError` unless one item is asked for: a slice of items has no one id or weight."""
    try:
        operator.index(row)
    except TypeError:
        raise PatterningError(
            f"rows {row!r} were asked for at once: items are read one by one, by a whole number; for a part of them "
            "use torch.utils.data.Subset(dataset, places)"
        ) from None


def order_of(ids: NDArray[Any], of_task: NDArray[Any]) -> SampleNumbers | None:
    """Where the rows of a task lie among rows named `ids`, (n,) int64; None where all lie at their own places.

    Weights with the default ids 0, 1, …, for a task whose rows have other names, go by place. Raises `PatterningError`
    where the rows are not the same ones.
    """
    of_task = np.asarray(of_task)
    if np.array_equal(ids, of_task):
        return None
    place = {name: at for at, name in enumerate(ids.tolist())}
    found = [place.get(name, -1) for name in of_task.tolist()]
    if min(found) >= 0 and len(found) == len(place):
        return np.array(found)
    if np.array_equal(ids, np.arange(len(ids))):
        return None
    name = of_task.tolist()[found.index(-1)] if -1 in found else ids.tolist()[0]
    raise PatterningError(
        f"these weights are of other rows than the task's: they know no row {name!r}; give the weights and the task "
        "the same ids"
    )


def check_order(ids: NDArray[Any], of_task: NDArray[Any], remedy: str = "") -> None:
    """Raise `PatterningError` where rows named `ids` are not those of a task, or lie in another order."""
    if order_of(ids, of_task) is not None:
        raise PatterningError(
            f"the index names the task's rows in another order: {remedy}"
            if remedy
            else "these weights hold the task's rows in another order, by their ids: fit sorts them, and "
            "patterning.intervention.aligned.aligned(weights, task) does"
        )


def refuse_other_order(dataset: Any, ids: NDArray[Any]) -> None:
    """Raise `PatterningError` where a data set says itself that its rows lie in another order than `ids`.

    A pandas frame says so by its index, and any table by a column of row ids. A list that was shuffled says nothing.
    """
    for what, names in _names_in(dataset):
        if names != (known := ids.tolist()) and len(names) == len(known) and set(names) == set(known):
            remedy = "look weights up by it, weights.of(ids)"
            if what == "its index":
                remedy = (
                    "take frame.loc[weights.ids], or, where the weights were made for the rows as they lie now, "
                    "reset_index(drop=True)"
                )
            raise PatterningError(
                f"the data set was shuffled: {what} holds the ids of these weights in another order, and weights "
                f"go by place here: {remedy}"
            )


def _names_in(dataset: Any) -> list[tuple[str, list[Any]]]:
    """What a data set calls its rows: its index, and a column of row ids."""
    found = list[tuple[str, list[Any]]]()
    frame = hasattr(dataset, "assign") and hasattr(dataset, "index")
    if frame and hasattr(dataset.index, "tolist"):
        found.append(("its index", dataset.index.tolist()))
    columns = getattr(dataset, "column_names", getattr(dataset, "columns", ()))
    if (frame or hasattr(dataset, "add_column")) and ROW_ID in list(columns):
        found.append((f"its column {ROW_ID}", np.asarray(list(dataset[ROW_ID])).tolist()))
    return found


def places_of(ids: NDArray[Any], rows: Any) -> NDArray[np.int64]:
    """Where rows with these ids lie among `ids`, (b,); raises `PatterningError` for an id that is none of them."""
    wanted = np.asarray(rows).ravel()
    if wanted.dtype == bool and ids.dtype != bool:
        raise PatterningError("rows are True and False: rows are asked for by their ids here, as in ids[mask]")
    if np.array_equal(ids, np.arange(len(ids))):
        if wanted.dtype.kind not in "iu" or (wanted < 0).any() or (wanted >= len(ids)).any():
            raise PatterningError(f"rows must be numbers from 0 to {len(ids) - 1}")
        return wanted.astype(np.int64)
    if {ids.dtype.kind, wanted.dtype.kind} == {"i", "u"}:  # together they would be rounded to floating point
        ids, wanted = ids.astype(object), wanted.astype(object)
    if wanted.dtype.kind == "O" and any(part is None for part in wanted):
        raise PatterningError("rows hold None: rows are asked for by their ids")
    order = np.argsort(ids)
    found = order[np.searchsorted(ids[order], wanted).clip(max=len(order) - 1)]
    if (missing := ids[found] != wanted).any():
        raise PatterningError(f"these weights know no row {wanted[missing].tolist()[0]!r}")
    return found.astype(np.int64)


def refuse_no_samples(base_weights: Floats, counted: Tensor) -> None:
    """Raise `PatterningError` where a token that `counted` (b, t) has is no sample: base weight 0 in (b, T)."""
    width = min(base_weights.shape[1], counted.shape[1])
    none = torch.from_numpy(base_weights[:, :width] <= 0).to(counted.device)
    if bool((counted[:, :width] & none).any()):
        raise PatterningError(
            "a token that counts here is no sample to the weights (its base weight is 0): rows are padded, cut or "
            "labelled otherwise than where the weights were made, or the mask of padding is missing"
        )
