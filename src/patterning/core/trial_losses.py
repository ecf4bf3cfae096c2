"""What a trial asks of the losses themselves: one for each sample, finite, and the same whenever they are asked for."""

from dataclasses import replace

import torch
from torch import Tensor

from patterning.core.answers import SHARE, TRIMMED, Triable, Trial, differing, identical, kept, run_plain
from patterning.core.errors import PatterningError
from patterning.core.modules import displaced

IGNORED_TRIES = 8
"""Displaced parameters, every other one with its sign turned, at which a loss must be 0 to count as ignored."""
MOST_CONSTANT = 1e4
"""Times by which losses may exceed what changes in them."""
COARSE = 2e-3
"""Rounding, as a share of what other parameters change, from which on a note says so."""


def check_sizes(task: Triable, rows: Tensor, losses: Tensor) -> None:
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


def check_same_twice(task: Triable, rows: Tensor, losses: Tensor, mask: Tensor | None) -> None:
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


def check_company(task: Triable, rows: Tensor, losses: Tensor, mask: Tensor | None) -> None:
    """The same in other company, other order and alone."""
    real, slack = kept(losses, mask), task.trial.slack
    alone = [torch.tensor([i]) for i in sorted({0, len(rows) - 1, _emptiest(real)})]
    fresh = torch.arange(len(rows)).roll(1)[:3]
    # never seen before: what a cache keeps of it would be of other parameters
    run_plain(task, rows[fresh], {name: v[0] for name, v in displaced(task.named(task.own_row()[None]), 3).items()})
    for order in (fresh, torch.arange(len(rows)).flip(0)[: (len(rows) + 1) // 2], *alone):
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
                "(b, 1) subtracted from targets (b,)? Does the loss use batch statistics, or keep something of an "
                "earlier call (a cache)?"
            )
        if mask is not None and own is not None and not torch.equal(mask[order].float(), own.float()):
            raise PatterningError(
                "the mask of a row depends on the other rows of its batch: it must not. A pair that a loss returns is "
                "(losses, mask): losses of two heads are to be added"
            )
    if mask is not None:
        moved = {name: value[0] for name, value in displaced(task.named(task.own_row()[None]), 0).items()}
        elsewhere = run_plain(task, rows, moved)[1]
        if elsewhere is None or not torch.equal(mask.float(), elsewhere.float()):
            raise PatterningError("the mask changes with the model's parameters: it must follow from the data alone")


def _emptiest(real: Tensor) -> int:
    """The row with the fewest samples."""
    return int(real.reshape(len(real), -1).sum(1).argmin())


def check_finite(rows: Tensor, losses: Tensor, mask: Tensor | None) -> None:
    """Raise for the first sample whose loss is NaN or infinite."""
    bad = ~losses.isfinite() & kept(losses, mask)
    if bool(bad.any()):
        place = [int(i) for i in bad.nonzero()[0]]
        where = f"row {int(rows[place[0]])}" + (f", position {place[1]}," if len(place) > 1 else "")
        raise PatterningError(
            f"the loss of {where} is NaN or infinite at these parameters: leave it out, mend its data, or mask it"
        )


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


def rounding(task: Triable, rows: Tensor, losses: Tensor) -> Trial:
    """Nats by which losses may differ through rounding: a share of what they are, or of what rounded parameters cost.

    Losses much below the numbers that they come of (1 - 0.999999) are rounded by more than a share of themselves; those
    that hold a large constant lose to it what tells parameters apart.
    """
    noise, rng = 0.0, torch.Generator().manual_seed(0)
    own = {name: value[0] for name, value in task.named(task.own_row()[None]).items()}
    for _ in range(2):
        moved = {}
        for name, value in own.items():
            sign = torch.randint(2, value.shape, generator=rng).to(value) * 2 - 1
            moved[name] = value * (1 + torch.finfo(torch.float32).eps * sign)
        noise = max(noise, _mean_change(task, rows, moved, losses, most=True))
    size, span = float(losses.abs().mean()), _mean_change(task, rows, displaced(own, 0), losses)
    if span > 0 and size > MOST_CONSTANT * span:
        raise PatterningError(
            f"the losses are about {size:.3g} nats, of which all but {span:.2g} stay the same at other parameters: "
            "float32 leaves too few digits of what changes. Subtract the constant from the loss"
        )
    notes = task.trial.notes
    if noise > COARSE * span > 0:
        notes = (*notes, f"losses are rounded by up to {noise:.1g} nats: the module or the loss computes coarsely")
    scale = min(size, span) if span > 0 else size
    return replace(task.trial, slack=SHARE * scale + 8 * noise, rounding=noise, notes=notes)


def _mean_change(
    task: Triable, rows: Tensor, parameters: dict[str, Tensor], losses: Tensor, *, most: bool = False
) -> float:
    """How much losses change at other parameters, on average (or the `most`); 0 where that is not finite."""
    again, mask = run_plain(task, rows, parameters)
    real = kept(again, mask)
    if int(real.sum()) != losses.numel():
        return 0.0
    change = (again[real] - losses).abs()
    change = change[change.isfinite()]
    return 0.0 if not change.numel() else float(change.max() if most else change.mean())
