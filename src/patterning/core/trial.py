"""What a model and its loss can do, tried in seconds before anything is computed with them.

Everything is tried on a few rows, at the module's own parameters and at others: the shape of the losses at two batch
sizes, that they are finite, the same twice, the same alone and in company, that they depend on the parameters that they
are given and on no others, that they have the gradient of their values, and how many replicas `torch.func.vmap` can run
at a time. A refusal names the reason and the remedy.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from patterning.core.answers import (
    ROUNDING,
    SHARE,
    TRIMMED,
    Triable,
    Trial,
    differing,
    identical,
    kept,
    reason_of,
    run_plain,
    same,
)
from patterning.core.batch import as_batch, count_rows
from patterning.core.errors import PatterningError
from patterning.core.modules import displaced, spread
from patterning.core.outside import check_calls, check_reads, check_views, watched
from patterning.core.state import changed_places, scratch_copy, state_of
from patterning.core.trial_gradient import check_gradient

MOST_ROWS = 64
FEW_ROWS = 4
GRADIENT_ROWS, GRADIENT_CELLS = 16, 256
"""Most rows, and samples in them, whose gradient is tried."""
IGNORED_TRIES = 8
"""Displaced parameters, every other one with its sign turned, at which a loss must be 0 to count as ignored."""
QUICK = 0.05
"""Seconds for a forward pass over a few rows, up to which more are tried."""


def check_base_weights(weights: object, rows: int) -> Tensor:
    """Base weights (n,) as a tensor, 1 for each row where there are none; raises `PatterningError` for bad ones."""
    if weights is None:
        return torch.ones(rows)
    try:
        found = as_batch(weights)
    except PatterningError:
        found = weights
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
    task.trial = replace(task.trial, masked=mask is not None)
    _check_sizes(task, rows, losses)
    _check_same_twice(task, rows, losses, mask)
    _check_finite(rows, losses, mask)
    task.trial = replace(task.trial, slack=_slack(task, rows, losses[kept(losses, mask)]))
    _check_company(task, rows, losses, mask)
    count = max(1, min(GRADIENT_ROWS, len(rows), GRADIENT_CELLS * len(losses) // losses.numel()))
    some = _with_samples(task, rows[spread(len(rows), count)], n)
    check_reads(task, original, some)
    notes = check_gradient(task, some, original)
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
    off = (after - before).abs() - task.trial.slack - 10 * ROUNDING * before.abs()
    if after.shape != before.shape or bool((off > 0).any()) or bool(after.isnan().any()):
        raise PatterningError(
            f"the loss of the same rows at w* was {float(before.mean()):.6g} when the task was made, and is "
            f"{float(after.mean()):.6g} now: a call of it changes something outside of the module (a counter, a cache, "
            "an average, or the data), so that its numbers depend on when it is called. What was computed with it is "
            "no result: keep such state out of the loss"
        )


def _first_call(task: Triable, rows: Tensor) -> Trial:
    """What a call changes in the module, on a scratch copy, and whether the loss differentiates by its inputs."""
    own = {name: value[0] for name, value in task.named(task.own_row()[None]).items()}
    given, frozen = {name: value.clone() for name, value in own.items()}, _frozen(task.module)
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
    changed = [name for name, value in own.items() if not torch.equal(value.nan_to_num(), given[name].nan_to_num())]
    if changed or frozen != _frozen(task.module):
        raise PatterningError(
            f"a call of the module or its loss changes its parameters ({', '.join(changed[:3]) or 'frozen ones'}) in "
            "place: what a call changes must be a buffer, and a constraint on a parameter belongs into forward "
            "(self.weight.clamp(-1, 1))"
        )
    return replace(task.trial, changing=changed_places(before, scratch))


def _frozen(module: nn.Module) -> list[tuple[int, float]]:
    return [(p._version, float(p.detach().sum())) for p in module.parameters() if not p.requires_grad]


def _how_many(task: Triable, n: int) -> Tensor:
    """Rows to try: more where a forward pass is quick."""
    few = spread(n, FEW_ROWS)
    begun = time.perf_counter()
    run_plain(task, few)
    return spread(n, MOST_ROWS) if time.perf_counter() - begun < QUICK else few


def _slack(task: Triable, rows: Tensor, losses: Tensor) -> float:
    """Nats by which losses may differ through rounding: a share of their mean, or what rounded parameters cost.

    Losses much below the numbers that they come of (1 - 0.999999) are rounded by more than a share of themselves.
    """
    noise = 0.0
    rng = torch.Generator().manual_seed(0)
    for _ in range(2):
        moved = {}
        for name, value in task.named(task.own_row()[None]).items():
            sign = torch.randint(2, value[0].shape, generator=rng, dtype=torch.float32).to(value) * 2 - 1
            moved[name] = value[0] * (1 + torch.finfo(torch.float32).eps * sign)
        again, mask = run_plain(task, rows, moved)
        off = (again[kept(again, mask)] - losses).abs()
        noise = max(noise, float(off.max())) if bool(off.isfinite().all()) else noise
    return SHARE * float(losses.abs().mean()) + 8 * noise


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
        f"{TRIMMED}"
    )


def _check_same_twice(task: Triable, rows: Tensor, losses: Tensor, mask: Tensor | None) -> None:
    """The same again, up to the order in which a GPU adds."""
    real = kept(losses, mask)
    for _ in range(2):
        again, _ = run_plain(task, rows)
        if not identical(again[real], losses[real]):
            raise PatterningError(
                "the loss is not the same twice at the same parameters: something is random, or a call changes "
                "something that the next one reads (a counter, a cache, the data). The module runs in evaluation "
                "mode; a call such as F.dropout(x, p) needs training=self.training"
            )


def _check_company(task: Triable, rows: Tensor, losses: Tensor, mask: Tensor | None) -> None:
    """The same in other company, other order and alone."""
    real, slack = kept(losses, mask), task.trial.slack
    alone = [torch.tensor([i]) for i in sorted({0, len(rows) - 1, _emptiest(real)})]
    for order in (torch.arange(len(rows)).flip(0)[: (len(rows) + 1) // 2], *alone):
        part, own = run_plain(task, rows[order])
        both = real[order]
        if part.shape != both.shape:
            raise PatterningError(
                f"the loss gave shape {tuple(losses.shape)} for {len(rows)} rows and {tuple(part.shape)} for row "
                f"{int(rows[order[0]])} alone: {TRIMMED}"
            )
        bad = differing(part, losses[order], slack) & both
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


def _emptiest(real: Tensor) -> int:
    """The row with the fewest samples."""
    return int(real.reshape(len(real), -1).sum(1).argmin())


def _check_finite(rows: Tensor, losses: Tensor, mask: Tensor | None) -> None:
    bad = ~losses.isfinite() & kept(losses, mask)
    if bool(bad.any()):
        place = bad.nonzero()[0]
        row = int(rows[place[0]])
        where = f"sample {row}" if losses.ndim == 1 else f"row {row}, position {int(place[1])},"
        raise PatterningError(f"the loss of {where} is NaN or infinite at these parameters")


def check_ignored(task: Triable, rows: Tensor, losses: Tensor, mask: Tensor | None) -> None:
    """Losses of exactly 0 whatever the parameters are: what a loss ignored, and that must not be a sample.

    A mask of all ones says that they are samples indeed.
    """
    if mask is not None and bool((mask == 1).all()):
        return
    still = (losses == 0) & kept(losses, mask)
    own = task.named(task.own_row()[None])
    for number in range(IGNORED_TRIES):
        if not bool(still.any()):
            return
        parameters = {name: (-1) ** number * value[0] for name, value in displaced(own, number).items()}
        still &= run_plain(task, rows, parameters)[0] == 0
    if bool(still.any()):
        place = [int(i) for i in still.nonzero()[0]]
        where = f"row {int(rows[place[0]])}" + (f", position {place[1]}" if len(place) > 1 else "")
        raise PatterningError(
            f"the loss of {int(still.sum())} of {still.numel()} samples (first: {where}) is exactly 0 at any "
            "parameters, as ignore_index leaves it at padding and at labels of -100. Return a pair (losses, mask), "
            "with mask False where there is no sample (labels != -100, say); where these are samples, return "
            "(losses, torch.ones_like(losses))"
        )


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
        what = "on rows of their own" if level == "rows" else "on the same rows"
        notes.append(f"replicas {what} run one after the other, as torch.func.vmap cannot run them: {reason[:90]}")
    return replace(trial, vectorise="none", notes=(*trial.notes, *notes[-1:]))
