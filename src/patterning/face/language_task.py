"""Tasks of language models and classifiers that are called as Hugging Face's are, from a tokenizer's batch as it is.

Nothing here imports transformers: a model is known by what it has, a `config` and outputs with `logits`.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning.core.batch import Batch
from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.face.token_batch import IGNORED, token_batch

Kind = Literal["classes", "labels", "numbers"]
"""What a classifier's targets are: one class, several labels at a time (0 or 1 each), or real numbers."""
LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What configurations call the number of positions."""


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
    _check_model(model)
    name = type(model).__name__
    batch, notes = _batch(model, data)
    shift = not name.endswith("MaskedLM")
    ids, mask, labels = batch["input_ids"], batch.get("attention_mask"), batch.get("labels")
    if labels is None and not shift:
        raise PatterningError(
            f"{name} predicts masked tokens, and the data has no labels: give them, -100 where no token was masked (as "
            "transformers' DataCollatorForLanguageModeling makes them)"
        )
    if labels is not None and (labels.shape != ids.shape or labels.is_floating_point()):
        raise PatterningError(
            f"the labels are {labels.dtype} {tuple(labels.shape)} for input_ids {tuple(ids.shape)}: a language model "
            "needs a token number for each token, or -100. For a label a row, use pt.classifier_task"
        )
    if shift and ids.shape[1] < 2:
        raise PatterningError("the texts have one token each: there is no next token to predict")
    _check_below(_vocabulary(model), "labels", labels)
    masked = mask is not None or (labels is not None and bool((labels == IGNORED).any()))
    loss = LanguageLoss(shift, masked, _arguments(model, batch))
    return _task(model, loss, batch, notes, base_weights, make, bfloat16)


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
    _check_model(model)
    batch, notes = _batch(model, data)
    labels = batch.get("labels")
    if labels is None:
        raise PatterningError("the data has no column labels (or label): a classifier needs a class for each row")
    kind = _kind(model, labels)
    classes = getattr(_config(model), "num_labels", None)
    if kind == "classes":
        if labels.is_floating_point() or labels.ndim > 2:
            raise PatterningError(
                f"the labels are {labels.dtype} {tuple(labels.shape)}: classes must be whole numbers, one a row or one "
                "a token"
            )
        _check_below(classes, "labels", labels)
    elif kind == "labels":
        batch["labels"] = labels.float()
    masked = kind == "classes" and (labels.ndim == 2 or bool((labels == IGNORED).any()))
    loss = ClassifierLoss(kind, masked, _arguments(model, batch))
    return _task(model, loss, batch, notes, base_weights, make, bfloat16)


@dataclass(frozen=True)
class LanguageLoss:
    """The loss of every token, (b, t), and their mask where some are no samples; a `BatchLoss`.

    `shift`: the logits at a token are of the next one. `arguments`: the columns that the model is given.
    """

    shift: bool
    masked: bool
    arguments: tuple[str, ...]

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        """Losses in nats."""
        logits = logits_of(model, batch, self.arguments)
        labels, mask = batch.get("labels", batch["input_ids"]), batch.get("attention_mask")
        real = labels != IGNORED if mask is None else (labels != IGNORED) & (mask > 0)
        if self.shift:
            logits, labels, real = logits[:, :-1], labels[:, 1:], real[:, 1:]
            if mask is not None:  # what follows padding on the left is predicted from nothing
                real = real & (mask[:, :-1] > 0)
        losses = _cross_entropy(logits, labels)
        return (losses, real) if self.masked else losses


@dataclass(frozen=True)
class ClassifierLoss:
    """The loss of every row (b,), or of every token (b, t) with a mask; a `BatchLoss`."""

    kind: Kind
    masked: bool
    arguments: tuple[str, ...]

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        """Losses: nats for classes and labels, squared units for numbers."""
        logits, labels = logits_of(model, batch, self.arguments), batch["labels"]
        if self.kind == "labels":
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
        if self.kind == "numbers":
            errors = (logits.reshape(len(labels), -1) - labels.reshape(len(labels), -1)).square()
            return errors.mean(-1)
        losses = _cross_entropy(logits, labels)
        if not self.masked:
            return losses
        real, mask = labels != IGNORED, batch.get("attention_mask")
        return losses, real if mask is None or labels.ndim == 1 else real & (mask > 0)


def logits_of(model: nn.Module, batch: Batch, arguments: tuple[str, ...]) -> Tensor:
    """The logits of a batch; raises `PatterningError` where the model returns none."""
    options: dict[str, Any] = {name: batch[name] for name in arguments if name in batch}
    if "use_cache" in arguments:
        options["use_cache"] = False
    output = model(**options)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise PatterningError(
            f"{type(model).__name__} returned {type(output).__name__} without logits: use the model with its output "
            "layer (AutoModelForCausalLM, AutoModelForSequenceClassification), or pt.Task with a loss of your own"
        )
    return logits


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p of each label, of the shape of `labels`; of what is ignored, some number."""
    if logits.dtype in (torch.bfloat16, torch.float16):  # float64, in which a task tries its gradient, stays
        logits = logits.float()
    losses = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.clamp(min=0).reshape(-1), reduction="none")
    return losses.reshape(labels.shape)


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


