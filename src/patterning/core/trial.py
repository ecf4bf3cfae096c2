"""What a model and its loss can do, tried in seconds before anything is computed with them.

Everything is tried on a few rows, at the module's own parameters and at others: the shape of the losses at two batch
sizes, that they are finite, the same twice, the same alone and in company, that they depend on the parameters and have
a gradient, and how many replicas `torch.func.vmap` can run at a time. A refusal names the reason and the remedy.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from patterning.core.batch import as_batch, count_rows
from patterning.core.modules import attributes_of, changed_attributes, displaced, spread
from patterning.errors import PatterningError

if TYPE_CHECKING:
    from patterning.core.task import LossTask

MOST_ROWS = 64
FEW_ROWS = 4
QUICK = 0.05
"""Seconds for a forward pass over a few rows, up to which more are tried."""

TOO_FAR = 0.02
"""Share by which differences of the loss may miss its gradient."""

STEPS = (3e-3, 1e-3, 3e-4)
"""Of differences, as shares of the parameters' size."""

TOLERANCE = {"rtol": 2e-3, "atol": 2e-4}
"""Of a loss computed in another order, in float32."""


@dataclass(frozen=True)
class Trial:
    """What was found out: t samples a row; whether the loss returns a mask; what vmap can take; what changes.

    `vectorise`: replicas can be run together on rows of their own ("rows"), on the same rows only ("parameters"), or
    not at all ("none"). `changing`: attributes that a forward pass changes. `notes`: sentences for the user.
    """

    samples_per_row: int = 1
    masked: bool = False
    vectorise: Literal["rows", "parameters", "none"] = "none"
    changing: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def losses_and_mask(answer: object, rows: int) -> tuple[Tensor, Tensor | None]:
    """What a loss returned for `rows` rows, checked: losses (b,) or (b, t), and a mask of that shape or None.

    Raises `PatterningError` for anything else.
    """
    losses, mask = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        what = f"numbers of type {losses.dtype}" if isinstance(losses, Tensor) else type(losses).__name__
        raise PatterningError(f"the loss returned {what}: it must return a tensor of losses, or (losses, mask)")
    if losses.ndim not in (1, 2) or len(losses) != rows or losses.numel() == 0:
        raise PatterningError(
            f"the loss gave shape {tuple(losses.shape)} for {rows} rows: it must return one loss a row, shape (b,), "
            "or one for each of the t samples a row holds, shape (b, t) (reduction='none')"
        )
    if mask is None:
        return losses, None
    if not isinstance(mask, Tensor) or mask.shape not in (losses.shape, losses.shape[:1]):
        what = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise PatterningError(
            f"the mask that the loss returns is {what} for losses {tuple(losses.shape)}: it must be of the same shape "
            "(or (b,), for whole rows), True where there is a sample"
        )
    if mask.shape != losses.shape:
        mask = mask[:, None].expand_as(losses)
    return losses, mask


def check_base_weights(weights: object, rows: int) -> Tensor:
    """Base weights (n,) as a tensor, 1 for each row where there are none; raises `PatterningError` for bad ones."""
    if weights is None:
        return torch.ones(rows)
    found = as_batch(weights)
    if not isinstance(found, Tensor) or found.shape != (rows,):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise PatterningError(f"base_weights must be {rows} numbers, one a row (got {shape})")
    found = found.cpu()
    if not bool(torch.isfinite(found).all() and (found >= 0).all() and found.any()):
        raise PatterningError(f"base_weights must be {rows} finite numbers >= 0, not all 0")
    return found


def try_task(task: "LossTask", original: nn.Module) -> Trial:
    """Try a task whose module is a copy of `original`; raises `PatterningError` where it cannot serve."""
    n, before = count_rows(task.data), attributes_of(task.module)
    with _watched(original) as calls:
        rows = _with_samples(task, _how_many(task, n), n)
        losses, mask = _run(task, rows)
    changing = changed_attributes(before, task.module)
    for path, attribute in changing:
        part, old = task.module.get_submodule(path), before.get((path, attribute), None)
        if (path, attribute) in before:
            part.__dict__[attribute] = old
        else:
            part.__dict__.pop(attribute, None)
    task.trial = trial = Trial(masked=mask is not None, changing=changing)
    if calls:
        raise PatterningError(
            "the loss calls the module it was written with: it must call the one that it is given, loss(module, batch)"
        )
    _check_sizes(task, rows, losses)
    _check_repeats(task, rows, losses, mask)
    _check_finite(rows, losses, mask)
    _check_gradient(task, rows[: max(FEW_ROWS, 1)])
    _check_ignored(task, rows, losses, mask)
    samples = losses.numel() // len(losses)
    task.trial = replace(trial, samples_per_row=samples)
    return _vectorised(task, rows, torch.where(_kept(losses, mask), losses, 0.0).flatten())


