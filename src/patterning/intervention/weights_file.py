"""Weights as a parquet file: one row each, with how they were made in the file's metadata.

A digest of the rows, in the order of their ids, is stored as well: a changed number is an error, and not another
weight; rows that were put in another order are the same weights.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from patterning.core.errors import PatterningError
from patterning.core.store import cannot_write, part_of, refuse_other, strict_json

FORMAT = 1
"""Of the file; raised when its columns change."""
WITH_SWAPS = 2
"""Of a file in which some labels are exchanged, which earlier versions must not read as plain weights."""


def write_weights(weights: Any, path: str | Path, more: dict[str, Any] | None = None) -> None:
    """Ids, ρ, q and what is free of `Weights`; `more`: further columns, (n,) each."""
    import pyarrow
    import pyarrow.parquet

    if not isinstance(path, str | Path):
        raise PatterningError(f"the path is {type(path).__name__}: give the name of a file")
    path = Path(path)
    columns = {
        "id": weights.ids, "rho": weights.rho, "base_weight": weights.base_weights, "free": weights.free, **(more or {})
    }  # fmt: skip
    if weights.swapped is not None:
        columns["swapped"] = weights.swapped
    table = pyarrow.table({name: list(value) if np.ndim(value) == 2 else value for name, value in columns.items()})
    about = {
        "format": FORMAT if weights.swapped is None else WITH_SWAPS,
        "data": weights.data,
        "facts": strict_json(dict(weights.facts)),
    }
    own = {name: columns[name] for name in _names(about["format"])}
    about["sha256"] = _digest(own, about)
    table = table.replace_schema_metadata({"patterning": json.dumps(about)})
    refuse_other_table(path)
    part = part_of(path)
    try:
        pyarrow.parquet.write_table(table, part)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def refuse_other_table(path: str | Path) -> None:
    """Raise `PatterningError` where a file lies at `path` that this package did not write: a corpus, say."""
    refuse_other(path, _is_table, "file of weights")


def _is_table(path: Path) -> bool:
    import pyarrow
    import pyarrow.parquet

    try:
        return any(key.startswith(b"patterning") for key in pyarrow.parquet.read_schema(path).metadata or {})
    except (OSError, ValueError, pyarrow.ArrowException):
        return False


def read_weights(path: str | Path) -> dict[str, Any]:
    """The fields of `Weights` in a file of `write_weights`; raises `PatterningError` for any other file."""
    import pyarrow
    import pyarrow.parquet

    if not Path(path).exists():
        raise PatterningError(f"{path} holds no weights: it does not exist")
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise PatterningError(f"{path} holds no weights: it cannot be read as parquet ({reason})") from None
    try:
        about = json.loads((table.schema.metadata or {})[b"patterning"])
        made, data, facts = about["format"], about["data"], about["facts"]
    except (KeyError, TypeError, ValueError):
        raise PatterningError(
            f"{path} holds no weights of this package: it lacks the metadata that to_parquet writes; for a column "
            "of your own use Weights.of_rows(column)"
        ) from None
    if made not in (FORMAT, WITH_SWAPS):
        raise PatterningError(f"{path} holds weights of format {made}: this version reads formats 1 and 2")
    try:
        columns = {name: np.array(table[name].to_pylist()) for name in _names(made) if name != "id"}
        columns["id"] = _ids(table["id"])
        found = _digest(columns, about)
    except (KeyError, TypeError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        raise PatterningError(f"{path} is damaged: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    if about.get("sha256", found) != found:  # earlier versions stored none
        raise PatterningError(
            f"{path} is damaged: its numbers are not those that were written; for weights of your own use "
            "Weights.of_rows(rho, ids)"
        )
    return {
        "rho": columns["rho"], "ids": columns["id"], "base_weights": columns["base_weight"], "free": columns["free"],
        "data": data, "facts": facts, "swapped": columns.get("swapped"),
    }  # fmt: skip


def _ids(column: Any) -> np.ndarray:
    """Whole numbers keep their type: some of 2**63 and more beside smaller ones would be rounded otherwise."""
    import pyarrow

    return column.to_numpy() if pyarrow.types.is_integer(column.type) else np.array(column.to_pylist())


def _names(made: int) -> list[str]:
    """The columns that a file of this format needs."""
    return ["id", "rho", "base_weight", "free", *(["swapped"] if made == WITH_SWAPS else [])]


def _digest(columns: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """SHA-256 of the columns, sorted by id, and of what else the file says of the weights, hex."""
    ids = np.asarray(columns["id"]).tolist()
    order = sorted(range(len(ids)), key=ids.__getitem__)
    said = {key: value for key, value in about.items() if key != "sha256"}
    total = hashlib.sha256(json.dumps([ids[at] for at in order] + [said], sort_keys=True, default=repr).encode())
    for name, kind in (("rho", np.float64), ("base_weight", np.float64), ("free", np.bool_), ("swapped", np.bool_)):
        if name in columns:
            values = np.asarray(columns[name])
            if values.dtype != kind:
                raise ValueError(f"column {name} holds {values.dtype}")
            total.update(f"{name}{values.shape}".encode() + np.ascontiguousarray(values[order]).tobytes())
    return total.hexdigest()
