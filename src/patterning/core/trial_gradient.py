"""Whether the gradient of a task's loss is there, is finite, and reaches every parameter that the loss feels."""

import torch
from torch import Tensor, nn

from patterning.core.answers import Triable, identical, kept, reason_of, run_plain
from patterning.core.differences import check_differences
from patterning.core.errors import PatterningError
from patterning.core.modules import displaced
from patterning.core.outside import check_leaves, inert_note, leaves_of

PLACES = 4
"""Displaced parameters at which a gradient of 0 is looked at again."""

Parameters = dict[str, Tensor]


def _masked(task: Triable, rows: Tensor) -> str:
    """What to do where losses that a mask leaves out are NaN or infinite, as NaN · 0 is NaN."""
    losses, mask = run_plain(task, rows)
    bad = ~losses.isfinite()
    if mask is None or not bool(bad.any()):
        return ""
    return (
        f": {int(bad.sum())} masked losses are, the first in row {int(rows[bad.nonzero()[0, 0]])}, and a mask does not "
        "take NaN out of a gradient. Put a number there before the loss: torch.where(mask, y, 0)"
    )


def check_gradient(task: Triable, rows: Tensor, original: nn.Module) -> tuple[str, ...]:
    """The loss must have a finite gradient, that is not all zero, reaches all it should and is that of its values.

    Returns a note on parameters that have no effect.
    """
    for name, part in original.named_modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse:
            raise PatterningError(
                f"module {name or type(part).__name__!r} has sparse gradients, which chains cannot follow: make it "
                "with sparse=False, its numbers are the same"
            )
    own = {name: value[0] for name, value in task.named(task.own_row()[None]).items()}
    places = [own, displaced(own, 0)]
    (slopes, met), (others, met_again) = (gradient(task, rows, parameters) for parameters in places)
    check_leaves(task, original, [leaf for leaf in met if any(leaf is other for other in met_again)])
    if any(not bool(slope.isfinite().all()) for slope in slopes.values()):
        raise PatterningError(f"the gradient of the loss is NaN or infinite at these parameters{_masked(task, rows)}")
    silent = {
        name: value
        for name, value in own.items()
        if all(not bool(found[name].nan_to_num().any()) for found in (slopes, others) if name in found)
    }
    reached = set(slopes)
    del slopes, others  # of a large model, a good part of the memory
    inert: Parameters = {}
    if len(silent) < len(own):
        inert = _check_reached(task, rows, places, {name: own[name] for name in silent if name not in reached})
        inert |= _check_flat(task, rows, own, {name: own[name] for name in silent if name in reached})
    for parameters in places:
        check_differences(task, rows, parameters, gradient)
    if len(silent) == len(own):
        raise PatterningError(
            "the loss does not depend on the module's parameters: it must call the module that it is given, "
            "loss(module, batch), and must not detach its outputs or run under torch.no_grad()"
        )
    return (inert_note(inert, len(rows)),) if inert else ()


def gradient(
    task: Triable, rows: Tensor, parameters: Parameters, *, exact: bool = False
) -> tuple[Parameters, list[Tensor]]:
    """Of the sum of the losses, by parameter, and what else that requires a gradient they were computed from.

    Parameters that the loss does not depend on are left out.
    """
    values = {name: (v.double() if exact else v).detach().clone().requires_grad_() for name, v in parameters.items()}
    try:
        with torch.enable_grad():
            losses, mask = task.answer(rows, values, exact=exact)
            total = losses[kept(losses, mask)].sum()
        if not total.requires_grad:
            return {}, []
        met = [leaf for leaf in leaves_of(total) if not any(leaf is value for value in values.values())]
        slopes = torch.autograd.grad(total, list(values.values()), allow_unused=True)
    except PatterningError:
        raise
    except Exception as error:
        remedy = "gradient checkpointing must be off"
        if "second time" in str(error):
            remedy = "a loss that calls torch.autograd.grad itself must do so with create_graph=True"
        raise PatterningError(
            f"the loss has no gradient in the module's parameters: {reason_of(error)[:160]} ({remedy})"
        ) from error
    return {name: slope for name, slope in zip(values, slopes, strict=True) if slope is not None}, met


def _check_reached(task: Triable, rows: Tensor, places: list[Parameters], rest: Parameters) -> Parameters:
    """What the gradient does not reach must not matter to the loss; returned, where it does not."""
    for parameters in places if rest else ():
        before, mask = run_plain(task, rows, parameters)

        def moves(
            names: list[str], at: Parameters = parameters, losses: Tensor = before, mask: Tensor | None = mask
        ) -> bool:
            moved = displaced({name: at[name] for name in names}, 1)
            after, _ = run_plain(task, rows, {**at, **moved})
            return not identical(after[kept(losses, mask)], losses[kept(losses, mask)])

        if moves(list(rest)):
            name = next((name for name in rest if moves([name])), next(iter(rest)))
            raise PatterningError(
                f"the loss depends on parameter {name}, but its gradient does not reach it. Gradient checkpointing "
                "must be off, and nothing on the way may be detached or rounded; or freeze it with "
                "requires_grad_(False)"
            )
    return rest


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether losses differ by rounding alone: a bias that cancels, enc(x) - enc(y), changes their last digits."""
    scale = float(b[b.isfinite()].abs().mean()) if bool(b.isfinite().any()) else 0.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-5 * scale, equal_nan=True)


def _check_flat(task: Triable, rows: Tensor, own: Parameters, rest: Parameters) -> Parameters:
    """Where the gradient is 0 wherever it is looked at, the loss must be the same there; returned, where it is."""
    inert = {}
    for name in rest:
        found = []
        for number in range(PLACES):
            moved = {**own, **displaced({name: own[name]}, number)}
            slopes, _ = gradient(task, rows, moved)
            if name in slopes and bool(slopes[name].any()):
                break
            losses, mask = run_plain(task, rows, moved)
            found.append(losses[kept(losses, mask)])
        else:
            if not all(_alike(losses, found[0]) for losses in found):
                raise PatterningError(
                    f"the loss depends on parameter {name}, but its gradient is 0 wherever it was tried: it moves in "
                    "steps (rounding, argmax), or a backward of your own returns 0. Make it smooth, or freeze it with "
                    "requires_grad_(False)"
                )
            inert[name] = own[name]
    return inert
