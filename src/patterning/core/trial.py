"""What a model and its loss can do, tried in seconds before anything is computed with them.

Everything is tried on a few rows, at the module's own parameters and at others: the shape of the losses at two batch
sizes, that they are finite, the same twice, the same alone and in company, that they depend on the parameters that they
are given and on no others, that they have the gradient of their values, and how many replicas `torch.func.vmap` can run
at a time. A refusal names the reason and the remedy.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from textwrap import shorten
from typing import Literal

import torch
from torch import Tensor, nn

from patterning.core.answers import ROUNDING, Triable, Trial, kept, reason_of, run_plain, same
from patterning.core.batch import as_batch, count_rows
from patterning.core.errors import PatterningError
from patterning.core.indexes import refuse_shuffled
from patterning.core.modules import displaced, spread
from patterning.core.outside import check_calls, check_reads, check_views, watched
from patterning.core.seen import same_values
from patterning.core.state import changed_places, scratch_copy, state_of
from patterning.core.trial_gradient import check_gradient
from patterning.core.trial_losses import (
    check_company,
    check_finite,
    check_ignored,
    check_same_twice,
    check_sizes,
    rounding,
)

MOST_ROWS = 64
FEW_ROWS = 4
GRADIENT_ROWS, GRADIENT_CELLS = 16, 256
"""Most rows, and samples in them, whose gradient is tried."""
QUICK = 0.05
"""Seconds for a forward pass over a few rows, up to which more are tried."""


def check_base_weights(weights: object, rows: int) -> Tensor:
    """Base weights (n,) as a tensor, 1 for each row where there are none; raises `PatterningError` for bad ones."""
    if weights is None:
        return torch.ones(rows)
    refuse_shuffled("base_weights", weights)
    try:
        found = as_batch(weights)
    except PatterningError as error:
        what = type(weights).__name__
        raise PatterningError(f"base_weights must be {rows} numbers, one a row (got {what}): {error}") from None
    if not isinstance(found, Tensor) or found.shape != (rows,):
        shape = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise PatterningError(f"base_weights must be {rows} numbers, one a row (got {shape})")
    found = found.cpu()
    bad = ~found.isfinite() | (found < 0)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise PatterningError(
            f"base_weights must be finite numbers >= 0, one for each of the {rows} rows: row {row} has "
            f"{float(found[row]):.4g}"
        )
    if not bool(found.any()):
        raise PatterningError("base_weights are all 0: a row counts as often as its weight says, so some must be > 0")
    return found


def try_task(task: Triable, original: nn.Module) -> Trial:
    """Try a task whose module is a copy of `original`; raises `PatterningError` where it cannot serve."""
    n = count_rows(task.data)
    task.trial = Trial()
    with watched(original) as calls:
        task.trial = _first_call(task, spread(n, FEW_ROWS))
    check_calls(calls)
    check_views(original, task.trial.changing)
    rows = _with_samples(task, _how_many(task, n), n)
    losses, mask = run_plain(task, rows)
    if losses.dtype not in (torch.float32, torch.float64):
        raise PatterningError(
            f"the loss returned numbers of type {losses.dtype}: it must return float32, losses.float()"
        )
    task.trial = replace(task.trial, masked=mask is not None)
    check_sizes(task, rows, losses)
    check_same_twice(task, rows, losses, mask)
    check_finite(rows, losses, mask)
    task.trial = rounding(task, rows, losses[kept(losses, mask)])
    check_company(task, rows, losses, mask)
    count = max(1, min(GRADIENT_ROWS, len(rows), GRADIENT_CELLS * len(losses) // losses.numel()))
    some = _with_samples(task, rows[spread(len(rows), count)], n)
    check_reads(task, original, some)
    notes = (*task.trial.notes, *check_gradient(task, some, original))
    check_ignored(task, rows, losses, mask)
    samples = losses.numel() // len(losses)
    task.trial = replace(task.trial, samples_per_row=samples, notes=notes)
    return _vectorised(task, rows, torch.where(kept(losses, mask), losses, 0.0).flatten())


def tried_losses(task: Triable, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Some rows, and their losses at w* now, 0 where there is no sample."""
    losses, mask = run_plain(task, rows)
    return rows, torch.where(kept(losses, mask), losses, 0.0)


def check_still_the_same(task: Triable, rows: Tensor, before: Tensor) -> None:
    """The losses of `rows` at w* must be `before`, as they were when the task was made."""
    _, after = tried_losses(task, rows)
    allowed = task.trial.slack + 10 * ROUNDING * before.abs()
    if after.shape != before.shape or not bool(((after - before).abs() <= allowed).all()):
        raise PatterningError(
            f"the loss of the same rows at w* was {float(before.mean()):.6g} when the task was made, and is "
            f"{float(after.mean()):.6g} now: a call of it changes something outside of the module (a counter, a cache, "
            "an average, or the data), so that its numbers depend on when it is called. What was computed with it is "
            "no result: keep such state out of the loss. Where the module or the data were changed after the task was "
            "made, make it anew"
        )


