"""Readings of a language model while it runs: logits, losses, attention, and hooks that leave it as it was."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.face.calling import (
    check_batch,
    check_below,
    forward_names,
    logits_of,
    predicts_masked,
    vocabulary_of,
)
from patterning.face.language_loss import ClassifierLoss, LanguageLoss, targets
from patterning.models.architectures import layout_of
from patterning.models.architectures.layout import Layout
from patterning.models.language import Attention


def on_device(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch on the model's device; raises `PatterningError` where the model has no place for it."""
    if not isinstance(model, nn.Module):
        raise PatterningError(f"a measure takes a torch.nn.Module (found {type(model).__name__})")
    check_batch(model, batch)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type == "meta":
        raise PatterningError("the model's parameters have no numbers yet (they are on the meta device): load them")
    return {name: values.to(device) for name, values in batch.items()}


def known_layout(model: nn.Module, layer: int, head: int) -> Layout:
    """Where the heads of a model are; raises `PatterningError` where they are not known or there is no such head."""
    layout = layout_of(model)
    if layout is None or not layout.output:
        raise PatterningError(f"the heads of {type(model).__name__} are not known by name: use a function of your own")
    if layer >= layout.layers or head >= layout.heads:
        raise PatterningError(f"l{layer}h{head}: the model has {layout.layers} layers of {layout.heads} heads, from 0")
    return layout


def real_tokens(batch: dict[str, Tensor]) -> Tensor:
    """Which tokens are no padding, bool (n, t)."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask > 0


def any_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits of Hugging Face's interface, or of a model that is called with token numbers alone."""
    taken = tuple(name for name in forward_names(model) if name != "labels")
    logits = logits_of(model, batch, taken) if "input_ids" in taken else model(batch["input_ids"])
    if not isinstance(logits, Tensor):
        raise PatterningError(f"{type(model).__name__} returned {type(logits).__name__}: measures need its logits")
    return logits


def any_losses(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Losses and which of them are samples, both (n,) or (n, t').

    Where there are labels: of language models, whose logits are of their vocabulary, those of the tokens; else those of
    a classifier, as `classifier_task` reads them.
    """
    labels, logits = batch.get("labels"), any_logits(model, batch)
    if labels is None or _of_tokens(model, labels, logits, batch["input_ids"]):
        if logits.ndim != 3:
            raise PatterningError(
                f"{type(model).__name__} gave logits {tuple(logits.shape)}, those of a classifier: the data needs "
                "labels, a class for each row"
            )
        check_below(vocabulary_of(model), "labels", labels)
        found = LanguageLoss(not predicts_masked(model), True, ()).of_logits(logits, batch)
    else:
        kind, labels = targets(model, batch)
        found = ClassifierLoss(kind, True, ()).of_logits(logits, {**batch, "labels": labels})
    losses, real = found if isinstance(found, tuple) else (found, torch.ones_like(found, dtype=torch.bool))
    return losses, real.bool()


def _of_tokens(model: nn.Module, labels: Tensor, logits: Tensor, ids: Tensor) -> bool:
    vocabulary = vocabulary_of(model)
    whole = vocabulary is None or logits.shape[-1] >= vocabulary
    return labels.shape == ids.shape and logits.ndim == 3 and whole and not labels.is_floating_point()


def mean_of(values: Tensor, real: Tensor) -> Tensor:
    """The mean over what is real; raises `PatterningError` where nothing is."""
    if not bool(real.any()):
        raise PatterningError("the data holds no sample for this measure: each token is padding, masked, or alone")
    return torch.where(real, values, 0.0).sum() / real.sum()


def attention_of(model: nn.Module, batch: dict[str, Tensor], layer: int, head: int) -> Tensor:
    """Attention of a head from each token to each, (n, t, t)."""
    layout, seen = known_layout(model, layer, head), list[Tensor]()
    if hasattr(model, "cfg"):  # TransformerLens

        def look(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen.append(arguments[0])

        with hooked(model, f"blocks.{layer}.attn.hook_pattern", before=look):
            any_logits(model, batch)
        return seen[0][:, head]
    name = layout.output.format(layer).rpartition(".")[0]
    if isinstance(model.get_submodule(name), Attention):

        def project(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            assert isinstance(module, Attention)
            seen.append(module.pattern(*module.project(*arguments)[:2]))

        with hooked(model, name, before=project):
            any_logits(model, batch)
        return seen[0][:, head]
    taken = forward_names(model)
    options: dict[str, Any] = {key: batch[key] for key in batch if key in taken and key != "labels"}
    with _eager(model):
        return model(**options, output_attentions=True).attentions[layer][:, head]


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Attention that is computed step by step, which alone tells its pattern."""
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    before = [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]
    known: list[tuple[Any, Any]] = [(config, value) for config, value in before if value is not None]
    try:
        for config, _ in known:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, value in known:
            config._attn_implementation = value


@contextmanager
def hooked(model: nn.Module, name: str, *, before: Any = None, after: Any = None) -> Iterator[None]:
    """A submodule with a hook before or after it; raises `PatterningError` where there is none of this name."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        near = [path for path, _ in model.named_modules() if path][:6]
        raise PatterningError(f"{name} is no submodule of {type(model).__name__} ({', '.join(near)}, …)") from None
    with ExitStack() as stack:
        if before is not None:
            stack.callback(module.register_forward_pre_hook(before).remove)
        if after is not None:
            stack.callback(module.register_forward_hook(after).remove)
        yield
