"""Row ids through a collator, so that each row of a minibatch is still known by its name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from patterning.core.errors import PatterningError
from patterning.intervention.row_ids import ROW_ID


class RowCollator:
    """A collator that carries the column of row ids around another collator, which never sees it.

    `batch[column]` is an int64 tensor (b,), or a list of names where ids are text. Rows without ids (an evaluation
    set) pass as they are. Serves `transformers.Trainer`, trl's trainers and a plain `DataLoader` alike.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], column: str = ROW_ID) -> None:
        self.collate, self.column = collate, column

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """The batch of `rows`."""
        named = [isinstance(row, Mapping) and self.column in row for row in rows]
        if not any(named):
            return self.collate(list(rows))
        if not all(named):
            raise PatterningError(f"some rows of a minibatch have a {self.column!r} and others do not")
        if all(len(row) == 1 for row in rows):
            raise PatterningError(
                "rows hold their ids alone: the other columns are none of the model's arguments, and were removed "
                "(remove_unused_columns=False keeps them)"
            )
        batch = self.collate([{key: value for key, value in row.items() if key != self.column} for row in rows])
        try:
            count = len(next(iter(batch.values())))
        except (AttributeError, TypeError, StopIteration):
            raise PatterningError(
                f"the collator returned {type(batch).__name__}: it must be a dict of tensors"
            ) from None
        if count != len(rows):
            raise PatterningError(
                f"the collator made {count} rows of {len(rows)}: rows that are packed together have no weights of "
                "their own; turn packing and padding-free batches off"
            )
        _check_order(rows, batch)
        batch[self.column] = _as_ids([row[self.column] for row in rows])
        return batch


def _check_order(rows: Sequence[Mapping[str, Any]], batch: Mapping[str, Any]) -> None:
    """Raise `PatterningError` where some column shows that the rows of a batch came out in another order.

    A column whose values were changed (masked tokens, say) shows nothing, nor does one of single numbers: they may be
    labels that were exchanged.
    """
    for key in set(rows[0]) & set(batch):
        parts = [_numbers(row.get(key)) for row in rows]
        made = [_numbers(value) for value in batch[key]] if isinstance(batch[key], torch.Tensor) else []
        known = [part for part in (*parts, *made) if part is not None]
        if not made or len(known) < len(parts) + len(made) or all(len(part) == 1 for part in known):
            continue
        if all(map(_agree, parts, made)):
            continue
        places = [next((i for i, part in enumerate(parts) if _agree(part, value)), None) for value in made]
        if None not in places:
            raise PatterningError(
                f"the collator changes the order of the rows in a minibatch (column {key!r}), so that weights would go "
                "to other rows: let it keep the order, and sort within the model "
                "(pack_padded_sequence(..., enforce_sorted=False))"
            )


def _numbers(value: Any) -> torch.Tensor | None:
    """A row's values (k,) of one column; None for what is no number, or none at all."""
    try:
        numbers = torch.as_tensor(value).detach().cpu().flatten()
    except (TypeError, ValueError, RuntimeError):
        return None
    return numbers if numbers.numel() else None


def _agree(row: Any, made: Any) -> bool:
    """Whether a row of a batch is this one: padded at either end by one value, or cut."""
    n = min(len(row), len(made))
    first, rest, last, before = made[:n], made[n:], made[len(made) - n :], made[: len(made) - n]
    return any(
        torch.equal(part.to(row.dtype), own) and len(pad.unique()) < 2
        for part, own, pad in ((first, row[:n], rest), (last, row[len(row) - n :], before))
    )


def _as_ids(ids: list[Any]) -> Any:
    values = [value.item() if hasattr(value, "item") else value for value in ids]
    return values if isinstance(values[0], str) else torch.tensor(values, dtype=torch.int64)
