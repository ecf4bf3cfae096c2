"""What a model and its loss can do, tried in seconds before anything is computed with them.

Everything is tried on a few rows, at the module's own parameters and at others: the shape of the losses at two batch
sizes, that they are finite, the same twice, the same alone and in company, that they depend on the parameters and have
a gradient, and how many replicas `torch.func.vmap` can run at a time. A refusal names the reason and the remedy.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from patterning.core.answers import TOLERANCE, Triable, Trial, kept, reason_of, run_plain, same
from patterning.core.batch import as_batch, count_rows
from patterning.core.errors import PatterningError
from patterning.core.modules import attributes_of, changed_attributes, displaced, put_back, spread
from patterning.core.trial_gradient import check_gradient
from patterning.core.trial_writes import check_writes

MOST_ROWS = 64
FEW_ROWS = 4
QUICK = 0.05
"""Seconds for a forward pass over a few rows, up to which more are tried."""


def check_base_weights(weights: object, rows: int) -> Tensor:
    """Base weights (n,) as a tensor, 1 for each row where there are none; raises `PatterningError` for bad ones."""
    if weights is None:
        return torch.ones(rows)
    found = as_batch(weights)
    if not isinstance(found, Tensor) or found.is_complex() or found.shape != (rows,):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise PatterningError(f"base_weights must be {rows} numbers, one a row (got {shape})")
    found = found.cpu()
    if not bool(torch.isfinite(found).all() and (found >= 0).all() and found.any()):
        raise PatterningError(f"base_weights must be {rows} finite numbers >= 0, not all 0")
    return found


def try_task(task: Triable, original: nn.Module) -> Trial:
    """Try a task whose module is a copy of `original`; raises `PatterningError` where it cannot serve."""
    n, before = count_rows(task.data), attributes_of(task.module)
    check_writes(task, spread(n, FEW_ROWS))
    with _watched(original) as calls:
        rows = _with_samples(task, _how_many(task, n), n)
        losses, mask = run_plain(task, rows)
    changing = changed_attributes(before, task.module)
    put_back(before, task.module, changing)
    task.trial = trial = Trial(masked=mask is not None, changing=changing)
    if changing:
        losses, mask = run_plain(task, rows)  # as every call finds the module from now on
    if calls:
        raise PatterningError(
            "the loss calls the module it was written with: it must call the one that it is given, loss(module, batch)"
        )
    _check_sizes(task, rows, losses)
    _check_repeats(task, rows, losses, mask)
    _check_finite(rows, losses, mask)
    check_gradient(task, rows[: max(FEW_ROWS, 1)])
    _check_ignored(task, rows, losses, mask)
    samples = losses.numel() // len(losses)
    task.trial = replace(trial, samples_per_row=samples)
    return _vectorised(task, rows, torch.where(kept(losses, mask), losses, 0.0).flatten())


def _how_many(task: Triable, n: int) -> Tensor:
    """Rows to try: more where a forward pass is quick."""
    few = spread(n, FEW_ROWS)
    run_plain(task, few)
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


def _check_sizes(task: Triable, rows: Tensor, losses: Tensor) -> None:
    """At another batch size the number of samples in a row must be the same."""
    other = rows[: (len(rows) + 1) // 2] if len(rows) > 1 else rows.repeat(2)
    again, _ = run_plain(task, other)
    if losses.shape[1:] == again.shape[1:]:
        return
    if losses.shape[1] == len(rows) and again.shape[1] == len(other):
        raise PatterningError(
            f"the loss gave shape {tuple(losses.shape)} for {len(rows)} rows and {tuple(again.shape)} for "
            f"{len(other)}: every row is compared with every other. Are outputs (b, 1) subtracted from targets (b,)? "
            "Use outputs.squeeze(1)"
        )
    raise PatterningError(
        f"the loss gave shape {tuple(losses.shape)} for {len(rows)} rows and {tuple(again.shape)} for {len(other)}: "
        "the number of samples in a row must not change from batch to batch. Pad all rows to one length, and return "
        "(losses, mask)"
    )


def _check_repeats(task: Triable, rows: Tensor, losses: Tensor, mask: Tensor | None) -> None:
    """The same twice; and the same in other company, other order and alone."""
    again, _ = run_plain(task, rows)
    real = kept(losses, mask)
    if not same(again[real], losses[real]):
        raise PatterningError(
            "the loss is not the same twice at the same parameters: something is random. The module runs in evaluation "
            "mode; a call such as F.dropout(x, p) needs training=self.training"
        )
    for order in (torch.arange(len(rows)).flip(0)[: (len(rows) + 1) // 2], torch.zeros(1, dtype=torch.int64)):
        part, own = run_plain(task, rows[order])
        both = real[order]
        bad = ~torch.isclose(part, losses[order], **TOLERANCE, equal_nan=True) & both
        if bool(bad.any()):
            place = bad.nonzero()[0]
            row = int(order[place[0]])
            where = (row, *(int(i) for i in place[1:]))
            raise PatterningError(
                f"the loss of row {int(rows[row])} is {float(losses[where]):.4g} in one batch and "
                f"{float(part[tuple(place)]):.4g} in another: it depends on the other rows of its batch. Are outputs "
                "(b, 1) subtracted from targets (b,)? Does the loss use batch statistics?"
            )
        if mask is not None and own is not None and not torch.equal(mask[order].float(), own.float()):
            raise PatterningError("the mask of a row depends on the other rows of its batch: it must not")
    if mask is not None:
        moved = {name: value[0] for name, value in displaced(task.named(task.own_row()[None]), 0).items()}
        elsewhere = run_plain(task, rows, moved)[1]
        if elsewhere is None or not torch.equal(mask.float(), elsewhere.float()):
            raise PatterningError("the mask changes with the model's parameters: it must follow from the data alone")


def _check_finite(rows: Tensor, losses: Tensor, mask: Tensor | None) -> None:
    bad = ~losses.isfinite() & kept(losses, mask)
    if bool(bad.any()):
        place = bad.nonzero()[0]
        row = int(rows[place[0]])
        where = f"sample {row}" if losses.ndim == 1 else f"row {row}, position {int(place[1])},"
        raise PatterningError(f"the loss of {where} is NaN or infinite at these parameters")


def _check_ignored(task: Triable, rows: Tensor, losses: Tensor, mask: Tensor | None) -> None:
    """Losses of exactly 0 whatever the parameters are: padding that a loss ignored, and that must not be a sample."""
    if losses.ndim == 1:
        return
    still = (losses == 0) & kept(losses, mask)
    own = task.named(task.own_row()[None])
    for number in range(3):
        if not bool(still.any()):
            return
        parameters = {name: value[0] for name, value in displaced(own, number).items()}
        still &= run_plain(task, rows, parameters)[0] == 0
    if bool(still.any()):
        row, position = (int(i) for i in still.nonzero()[0])
        raise PatterningError(
            f"the loss of {int(still.sum())} of {still.numel()} samples (first: row {int(rows[row])}, position "
            f"{position}) is exactly 0 at any parameters, as ignore_index leaves it at padding. Return a pair (losses, "
            "mask), with mask False where there is no sample (labels != -100, say); where these are samples, return "
            "(losses, torch.ones_like(losses))"
        )


def _vectorised(task: Triable, rows: Tensor, losses: Tensor) -> Trial:
    """What vmap can take: two replicas with rows of their own, with the same rows, or none."""
    trial, flat, notes = task.trial, task.own_row().expand(2, -1), []
    levels: list[tuple[Literal["rows", "parameters"], Callable[[], Tensor]]] = [
        ("rows", lambda: rows.expand(2, -1).contiguous()),
        ("parameters", lambda: rows.expand(2, -1)),
    ]
    for level, index in levels:
        task.trial = replace(trial, vectorise=level)
        try:
            with torch.no_grad():
                together = task.sample_losses(flat, index())
            if all(same(replica, losses) for replica in together):
                return replace(trial, vectorise=level, notes=tuple(notes))
            reason = "the losses are other ones there"
        except PatterningError:
            raise
        except Exception as error:
            reason = reason_of(error)
        what = "on rows of their own" if level == "rows" else "on the same rows"
        notes.append(f"replicas {what} run one after the other, as torch.func.vmap cannot run them: {reason[:90]}")
    return replace(trial, vectorise="none", notes=tuple(notes[-1:]))


class _watched:  # noqa: N801
    """Calls of a module while the context lasts: a list that holds one entry a call."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._calls = module, list[None]()

    def __enter__(self) -> list[None]:
        self._handle = self._module.register_forward_pre_hook(lambda *_: self._calls.append(None))
        return self._calls

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
