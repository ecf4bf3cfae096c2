"""A model's own loss, `model(..., labels=labels).loss`, beside the loss that is taken for it.

They are compared at the model's parameters and at displaced ones. At the start of training all losses are near the log
of the number of classes, and a mean that weighs classes, say, could not be told from one that does not. For the same
reason the second comparison is made with labels of all classes: those of a few rows may all be of one weight.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from patterning.core.errors import PatterningError
from patterning.core.modules import displaced
from patterning.face.calling import evaluating
from patterning.face.token_batch import IGNORED

CLOSE, ROUGH = 1e-4, 2e-2
"""Relative difference up to which two losses of the same logits are the same: in float32, and in 16 bits (2 digits)."""
STRIDE = 7919
"""A prime: steps of this size through a number of classes come by all of them."""
FAR = 4.0
"""How far parameters are displaced, in units of their own size: so far that logits differ widely."""

Key = bool | str
"""What a reading is called."""


@dataclass(frozen=True)
class Compared:
    """The model's own loss, and the same by each reading: one pair for each place that was looked at."""

    own: tuple[float, ...]
    read: tuple[dict[Key, float], ...]
    allowed: float

    def agrees(self, reading: Key) -> bool:
        """Whether the reading is the model's own loss wherever both are finite."""
        return all(
            abs(read[reading] - own) <= self.allowed * abs(own) + 1e-6
            for own, read in zip(self.own, self.read, strict=True)
        )


def compared(
    model: nn.Module, inputs: Mapping[str, Any], readings: Mapping[Key, Callable[[Any, Tensor], float]]
) -> Compared | None:
    """The model's own loss of `inputs`, labels among them, beside `readings` ((outputs, labels) → mean loss).

    Without dropout, and the model is left as it was: no random number is drawn. None where it returns no loss.
    """
    config: Any = getattr(model, "config", None)
    before = getattr(config, "problem_type", None)  # classifiers of Hugging Face write down what they made of labels
    found = list[tuple[float | None, dict[Key, float]]]()

    def look(outputs: Any, labels: Tensor) -> None:
        found.append((_loss(outputs), {key: read(outputs, labels) for key, read in readings.items()}))

    try:
        with evaluating(model), torch.no_grad():
            outputs = model(**inputs)
            look(outputs, inputs["labels"])
            logits = logits_in(outputs)
            others = _of_all_classes(inputs["labels"], logits.shape[-1])
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            far = zip(displaced(trained, 0).items(), trained.values(), strict=True) if _displaceable(model) else ()
            moved = {name: p + FAR * (value - p) for (name, value), p in far}
            look(functional_call(model, moved, (), {**inputs, "labels": others}), others)
            rough = logits.dtype in (torch.bfloat16, torch.float16)
    finally:
        if hasattr(config, "problem_type"):
            config.problem_type = before
    if found[0][0] is None:
        return None
    finite = [(own, read) for own, read in found if own is not None and torch.isfinite(torch.tensor(own))]
    own, read = zip(*finite, strict=True) if finite else ((), ())
    return Compared(tuple(own), tuple(read), ROUGH if rough else CLOSE)


def cross_entropies(outputs: Any, labels: Tensor, shift: bool) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each label in nats and which of them count, shaped like `labels` (one shorter where shifted)."""
    logits = logits_in(outputs)
    if logits.ndim != labels.ndim + 1 or labels.is_floating_point():
        raise PatterningError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} ({labels.dtype}) are no classes and their "
            "scores: give losses=, a function of (outputs, labels) that returns one loss a row or a token"
        )
    logits = logits.float()
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    flat = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(labels.shape), labels != IGNORED


def mean_cross_entropy(outputs: Any, labels: Tensor, shift: bool) -> float:
    """The mean of `cross_entropies` over those that count."""
    losses, mask = cross_entropies(outputs, labels, shift)
    return float(torch.where(mask, losses, 0.0).sum() / mask.sum().clamp(min=1))


def logits_in(outputs: Any) -> Tensor:
    """The logits among what a model returned together with its loss."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if logits is None and isinstance(outputs, tuple | list) and outputs:
        logits = outputs[0]
    if not isinstance(logits, Tensor):
        raise PatterningError("the model returned no logits together with its loss (a fused loss?): give losses=")
    return logits


def _loss(outputs: Any) -> float | None:
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    return float(loss) if isinstance(loss, Tensor) and loss.numel() == 1 else None


def _of_all_classes(labels: Tensor, classes: int) -> Tensor:
    """Labels that go through the classes, where labels are classes that count; else as they are."""
    if labels.is_floating_point():
        return labels
    other = (torch.arange(labels.numel(), device=labels.device) * STRIDE % classes).to(labels).view(labels.shape)
    return torch.where(labels == IGNORED, labels, other)


def _displaceable(model: nn.Module) -> bool:
    """Whether this process holds the parameters whole, as plain tensors."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return False
    trained = [p for p in model.parameters() if p.requires_grad]
    return bool(trained) and all(type(p) is nn.Parameter and p.numel() and p.is_floating_point() for p in trained)
