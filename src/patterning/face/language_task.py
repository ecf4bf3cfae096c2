"""Tasks of language models and classifiers that are called as Hugging Face's are, from a tokenizer's batch as it is.

Nothing here imports transformers: a model is known by what it has, a `config` and outputs with `logits`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.face.calling import (
    check_batch,
    check_below,
    config_of,
    forward_names,
    predicts_masked,
    unwrapped,
    vocabulary_of,
)
from patterning.face.language_loss import ClassifierLoss, LanguageLoss, targets
from patterning.face.own_loss import Compared, Key, compared, logits_in, mean_cross_entropy
from patterning.face.token_batch import IGNORED, token_batch

COMPARED_ROWS = 4
"""Rows whose loss is compared with the model's own."""
GIVE_LABELS = "give them, -100 where no token was masked (as transformers' DataCollatorForLanguageModeling makes them)"
MEANS = {
    "classes": "their mean cross-entropy", "labels": "their mean binary cross-entropy",
    "numbers": "their mean squared error",
}  # fmt: skip


def language_task(
    model: nn.Module,
    data: object,
    base_weights: object = None,
    *,
    make: Callable[[int], nn.Module] | None = None,
    bfloat16: bool = False,
) -> Task:
    """A `Task` of next-token losses, in nats, one for each token of each text that has one before it.

    `model`: a causal language model with Hugging Face's interface, `model(input_ids=..., attention_mask=...).logits`
    (b, t, vocabulary); or one trained on masked tokens, whose class is called `…ForMaskedLM`, with labels. `data`: what
    a tokenizer returns, a `datasets.Dataset`, or a list of dicts, whose rows may have unequal lengths
    (`face.token_batch`). With `labels` the targets are these, -100 and padding are no samples; without, the targets are
    the tokens themselves. Column p of a row is the loss on token p + 1 (of token p, for masked tokens).

    `base_weights`, `make` and `bfloat16` are those of `Task`, and so is what is tried and refused. Raises
    `PatterningError` for token numbers or lengths that the model has no place for.
    """
    model, wrapped = _check_model(model)
    name = type(model).__name__
    batch, notes = _batch(model, data)
    ids, mask, labels = batch["input_ids"], batch.get("attention_mask"), batch.get("labels")
    if labels is not None and (labels.shape != ids.shape or labels.is_floating_point()):
        raise PatterningError(
            f"the labels are {labels.dtype} {tuple(labels.shape)} for input_ids {tuple(ids.shape)}: a language model "
            "needs a token number for each token, or -100. For a label a row, use pt.classifier_task"
        )
    check_below(vocabulary_of(model), "labels", labels)
    if labels is None and predicts_masked(model):
        raise PatterningError(f"{name} predicts masked tokens, and the data has no labels: {GIVE_LABELS}")
    arguments = _arguments(model, batch)
    shift = _shifts(model, batch, arguments)
    if labels is None and not shift:
        raise PatterningError(
            f"the loss of {name} compares logits with the token that they stand at, and the data has no labels: "
            f"{GIVE_LABELS}"
        )
    if shift and ids.shape[1] < 2:
        raise PatterningError("the texts have one token each: there is no next token to predict")
    masked = mask is not None or (labels is not None and bool((labels == IGNORED).any()))
    loss = LanguageLoss(shift, masked, arguments)
    return _task(model, loss, batch, (*wrapped, *notes), base_weights, make, bfloat16)


def classifier_task(
    model: nn.Module,
    data: object,
    base_weights: object = None,
    *,
    make: Callable[[int], nn.Module] | None = None,
    bfloat16: bool = False,
) -> Task:
    """A `Task` of a classifier's losses: one a row, or one a token where the labels are a class for each token.

    `model`: a module with Hugging Face's interface, `model(input_ids=..., attention_mask=...).logits`. `data`: as for
    `language_task`, with `labels` (or `label`): a class for each row (n,) or token (n, t), where -100 is no sample;
    several labels of 0 or 1 (n, classes), where `config.problem_type` is "multi_label_classification"; or real numbers
    where it is "regression" or the model has a single output. The loss is that of the model's own `labels=`: cross
    entropy in nats, the mean binary cross entropy of the labels, or the mean squared error.

    Raises `PatterningError` for missing labels, and for those that the model has no class for.
    """
    model, wrapped = _check_model(model)
    batch, notes = _batch(model, data)
    if "labels" not in batch:
        raise PatterningError("the data has no column labels (or label): a classifier needs a class for each row")
    kind, labels = targets(model, batch)
    batch["labels"] = labels
    masked = kind == "classes" and (labels.ndim == 2 or bool((labels == IGNORED).any()))
    arguments = _arguments(model, batch)
    loss = ClassifierLoss(kind, masked, arguments)

    def mean(outputs: Any, of: Tensor) -> float:
        losses = loss.of_logits(logits_in(outputs), {"labels": of})
        values, real = losses if isinstance(losses, tuple) else (losses, torch.ones_like(losses, dtype=torch.bool))
        return float(torch.where(real, values, 0.0).sum() / real.sum().clamp(min=1))

    visible = labels
    if labels.ndim == 2 and kind == "classes" and "attention_mask" in batch:
        visible = labels.masked_fill(batch["attention_mask"] == 0, IGNORED)
    found = _compared(model, {**batch, "labels": visible}, arguments, {kind: mean})
    if found is not None and not found.agrees(kind):
        raise PatterningError(
            f"the loss that {type(model).__name__} returns for its labels, {found.own[0]:.4g}, is not {MEANS[kind]}, "
            f"{found.read[0][kind]:.4g}: use pt.Task with a loss of your own, which returns one loss a row"
        )
    return _task(model, loss, batch, (*wrapped, *notes), base_weights, make, bfloat16)


