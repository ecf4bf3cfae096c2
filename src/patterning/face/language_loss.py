"""Losses of language models and classifiers from their logits, and what a classifier's labels are."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning.core.batch import Batch
from patterning.core.errors import PatterningError
from patterning.face.calling import check_below, config_of, logits_of
from patterning.face.token_batch import IGNORED

Kind = Literal["classes", "labels", "numbers"]
"""What a classifier's targets are: one class, several labels at a time (0 or 1 each), or real numbers."""


def targets(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Kind, Tensor]:
    """What the labels of a batch are to a classifier, and the labels as its loss takes them.

    Raises `PatterningError` for labels that the model has no class for, and for targets outside of 0 to 1.
    """
    labels, ids = batch["labels"], batch["input_ids"]
    kind = _kind(model, labels)
    if kind == "numbers":
        return kind, labels.float()
    if kind == "labels":
        if not labels.is_floating_point() and labels.shape == ids.shape and "attention_mask" in batch:
            raise PatterningError(
                "the labels are as many whole numbers a row as it has tokens: give several labels of a row as floating "
                "point numbers, which are no labels of tokens"
            )
        if not bool(((labels >= 0) & (labels <= 1)).all()):
            row = int(((labels < 0) | (labels > 1) | labels.isnan()).reshape(len(labels), -1).any(1).nonzero()[0])
            raise PatterningError(
                f"labels of row {row} are not between 0 and 1, as several labels at a time must be (-100 is no mask "
                "here): leave the row out, or use pt.Task with a loss of your own that leaves the label out"
            )
        return kind, labels.float()
    if labels.ndim == 2 and labels.shape[1] == 1 != ids.shape[1]:
        labels = labels[:, 0]
    if labels.is_floating_point() or labels.ndim > 2 or (labels.ndim == 2 and labels.shape != ids.shape):
        raise PatterningError(
            f"the labels are {labels.dtype} {tuple(labels.shape)}: classes must be whole numbers, one a row or one "
            "a token"
        )
    check_below(getattr(config_of(model), "num_labels", None), "labels", labels)
    return kind, labels


def _kind(model: nn.Module, labels: Tensor) -> Kind:
    config = config_of(model)
    said = getattr(config, "problem_type", None)
    if said == "multi_label_classification" or (said is None and labels.ndim == 2 and labels.is_floating_point()):
        return "labels"
    if said == "regression" or getattr(config, "num_labels", None) == 1:
        return "numbers"
    return "classes"


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
        return self.of_logits(logits_of(model, batch, self.arguments), batch)

    def of_logits(self, logits: Tensor, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        """Losses of logits (b, t, vocabulary)."""
        labels, mask = batch.get("labels", batch["input_ids"]), batch.get("attention_mask")
        real = labels != IGNORED if mask is None else (labels != IGNORED) & (mask > 0)
        if self.shift:
            logits, labels, real = logits[:, :-1], labels[:, 1:], real[:, 1:]
            if mask is not None:  # what follows padding on the left is predicted from nothing
                real = real & ((mask[:, :-1] > 0).cumsum(1) > 0)
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
        return self.of_logits(logits_of(model, batch, self.arguments), batch)

    def of_logits(self, logits: Tensor, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        """Losses of logits (b, classes) or (b, t, classes); raises `PatterningError` where labels do not fit them."""
        labels = batch["labels"]
        fits = {"classes": logits.shape[:-1], "labels": logits.shape}.get(self.kind, labels.shape)
        if labels.shape != fits or (self.kind == "numbers" and labels.numel() != logits.numel()):
            raise PatterningError(
                f"the labels have shape {tuple(labels.shape)}, and the model's logits {tuple(logits.shape)}: they must "
                "be one class a row or a token, or as many targets as there are logits"
            )
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


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p of each label, of the shape of `labels`; of what is ignored, some number."""
    if logits.dtype in (torch.bfloat16, torch.float16):  # float64, in which a task tries its gradient, stays
        logits = logits.float()
    losses = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.clamp(min=0).reshape(-1), reduction="none")
    return losses.reshape(labels.shape)
