"""The samples behind numbers: a training example with its χ, and its text where it has one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patterning.core.answers import reason_of
from patterning.core.batch import leaves, map_batch, take_rows
from patterning.core.errors import PatterningError
from patterning.core.task import Task

Decode = Any
"""A tokenizer with `decode`, or a function of (row of the data, position) → text."""

CONTEXT = 24
"""Tokens that are shown before a predicted one."""


@dataclass(frozen=True)
class Example:
    """A sample: `id` of its row, `row` and `position` in the data, χ with its 95 % half-width, its text.

    A half-width of 0 or NaN is not known. `of_token`: rows have several samples, so that the position is shown.
    """

    id: Any
    row: int
    position: int
    chi: float
    half_width: float
    text: str
    of_token: bool = False

    def __str__(self) -> str:
        where = f"{self.id}, {self.position}" if self.of_token or self.position else f"{self.id}"
        error = f"± {self.half_width:.2g}" if self.half_width > 0 else "(error unknown)"
        return f"{self.chi:+.3g} {error}  [{where}] {self.text}"


@dataclass(frozen=True)
class Texts:
    """The rows that were probed, where no task is at hand."""

    data: Mapping[str, Tensor]
    samples_per_row: int


def as_text(decode: Decode, task: Task | Texts, row: int, position: int) -> str:
    """The text of a sample: by `decode(data of the row, position)`, or the predicted token in its context.

    For a tokenizer, the first whole-number tensor with one axis a row (or "input_ids") holds the tokens, and sample i
    of a row is the prediction of token i + 1, marked ⟦so⟧.
    """
    data = take_rows(task.data, torch.tensor([row]))
    if not hasattr(decode, "decode"):
        if not callable(decode):
            raise PatterningError("decode must be a tokenizer or a function of (row of the data, position)")
        try:
            return str(decode(_first_row(data), position))
        except Exception as error:
            raise PatterningError(
                f"decode failed for row {row}, position {position} ({type(error).__name__}: {reason_of(error)}): it "
                "must be a tokenizer or a function of (row of the data, position) that returns a text"
            ) from error
    tokens = tokens_of(data)[0].tolist()
    if task.samples_per_row == 1:
        return _said(decode, tokens)
    before, target = tokens[max(0, position + 1 - CONTEXT) : position + 1], tokens[position + 1 : position + 2]
    return f"{_said(decode, before)}⟦{_said(decode, target)}⟧"


def _said(decode: Any, tokens: list[int]) -> str:
    return str(decode.decode(tokens)).replace("\n", "⏎") if tokens else ""


def tokens_of(data: Any) -> Tensor:
    """The token numbers (rows, t) in some rows of the data; raises `PatterningError` where there are none."""
    if isinstance(data, Mapping) and "input_ids" in data:
        return data["input_ids"]
    for leaf in leaves(data):
        if leaf.ndim == 2 and not leaf.is_floating_point() and leaf.dtype != torch.bool:
            return leaf
    raise PatterningError("no tokens were found in the data: give decode a function of (row of the data, position)")


def _first_row(data: Any) -> Any:
    return map_batch(lambda values: values[0], data)