def _how_many(task: "LossTask", n: int) -> Tensor:
    """Rows to try: more where a forward pass is quick."""
    few = spread(n, FEW_ROWS)
    _run(task, few)
    begun = time.perf_counter()
    _run(task, few)
    return spread(n, MOST_ROWS) if time.perf_counter() - begun < QUICK else few


def _with_samples(task: "LossTask", rows: Tensor, n: int) -> Tensor:
    """The rows, if they hold a sample; else as many of which one does. Raises where all the data is masked."""
    for part in (rows, *torch.arange(n).split(MOST_ROWS)):
        losses, mask = _run(task, part)
        if mask is not None and not bool((mask.isfinite() & (mask >= 0)).all()):
            raise PatterningError("the mask (the second of the pair that the loss returns) must be finite and >= 0")
        if bool(_kept(losses, mask).any()):
            return part
    raise PatterningError("every sample is masked: the data holds no sample")


def _run(task: "LossTask", rows: Tensor, parameters: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor | None]:
    """One plain pass, with whatever goes wrong as one sentence."""
    try:
        with torch.no_grad():
            return task.answer(rows, parameters)
    except PatterningError:
        raise
    except Exception as error:
        raise PatterningError(f"the module or its loss cannot run on the data: {_reason(error)}") from error


def _check_sizes(task: "LossTask", rows: Tensor, losses: Tensor) -> None:
    """At another batch size the number of samples in a row must be the same."""
    other = rows[: (len(rows) + 1) // 2] if len(rows) > 1 else rows.repeat(2)
    again, _ = _run(task, other)
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


def _check_repeats(task: "LossTask", rows: Tensor, losses: Tensor, mask: Tensor | None) -> None:
    """The same twice; and the same in other company, other order and alone."""
    again, _ = _run(task, rows)
    kept = _kept(losses, mask)
    if not _same(again[kept], losses[kept]):
        raise PatterningError(
            "the loss is not the same twice at the same parameters: something is random. The module runs in evaluation "
            "mode; a call such as F.dropout(x, p) needs training=self.training"
        )
    for order in (torch.arange(len(rows)).flip(0)[: (len(rows) + 1) // 2], torch.zeros(1, dtype=torch.int64)):
        part, own = _run(task, rows[order])
        both = kept[order]
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
        elsewhere = _run(task, rows, moved)[1]
        if elsewhere is None or not torch.equal(mask.float(), elsewhere.float()):
            raise PatterningError("the mask changes with the model's parameters: it must follow from the data alone")


def _check_finite(rows: Tensor, losses: Tensor, mask: Tensor | None) -> None:
    bad = ~losses.isfinite() & _kept(losses, mask)
    if bool(bad.any()):
        place = bad.nonzero()[0]
        row = int(rows[place[0]])
        where = f"sample {row}" if losses.ndim == 1 else f"row {row}, position {int(place[1])},"
        raise PatterningError(f"the loss of {where} is NaN or infinite at these parameters")


def _check_gradient(task: "LossTask", rows: Tensor) -> None:
    """The loss must have a finite gradient, that is not all zero and agrees with differences of the loss."""
    own = {name: value[0] for name, value in task.named(task.own_row()[None]).items()}
    sizes = []
    for parameters in (own, displaced(own, 0)):
        slopes = _gradient(task, rows, parameters)
        if parameters is own and any(not bool(slope.isfinite().all()) for slope in slopes.values()):
            raise PatterningError("the gradient of the loss is NaN or infinite at these parameters")
        sizes.append(max((float(slope.nan_to_num().abs().max()) for slope in slopes.values()), default=0.0))
        _check_differences(task, rows, parameters, slopes)
        _check_reached(task, rows, parameters, slopes)
    if max(sizes) == 0:
        raise PatterningError(
            "the loss does not depend on the module's parameters: it must call the module that it is given, "
            "loss(module, batch), and must not detach its outputs or run under torch.no_grad()"
        )


def _gradient(task: "LossTask", rows: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the sum of the losses, by parameter; those that the loss does not depend on are left out."""
    values = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    try:
        losses, mask = task.answer(rows, values)
        total = losses[_kept(losses, mask)].sum()
        if not total.requires_grad:
            return {}
        slopes = torch.autograd.grad(total, list(values.values()), allow_unused=True)
    except PatterningError:
        raise
    except Exception as error:
        raise PatterningError(
            f"the loss has no gradient in the module's parameters: {_reason(error)} (gradient checkpointing must be "
            "off)"
        ) from error
    return {name: slope for name, slope in zip(values, slopes, strict=True) if slope is not None}


def _check_reached(task: "LossTask", rows: Tensor, parameters: dict[str, Tensor], slopes: dict[str, Tensor]) -> None:
    """What the gradient does not reach must not matter to the loss: a chain would not feel the loss there."""
    rest = {name: value for name, value in parameters.items() if name not in slopes}
    if not rest or not slopes:
        return
    before, mask = _run(task, rows, parameters)
    for name, value in rest.items():
        moved = displaced({name: value}, 1)
        after, _ = _run(task, rows, {**parameters, **moved})
        if not _same(before[_kept(before, mask)], after[_kept(before, mask)]):
            raise PatterningError(
                f"the loss depends on parameter {name}, but its gradient does not reach it. Gradient checkpointing "
                "must be off, and nothing on the way may be detached; or freeze it with requires_grad_(False)"
            )


def _check_differences(
    task: "LossTask", rows: Tensor, parameters: dict[str, Tensor], slopes: dict[str, Tensor]
) -> None:
    """The gradient must be that of the loss: compared with central differences along itself.

    It is not where a part of the model is computed again in the backward pass (gradient checkpointing), by then with
    other parameters, or where a function has a wrong derivative.
    """
    square = sum(float(slope.double().square().sum()) for slope in slopes.values())
    size = math.sqrt(sum(float(value.double().square().sum()) for value in parameters.values()))
    if not (square > 0 and math.isfinite(square)):
        return
    misses = []
    for share in STEPS:
        step, totals = share * (size + 1e-3) / math.sqrt(square), []
        for sign in (1, -1):
            moved = {name: value + sign * step * slopes.get(name, 0.0) for name, value in parameters.items()}
            losses, mask = _run(task, rows, moved)
            totals.append(float(losses[_kept(losses, mask)].double().sum()))
        misses.append((totals[0] - totals[1]) / (2 * step * square) - 1)
    # Rounding and curvature would give each step another miss: only one that all steps agree on is the gradient's.
    least = min(misses, key=abs)
    if all(math.isfinite(miss) for miss in misses) and abs(least) > TOO_FAR + 2 * (max(misses) - min(misses)):
        raise PatterningError(
            f"the gradient of the loss is not that of its values: along the gradient the loss changes {1 + least:.3g} "
            "times as much as it says. Gradient checkpointing must be off, and functions of your own must have the "
            "right backward"
        )


def _check_ignored(task: "LossTask", rows: Tensor, losses: Tensor, mask: Tensor | None) -> None:
    """Losses of exactly 0 whatever the parameters are: padding that a loss ignored, and that must not be a sample."""
    if losses.ndim == 1:
        return
    still = (losses == 0) & _kept(losses, mask)
    own = task.named(task.own_row()[None])
    for number in range(3):
        if not bool(still.any()):
            return
        parameters = {name: value[0] for name, value in displaced(own, number).items()}
        still &= _run(task, rows, parameters)[0] == 0
    if bool(still.any()):
        row, position = (int(i) for i in still.nonzero()[0])
        raise PatterningError(
            f"the loss of {int(still.sum())} of {still.numel()} samples (first: row {int(rows[row])}, position "
            f"{position}) is exactly 0 at any parameters, as ignore_index leaves it at padding. Return a pair (losses, "
            "mask), with mask False where there is no sample (labels != -100, say); where these are samples, return "
            "(losses, torch.ones_like(losses))"
        )


def _vectorised(task: "LossTask", rows: Tensor, losses: Tensor) -> Trial:
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
            if all(_same(replica, losses) for replica in together):
                return replace(trial, vectorise=level, notes=tuple(notes))
            reason = "the losses are other ones there"
        except PatterningError:
            raise
        except Exception as error:
            reason = _reason(error)
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


def _kept(losses: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones_like(losses, dtype=torch.bool) if mask is None else mask > 0


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, **TOLERANCE, equal_nan=True)


def _reason(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]