def _task(
    model: nn.Module, loss: LanguageLoss | ClassifierLoss, batch: dict[str, Tensor], notes: tuple[str, ...],
    base_weights: object, make: Callable[[int], nn.Module] | None, bfloat16: bool,
) -> Task:  # fmt: skip
    if unread := [name for name in batch if name not in (*loss.arguments, "labels")]:
        notes = (*notes, f"{type(model).__name__} does not take {', '.join(unread)}, which it is not given")
    with _without_checkpointing(model) as switched_off:
        task = Task(model, loss, batch, base_weights, make=make, bfloat16=bfloat16)
    if switched_off:
        notes = (
            *notes,
            "gradient checkpointing is switched off in the task's copy of the model: it saves nothing here",
        )
    task.trial = replace(task.trial, notes=(*task.trial.notes, *notes))
    return task


@contextmanager
def _without_checkpointing(model: nn.Module) -> Iterator[bool]:
    """The model without gradient checkpointing, which recomputes activations and has no forward derivative."""
    parts: list[Any] = [part for part in model.modules() if getattr(part, "gradient_checkpointing", False) is True]
    for part in parts:
        part.gradient_checkpointing = False
    try:
        yield bool(parts)
    finally:
        for part in parts:
            part.gradient_checkpointing = True


def _check_model(model: object) -> tuple[nn.Module, tuple[str, ...]]:
    """The module within what wraps it, and a note."""
    if not isinstance(model, nn.Module):
        raise PatterningError(f"the model must be a torch.nn.Module (found {type(model).__name__})")
    if getattr(config_of(model), "is_encoder_decoder", False):
        raise PatterningError(
            f"{type(model).__name__} is an encoder with a decoder, which has two texts a row: use pt.Task with a loss "
            "of your own, loss(model, batch) -> (losses, mask)"
        )
    found, notes = unwrapped(model)
    if "input_ids" not in forward_names(found):
        raise PatterningError(
            f"{type(found).__name__}.forward takes no input_ids by name: give the model within it, or use pt.Task with "
            "a loss of your own"
        )
    return found, notes


def _batch(model: nn.Module, data: object) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The data as tensors on the model's device, without a mask where nothing is padded."""
    vocabulary = vocabulary_of(model)
    known = [getattr(config_of(model), name, None) for name in ("pad_token_id", "eos_token_id")]
    pads = [token for token in known if isinstance(token, int) and 0 <= token < (vocabulary or token + 1)]
    batch, notes = token_batch(data, pads[0] if pads else 0)
    check_batch(model, batch)
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if mask is not None and bool((mask > 0).all()):
        del batch["attention_mask"]
    elif mask is None:
        for where, ends in (("end", ids[:, -2:]), ("beginning", ids[:, :2])):
            for token in dict.fromkeys(pads):  # GPT-2 has no padding token, and is padded with that of the end of text
                if bool((ends == token).all(1).any()):
                    notes = (
                        *notes,
                        f"there is no attention_mask: tokens {token} at the {where} of rows count as text, not padding",
                    )
    device = next(model.parameters()).device
    return {name: values.to(device) for name, values in batch.items()}, notes


def _shifts(model: nn.Module, batch: dict[str, Tensor], arguments: tuple[str, ...]) -> bool:
    """Whether logits at a token are of the next one: as the model's own loss says; else as its class is called.

    Raises `PatterningError` where its own loss is another one than the mean cross-entropy.
    """
    by_name = not predicts_masked(model)
    labels = batch.get("labels", batch["input_ids"])
    if "attention_mask" in batch:
        labels = labels.masked_fill(batch["attention_mask"] == 0, IGNORED)
    found = _compared(model, {**batch, "labels": labels}, arguments, {
        shift: partial(mean_cross_entropy, shift=shift) for shift in (True, False)
    })  # fmt: skip
    if found is None or found.agrees(by_name):
        return by_name
    if found.agrees(not by_name):
        return not by_name
    raise PatterningError(
        f"the loss that {type(model).__name__} returns for its labels, {found.own[0]:.4g}, is not their mean "
        f"cross-entropy, {found.read[0][by_name]:.4g}: use pt.Task with a loss of your own, which returns one loss a "
        "token"
    )


def _compared(
    model: nn.Module, batch: dict[str, Tensor], arguments: tuple[str, ...],
    readings: Mapping[Key, Callable[[Any, Tensor], float]],
) -> Compared | None:  # fmt: skip
    """The model's own loss of those rows with the most labels, and what `readings` of (outputs, labels) make of it."""
    if "labels" not in forward_names(model):
        return None
    counted = (batch["labels"] != IGNORED).flatten(1).sum(1) if batch["labels"].ndim > 1 else batch["labels"] != IGNORED
    rows = counted.long().topk(min(COMPARED_ROWS, len(counted))).indices
    few = {name: values[rows] for name, values in batch.items()}
    inputs: dict[str, Any] = {name: few[name] for name in (*arguments, "labels") if name in few}
    if "use_cache" in arguments:
        inputs["use_cache"] = False
    try:
        return compared(model, inputs, readings)
    except PatterningError:
        raise
    except Exception:  # the trial of the task says what does not run
        return None


def _arguments(model: nn.Module, batch: dict[str, Tensor]) -> tuple[str, ...]:
    """The columns of the data that the model takes, and `use_cache`, which is to be off."""
    taken = forward_names(model)
    return tuple(name for name in (*batch, "use_cache") if name in taken and name != "labels")
