"""Readings of a language model while it runs: logits, losses, attention, and hooks that leave it as it was."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.face.language_task import ClassifierLoss, LanguageLoss, logits_of
from patterning.models.architectures import layout_of
from patterning.models.architectures.layout import Layout
from patterning.models.language import Attention


def on_device(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch on the model's device."""
    device = next(model.parameters()).device
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


def _taken(model: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(type(model).forward).parameters)


def any_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits of Hugging Face's interface, or of a model that is called with token numbers alone."""
    taken = _taken(model)
    return logits_of(model, batch, taken) if "input_ids" in taken else model(batch["input_ids"])


def any_losses(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Losses and which of them are samples, both (n,) or (n, t')."""
    labels, taken = batch.get("labels"), _taken(model)
    if labels is not None and labels.ndim == 1:
        found = ClassifierLoss("classes", True, tuple(name for name in taken if name != "labels"))(model, batch)
    elif "input_ids" in taken:
        shift = not type(model).__name__.endswith("MaskedLM")
        found = LanguageLoss(shift, True, tuple(name for name in taken if name != "labels"))(model, batch)
    else:
        found = LanguageLoss(True, True, ("input_ids",))(_ByTokens(model), batch)
    assert isinstance(found, tuple)
    return found[0], found[1].bool()


class _ByTokens(nn.Module):
    """A model that is called with token numbers alone, with Hugging Face's interface."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.__dict__["model"] = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.__dict__["model"](input_ids)


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
    taken = _taken(model)
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
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model without dropout, and afterwards as it was."""
    training = [part for part in model.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


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