def _first_call(task: Triable, rows: Tensor) -> Trial:
    """What a call changes in the module, on a scratch copy, and whether the loss differentiates by its inputs."""
    own = {name: value[0] for name, value in task.named(task.own_row()[None]).items()}
    given, frozen = {name: value.clone() for name, value in own.items()}, _frozen(task.module)
    switches = torch.get_default_dtype(), torch.get_num_threads()
    for differentiates in (False, True):
        task.trial = replace(task.trial, differentiates=differentiates)
        scratch = scratch_copy(task.module)
        before = state_of(scratch)
        try:
            with torch.no_grad():
                task.answer(rows, given, module=scratch)
            break
        except Exception as error:
            if differentiates or "does not require grad" not in str(error):
                run_plain(task, rows, given)  # says it in a sentence
                raise
    if switches != (torch.get_default_dtype(), torch.get_num_threads()):
        torch.set_default_dtype(switches[0])
        torch.set_num_threads(switches[1])
        raise PatterningError(
            "a call of the module or its loss changes PyTorch's default number type or its threads, which all else "
            "computes with: do that once, before the task is made"
        )
    changed = [name for name, value in own.items() if not same_values(value, given[name])]
    _check_unwritten(changed or ["frozen ones"] * (frozen != _frozen(task.module)))
    task.trial = replace(task.trial, changing=changed_places(before, scratch))
    _check_elsewhere(task, rows, own)
    return task.trial


def _check_elsewhere(task: Triable, rows: Tensor, own: Mapping[str, Tensor]) -> None:
    """A call must not write into its parameters away from w* either: weights that it clips may be in bounds there."""
    given = displaced(own, 0)
    before = {name: value.clone() for name, value in given.items()}
    run_plain(task, rows, given)
    _check_unwritten([name for name, value in given.items() if not same_values(before[name], value)])


def _check_unwritten(changed: list[str]) -> None:
    if changed:
        raise PatterningError(
            f"a call of the module or its loss changes its parameters ({', '.join(changed[:3])}) in place: what a call "
            "changes must be a buffer, and a constraint on a parameter belongs into forward "
            "(self.weight.clamp(-1, 1))"
        )


def _frozen(module: nn.Module) -> list[tuple[int, float]]:
    return [(p._version, float(p.detach().sum())) for p in module.parameters() if not p.requires_grad]


def _how_many(task: Triable, n: int) -> Tensor:
    """Rows to try: more where a forward pass is quick."""
    few = spread(n, FEW_ROWS)
    begun = time.perf_counter()
    run_plain(task, few)
    return spread(n, MOST_ROWS) if time.perf_counter() - begun < QUICK else few


def _with_samples(task: Triable, rows: Tensor, n: int) -> Tensor:
    """The rows, if they hold a sample; else as many of which one does. Raises where all the data is masked."""
    for part in (rows, *torch.arange(n).split(MOST_ROWS)):
        losses, mask = run_plain(task, part)
        if mask is not None and not bool((mask.isfinite() & (mask >= 0)).all()):
            raise PatterningError("the mask (the second of the pair that the loss returns) must be finite and >= 0")
        if bool(kept(losses, mask).any()):
            return part
    raise PatterningError("every sample is masked: the data holds no sample")


def _vectorised(task: Triable, rows: Tensor, losses: Tensor) -> Trial:
    """What vmap can take: two replicas with rows of their own, with the same rows, or none."""
    trial, flat, notes = task.trial, task.own_row().expand(2, -1), list[str]()
    levels: list[tuple[Literal["rows", "parameters"], Callable[[], Tensor]]] = [
        ("rows", lambda: rows.expand(2, -1).contiguous()),
        ("parameters", lambda: rows.expand(2, -1)),
    ]
    for level, index in levels:
        task.trial = replace(trial, vectorise=level)
        try:
            with torch.no_grad():
                together = task.sample_losses(flat, index())
            if all(same(replica, losses, trial.slack) for replica in together):
                return replace(trial, vectorise=level, notes=(*trial.notes, *notes))
            reason = "the losses are other ones there"
        except PatterningError:
            raise
        except Exception as error:
            reason = reason_of(error)
        what = "with rows of their own" if level == "rows" else ""
        notes.append(
            f"chains {what} run one after the other, which is slower and gives the same numbers: torch.func.vmap "
            f"cannot run this model for several at once ({shorten(reason, 120, placeholder=' …')})".replace("  ", " ")
        )
    return replace(trial, vectorise="none", notes=(*trial.notes, *notes[-1:]))
