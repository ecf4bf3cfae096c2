"""Rows of tokens as a tokenizer or a data set gives them, as one batch of tensors, padded on the right.

Whatever comes padded on the left is moved to the left first. So column p of a row is always its token p: positions,
which models count from the first column on, are right, and weights of tokens mean the same on either side.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patterning.core.errors import PatterningError

COLUMNS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "labels")
"""What a model or its loss reads, in this order; other columns are left out."""
NAMES = {"label": "labels", "label_ids": "labels"}
"""Names that data sets use → those that models use."""
IGNORED = -100
"""The label of what is no sample, as in torch's cross_entropy."""


def token_batch(data: object, pad: int) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The columns of `COLUMNS` that `data` holds, each (n, t) or (n,), and sentences on what was done with it.

    `data`: a dict or `BatchEncoding` of columns; a `datasets.Dataset`, formatted or not, or any map-style data set of
    dicts; a list of dicts; or a tensor of token numbers. Rows of unequal length are padded on the right: token numbers
    with `pad`, labels with -100, the rest with 0; an attention mask then says which tokens are real. Rows that are
    padded on the left (a mask that begins with 0) are moved to the left. Raises `PatterningError` for anything else,
    and for columns that do not fit together.
    """
    columns = _columns(data)
    notes, read, used = [], dict[str, list[Tensor]](), dict[str, str]()
    for name in sorted(columns, key=lambda name: name in NAMES):  # labels, where there are label and labels
        key, values = NAMES.get(name, name), columns[name]
        if key not in COLUMNS or values is None:
            continue
        if key in used:
            notes.append(f"the data has columns {used[key]} and {name}: {used[key]} is used")
            continue
        read[key], used[key] = _rows(name, values), name
    if "input_ids" not in read:
        raise PatterningError(
            f"the data has no column input_ids (it has {', '.join(map(str, columns)) or 'none'}): give what the "
            "tokenizer returns for the texts, tokenizer(texts, truncation=True)"
        )
    if left := [str(name) for name in columns if NAMES.get(name, name) not in COLUMNS]:
        notes.append(f"the model is not given the columns {', '.join(left)} of the data")
    lengths = _lengths(read)
    if _move_to_the_left(read):
        notes.append("rows are padded on the left: they are moved, so that positions count from their first real token")
    longest = max(lengths)
    if min(lengths) < longest:
        notes.append(
            f"rows of {min(lengths)} to {longest} tokens are padded on the right to {longest}; padding is no sample"
        )
        read.setdefault("attention_mask", [torch.ones(length, dtype=torch.int64) for length in lengths])
    fill = {"input_ids": pad, "labels": IGNORED}
    return {key: _stacked(key, read[key], longest, fill.get(key, 0)) for key in COLUMNS if key in read}, tuple(notes)


def _columns(data: object) -> dict[str, Any]:
    """Column name → its n rows."""
    if isinstance(data, Tensor | np.ndarray):
        return {"input_ids": data}
    if isinstance(data, Mapping):  # a tokenizer's BatchEncoding is one
        return dict(data)
    if hasattr(data, "columns") and not hasattr(data, "column_names"):  # a frame of pandas or polars
        frame: Any = data
        names = [name for name in frame.columns if isinstance(name, str)]
        return {**dict.fromkeys(map(str, frame.columns)), **{name: list(frame[name]) for name in names if _read(name)}}
    if hasattr(data, "column_names") and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        table: Any = data
        if isinstance(table.column_names, Mapping):
            raise PatterningError(f"this is several data sets ({', '.join(table.column_names)}): give one of them")
        wanted = [name for name in table.column_names if _read(name)]
        columns = dict.fromkeys(table.column_names)
        return {**columns, **{name: list(table[name]) for name in wanted}}
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | bytes):
        source: Any = data
        try:
            items = [source[i] for i in range(len(source))]
        except (KeyError, IndexError, TypeError) as error:
            raise PatterningError(
                f"the {type(data).__name__} has no rows 0 to {len(source) - 1} ({type(error).__name__}: {error}): give "
                "a list of its rows"
            ) from None
        if items and all(isinstance(item, Mapping) for item in items):
            return {key: [_entry(items, i, key) for i in range(len(items))] for key in items[0]}
        if items and not isinstance(items[0], str | Mapping):
            return {"input_ids": items}
        if items and isinstance(items[0], str):
            raise PatterningError("the data is text: tokenize it first, tokenizer(texts, truncation=True)")
    hint = ""
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | Sequence):
        hint = "; rows are read again and again, so a stream must be read into a list first"
    raise PatterningError(
        "the data must be what a tokenizer returns (a dict of input_ids, attention_mask and maybe labels), a data set "
        f"or a list of such dicts, or a tensor of token numbers (found {type(data).__name__}){hint}"
    )


def _read(name: str) -> bool:
    """Whether a column of this name is read."""
    return NAMES.get(name, name) in COLUMNS


def _entry(items: list[Any], row: int, key: str) -> Any:
    if key not in items[row]:
        raise PatterningError(f"row {row} of the data has no {key}, which row 0 has")
    return items[row][key]


def _rows(name: str, values: Any) -> list[Tensor]:
    """The rows of a column as whole numbers, or floating point targets."""
    try:
        if isinstance(values, Tensor | np.ndarray):
            rows = list(torch.as_tensor(values))
        else:
            rows = [torch.as_tensor(row) for row in values]
    except (TypeError, ValueError, RuntimeError) as error:
        raise PatterningError(f"column {name} of the data holds no numbers ({str(error).splitlines()[0]})") from None
    if not rows:
        raise PatterningError("the data is empty: it must have n > 0 rows")
    floating = any(row.is_floating_point() and row.numel() for row in rows)
    if floating and NAMES.get(name, name) != "labels":
        raise PatterningError(f"column {name} of the data holds {rows[0].dtype}: it must hold whole numbers")
    return [row.detach().cpu().to(torch.float32 if floating else torch.int64) for row in rows]


def _lengths(read: Mapping[str, list[Tensor]]) -> list[int]:
    """Tokens of each row; raises where a column has other rows than input_ids."""
    ids = read["input_ids"]
    if any(row.ndim != 1 or not len(row) for row in ids):
        bad = next(i for i, row in enumerate(ids) if row.ndim != 1 or not len(row))
        raise PatterningError(
            f"input_ids of row {bad} has shape {tuple(ids[bad].shape)}: it must be (t,), with at least one token"
        )
    for key, rows in read.items():
        if len(rows) != len(ids):
            raise PatterningError(f"the data has {len(ids)} rows of input_ids and {len(rows)} of {key}")
        if key == "labels":
            _check_labels(rows, ids)
            continue
        for i, (row, own) in enumerate(zip(rows, ids, strict=True)):
            if row.shape != own.shape:
                raise PatterningError(
                    f"row {i} of the data has {len(own)} input_ids, and {key} of shape {tuple(row.shape)}"
                )
    return [len(row) for row in ids]


def _check_labels(rows: list[Tensor], ids: list[Tensor]) -> None:
    """Labels of a row, or of each of its tokens: the task's loss says which fit.

    Raises for lists of labels of other lengths than their rows, which could begin anywhere. One number a row, and
    several targets a row, as many for each, are no labels of tokens.
    """
    shapes = {row.shape for row in rows}
    longest, first = max(map(len, ids)), rows[0]
    if len(shapes) == 1 and (first.ndim != 1 or len(first) != longest or len(first) == 1 or first.is_floating_point()):
        return
    for i, (row, own) in enumerate(zip(rows, ids, strict=True)):
        if row.shape != own.shape:
            raise PatterningError(
                f"row {i} of the data has {len(own)} input_ids, and labels of shape {tuple(row.shape)}: they must be "
                "one for each token, with -100 for tokens that are no samples, or one for the row"
            )


def _move_to_the_left(read: dict[str, list[Tensor]]) -> bool:
    """Turn each row until its first real token comes first, and its padding last; whether any was turned."""
    ids, masks = read["input_ids"], read.get("attention_mask")
    before = [int((mask > 0).int().argmax()) if bool(mask.any()) else 0 for mask in masks or ()]
    if not any(before):
        return False
    for key, rows in read.items():
        for i, (shift, own) in enumerate(zip(before, ids, strict=True)):
            if key == "labels" and rows[i].is_floating_point():  # several targets of the row
                continue
            if shift and rows[i].shape == own.shape:
                rows[i] = rows[i].roll(-shift)
    return True


def _stacked(key: str, rows: list[Tensor], longest: int, fill: int) -> Tensor:
    shapes = {row.shape for row in rows}
    if len(shapes) == 1 and (key == "labels" or next(iter(shapes)) == (longest,)):
        return torch.stack(rows)
    if any(row.ndim != 1 or len(row) > longest for row in rows):
        raise PatterningError(f"{key} of the rows have shapes {sorted(map(tuple, shapes))[:3]}: they do not fit")
    out = torch.full((len(rows), longest), fill, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
