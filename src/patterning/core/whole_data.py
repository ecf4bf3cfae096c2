"""One pass over the rows of a task's data before anything is sampled: masks, and losses that are NaN or infinite."""

import time

import torch
from torch import Tensor

from patterning.core.answers import Triable, kept, run_plain
from patterning.core.batch import count_rows
from patterning.core.errors import PatterningError
from patterning.core.modules import spread
from patterning.core.trial import FEW_ROWS, MOST_ROWS, QUICK
from patterning.core.trial_losses import check_finite, check_ignored

CELLS_AT_ONCE = 4_096
"""Samples that are evaluated in one call."""
MOST_CELLS = 1_000_000
"""Samples that are looked at where there is no mask to read."""
SECONDS = 3.0
"""What looking at them may take: of larger models fewer rows are."""


def read_rows(task: Triable) -> tuple[Tensor | None, tuple[str, ...]]:
    """The weight of every sample, (n, t) float32 (None where the loss returns no mask), and notes.

    Raises `PatterningError` for the first row whose loss cannot be computed, is NaN or infinite, or is 0 at any
    parameters; and for a mask that is not finite and >= 0.
    """
    n, t = count_rows(task.data), task.trial.samples_per_row
    at_once = max(1, CELLS_AT_ONCE // t)
    rows = torch.arange(n)
    if not task.trial.masked and (most := _most_rows(task, at_once)) < n:
        rows = spread(n, most)
    masks, zero = list[Tensor](), list[Tensor]()
    for part in rows.split(at_once):
        losses, mask = run_plain(task, part)
        if mask is not None:
            own = mask.float().reshape(len(part), -1)
            if not bool(torch.isfinite(own).all()) or bool((own < 0).any()):
                raise PatterningError("the mask (the second of the pair that the loss returns) must be finite and >= 0")
            masks.append(own.cpu())
        check_finite(part, losses, mask)
        if sum(len(some) for some in zero) < MOST_ROWS:
            zero.append(part[((losses == 0) & kept(losses, mask)).reshape(len(part), -1).any(1).cpu()])
    if len(some := torch.cat(zero)[:MOST_ROWS]):
        losses, mask = run_plain(task, some)
        if masks and all(bool((own == 1).all()) for own in masks):
            mask = torch.ones_like(losses)
        check_ignored(task, some, losses, mask)
    if masks:  # a loss that trims its batch to the longest row does so for the shortest row alone
        run_plain(task, torch.cat(masks).sum(1).argmin()[None])
    notes = ()
    if len(rows) < n:
        notes = (f"losses were looked at in {len(rows)} of {n} rows, evenly spread, for NaN and for bad labels",)
    return (torch.cat(masks) if masks else None), notes


def _most_rows(task: Triable, at_once: int) -> int:
    """How many rows may be looked at: a power of two, so that small differences of speed change nothing."""
    for count in (FEW_ROWS, MOST_ROWS, at_once):  # a few rows tell little of what many take
        few = spread(count_rows(task.data), min(at_once, count))
        begun = time.perf_counter()
        run_plain(task, few)
        seconds = time.perf_counter() - begun
        if seconds > QUICK:
            break
    by_time = SECONDS / seconds * len(few)
    return 1 << (int(max(min(by_time, MOST_CELLS / task.trial.samples_per_row), FEW_ROWS)).bit_length() - 1)