def _config(model: nn.Module) -> Any:
    return getattr(model, "config", None)


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise PatterningError(f"the model must be a torch.nn.Module (found {type(model).__name__})")
    if getattr(_config(model), "is_encoder_decoder", False):
        raise PatterningError(
            f"{type(model).__name__} is an encoder with a decoder, which has two texts a row: use pt.Task with a loss "
            "of your own, loss(model, batch) -> (losses, mask)"
        )


def _batch(model: nn.Module, data: object) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The data as tensors on the model's device, without a mask where nothing is padded."""
    config, vocabulary = _config(model), _vocabulary(model)
    known = [getattr(config, name, None) for name in ("pad_token_id", "eos_token_id")]
    pads = [token for token in known if isinstance(token, int) and 0 <= token < (vocabulary or token + 1)]
    batch, notes = token_batch(data, pads[0] if pads else 0)
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if vocabulary is not None and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise PatterningError(
            f"input_ids hold {int(ids.min())} to {int(ids.max())}, and the model has {vocabulary} tokens: the "
            "tokenizer is not the model's"
        )
    longest = next((value for name in LONGEST if isinstance(value := getattr(config, name, None), int)), None)
    if longest is not None and ids.shape[1] > longest:
        raise PatterningError(
            f"the rows have {ids.shape[1]} tokens, and the model has {longest} positions: "
            f"tokenizer(texts, truncation=True, max_length={longest})"
        )
    if mask is not None and bool((mask == 0).all(1).any()):
        raise PatterningError(f"row {int((mask == 0).all(1).nonzero()[0])} of the data is padding alone: leave it out")
    if mask is not None and bool((mask > 0).all()):
        del batch["attention_mask"]
    elif mask is not None and "position_ids" not in batch and bool((mask[:, 0] == 0).any()):
        if "position_ids" in inspect.signature(type(model).forward).parameters:
            batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
            notes = (*notes, "rows are padded on the left: positions are counted from their first real token")
    elif mask is None and known[0] is not None and bool((ids[:, -2:] == known[0]).all(1).any()):
        notes = (*notes, f"there is no attention_mask: tokens {known[0]} at the end of rows count as text, not padding")
    device = next(model.parameters()).device
    return {name: values.to(device) for name, values in batch.items()}, notes


def _vocabulary(model: nn.Module) -> int | None:
    value = getattr(_config(model), "vocab_size", None)
    return value if isinstance(value, int) else None


def _check_below(most: int | None, what: str, values: Tensor | None) -> None:
    if values is None or most is None:
        return
    bad = (values != IGNORED) & ((values < 0) | (values >= most))
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        raise PatterningError(
            f"{what} of row {place[0]} hold {int(values[tuple(place)])}: they must be 0 to {most - 1}, or -100 for no "
            "sample"
        )


def _kind(model: nn.Module, labels: Tensor) -> Kind:
    config = _config(model)
    said = getattr(config, "problem_type", None)
    if said == "multi_label_classification" or (said is None and labels.ndim == 2 and labels.is_floating_point()):
        return "labels"
    if said == "regression" or getattr(config, "num_labels", None) == 1:
        return "numbers"
    return "classes"


def _arguments(model: nn.Module, batch: dict[str, Tensor]) -> tuple[str, ...]:
    """The columns of the data that the model takes, and `use_cache`, which is to be off."""
    taken = inspect.signature(type(model).forward).parameters
    return tuple(name for name in (*batch, "use_cache") if name in taken and name != "labels")
