"""Structure measures of language models: functions that make a callable, model → number.

    pt.measure(task, {"l1h0": pt.measures.prefix_matching("l1h0", blocks)}, ...)     # an observable
    pt.verify(train, arms, {"l1h0 prefix": pt.measures.prefix_matching("l1h0", blocks)}, ...,   # a measure
              wanted={"my weights": {"l1h0 prefix": +1}})

`wanted` says which way a measure is to go. Weights made from the component loss of a head have the target -1 under the
head's name, which is no sign for a score of that head: `verify` refuses a measure of that name without `wanted`.

They serve every architecture that components are known of by name (`models.architectures`), and all but those of heads
serve any model with Hugging Face's interface. All can be differentiated. Nothing is drawn: data is given once, in any
form that `language_task` takes, and is small enough to be run in one go.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.face.calling import evaluating
from patterning.face.readings import (
    any_logits,
    any_losses,
    attention_of,
    hooked,
    known_layout,
    mean_of,
    on_device,
    real_tokens,
)
from patterning.face.token_batch import token_batch
from patterning.tasks.induction import block_length, repeated_random

__all__ = [
    "head_ablation", "logit_difference", "loss_on", "prefix_matching", "previous_token", "projection",
    "repeated_gap", "repeated_random",
]  # fmt: skip

ModelMeasure = Callable[[nn.Module], Tensor]


def loss_on(data: object) -> ModelMeasure:
    """The mean loss on a set, in nats: of its next tokens, or of its classes where the labels are one a row."""
    return _Loss(_batch(data))


def repeated_gap(blocks: object) -> ModelMeasure:
    """Loss on the first copy minus loss on the second, nats, on random blocks repeated twice (n, 2L).

    `blocks` are those of `repeated_random(vocabulary, context, count, seed)`. A model without induction has about 0.
    """
    return _Gap(*_blocks(blocks))


def previous_token(head: str, data: object) -> ModelMeasure:
    """Mean attention of a head, "l0h3", from each token to the one before it (Elhage et al. 2021), 0 to 1."""
    return _Attention(_batch(data), *_place(head), None)


def prefix_matching(head: str, blocks: object) -> ModelMeasure:
    """Mean attention of a head from a token of the second copy to the one after its first occurrence, 0 to 1.

    The induction score of Olsson et al. (2022), on random blocks repeated twice (n, 2L), of `repeated_random`.
    """
    batch, length = _blocks(blocks)
    return _Attention(batch, *_place(head), length)


def head_ablation(head: str, data: object, how: Literal["zero", "mean"] = "zero") -> ModelMeasure:
    """How much the mean loss on a set rises, in nats, when a head's output is replaced: what the head is worth there.

    The output is what the head gathered from the tokens, before the output projection. It is replaced by 0, or by its
    mean over all real tokens of the set ("mean"), which leaves in place what does not depend on the text.
    """
    if how not in ("zero", "mean"):
        raise PatterningError(f"a head can be replaced by 'zero' or 'mean', not by {how!r}")
    return _Ablation(_Loss(_batch(data)), *_place(head), how)


def logit_difference(data: object, right: Tensor | int, wrong: Tensor | int) -> ModelMeasure:
    """Mean of logit(right) - logit(wrong) after the last real token of each row; tokens (n,), or one for all rows."""
    batch = _batch(data)
    n = len(batch["input_ids"])
    tokens = [_tokens(name, token, n) for name, token in (("right", right), ("wrong", wrong))]
    return _LogitDifference(batch, *tokens)


def projection(module: str, direction: Tensor, data: object) -> ModelMeasure:
    """Mean over all real tokens of (what a submodule returns) · `direction` (d,): a probe's, or a dictionary feature's.

    `module` is its name in the model, "model.layers.3" say, and its output (b, t, d), or a tuple that begins with it.
    """
    if not isinstance(direction, Tensor):
        raise PatterningError(f"the direction is {type(direction).__name__}: it must be a tensor (d,)")
    if direction.ndim != 1 or not bool(direction.isfinite().all()):
        raise PatterningError(f"the direction has shape {tuple(direction.shape)}: it must be (d,), of finite numbers")
    return _Projection(_batch(data), module, direction.detach().float())


@dataclass(frozen=True)
class _Loss:
    batch: dict[str, Tensor]
    unit: ClassVar[str] = "nats"

    def __call__(self, model: nn.Module) -> Tensor:
        batch = on_device(model, self.batch)
        with evaluating(model):
            losses, real = any_losses(model, batch)
        return mean_of(losses, real)


@dataclass(frozen=True)
class _Gap:
    batch: dict[str, Tensor]
    length: int
    unit: ClassVar[str] = "nats"

    def __call__(self, model: nn.Module) -> Tensor:
        with evaluating(model):
            losses, _ = any_losses(model, on_device(model, self.batch))
        return losses[:, : self.length - 1].mean() - losses[:, self.length :].mean()


@dataclass(frozen=True)
class _Attention:
    """`length` None: to the token before; else to the successor of the first occurrence in blocks of that length."""

    batch: dict[str, Tensor]
    layer: int
    head: int
    length: int | None

    def __call__(self, model: nn.Module) -> Tensor:
        batch = on_device(model, self.batch)
        with evaluating(model):
            pattern = attention_of(model, batch, self.layer, self.head)
        if self.length is not None:
            return pattern.diagonal(1 - self.length, dim1=1, dim2=2)[:, 1:].mean()
        real = real_tokens(batch)
        both = real[:, 1:] & real[:, :-1]
        return mean_of(pattern.diagonal(-1, dim1=1, dim2=2), both)


@dataclass(frozen=True)
class _Ablation:
    loss: _Loss
    layer: int
    head: int
    how: str
    unit: ClassVar[str] = "nats"

    def __call__(self, model: nn.Module) -> Tensor:
        layout = known_layout(model, self.layer, self.head)
        real = real_tokens(on_device(model, self.loss.batch))[..., None]

        def replaced(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            apart = arguments[0].dim() == 4  # TransformerLens keeps heads apart
            heads = list((arguments[0] if apart else arguments[0].unflatten(2, (layout.heads, -1))).unbind(2))
            x = heads[self.head]
            mean = torch.where(real, x, 0.0).sum((0, 1)) / real.sum()
            heads[self.head] = torch.zeros_like(x) if self.how == "zero" else mean.expand_as(x)
            together = torch.stack(heads, 2)
            return (together if apart else together.flatten(2), *arguments[1:])

        plain = self.loss(model)
        with hooked(model, layout.output.format(self.layer), before=replaced):
            return self.loss(model) - plain


@dataclass(frozen=True)
class _LogitDifference:
    batch: dict[str, Tensor]
    right: Tensor
    wrong: Tensor
    unit: ClassVar[str] = "logits"

    def __call__(self, model: nn.Module) -> Tensor:
        batch = on_device(model, self.batch)
        real = real_tokens(batch)
        last = (torch.arange(real.shape[1], device=real.device) * real).argmax(1)
        with evaluating(model):
            logits = any_logits(model, batch)
        most = logits.shape[-1]
        for name, tokens in (("right", self.right), ("wrong", self.wrong)):
            if logits.ndim != 3 or not 0 <= int(tokens.min()) <= int(tokens.max()) < most:
                raise PatterningError(
                    f"{name} holds tokens {int(tokens.min())} to {int(tokens.max())}, and the model gives logits "
                    f"{tuple(logits.shape)}: tokens must lie in its vocabulary"
                )
        after = logits[torch.arange(len(logits), device=logits.device), last]
        right, wrong = (token.to(after.device)[:, None] for token in (self.right, self.wrong))
        return (after.gather(1, right) - after.gather(1, wrong)).mean()


@dataclass(frozen=True)
class _Projection:
    batch: dict[str, Tensor]
    module: str
    direction: Tensor

    def __call__(self, model: nn.Module) -> Tensor:
        batch, seen = on_device(model, self.batch), list[Tensor]()

        def look(_module: nn.Module, _arguments: Any, output: Any) -> None:
            seen.append(output if isinstance(output, Tensor) else output[0])

        with evaluating(model), hooked(model, self.module, after=look):
            any_logits(model, batch)
        real = real_tokens(batch)
        if len(seen) != 1 or seen[0].shape != (*real.shape, len(self.direction)):
            shapes = ", ".join(str(tuple(value.shape)) for value in seen) or "nothing"
            raise PatterningError(
                f"{self.module} returned {shapes}, and must return one tensor (n, t, d) = "
                f"{(*real.shape, len(self.direction))}: name another submodule, or give a direction of its width"
            )
        along = seen[0] @ self.direction.to(seen[0])
        return torch.where(real, along, 0.0).sum() / real.sum()


def _batch(data: object) -> dict[str, Tensor]:
    return token_batch(data, 0)[0]


def _blocks(data: object) -> tuple[dict[str, Tensor], int]:
    """Repeated blocks, unpadded, and the length of one."""
    batch = _batch(data)
    if not bool(real_tokens(batch).all()):
        raise PatterningError("blocks repeated twice must all have the same length, without padding")
    return batch, block_length(batch["input_ids"])


def _tokens(name: str, values: Tensor | int, rows: int) -> Tensor:
    """Token numbers (rows,); raises `PatterningError` for anything else."""
    try:
        tokens = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        tokens = torch.empty(0)
    whole = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
    if not whole or tokens.shape not in ((), (1,), (rows,)):
        what = type(values).__name__ if not isinstance(values, Tensor) else f"{values.dtype} {tuple(values.shape)}"
        raise PatterningError(f"{name} is {what}: it must be a token number, or one for each of the {rows} rows")
    return tokens.detach().cpu().long().expand(rows).clone()


def _place(head: str) -> tuple[int, int]:
    match = re.fullmatch(r"l(\d+)h(\d+)", head.lower()) if isinstance(head, str) else None
    if match is None:
        raise PatterningError(f"{head!r} is no head: write l1h3 for head 3 of layer 1, both from 0")
    return int(match[1]), int(match[2])
