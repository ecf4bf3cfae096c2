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
        batch[self.column] = _as_ids([row[self.column] for row in rows])
        return batch


def _as_ids(ids: list[Any]) -> Any:
    values = [value.item() if hasattr(value, "item") else value for value in ids]
    return values if isinstance(values[0], str) else torch.tensor(values, dtype=torch.int64)
