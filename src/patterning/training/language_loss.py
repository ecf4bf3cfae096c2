"""The weighted loss of a language model as training computes it: the model's own numbers, for half the time.

Two things cost the most on a CPU and are done otherwise than in `LanguageModel.forward`, which must stay plain to run
under `torch.func.vmap`: the unembedding and its softmax go by in slices that fit the cache, with their gradient made in
the same pass (no logits are kept), and causal scores come from a `baddbmm` for each half of the queries (a fused kernel
on a GPU).
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from patterning.core.calls import rounded
from patterning.models.language import Attention, LanguageModel


def weighted_loss(model: LanguageModel, tokens: Tensor, weights: Tensor, bfloat16: bool = False) -> Tensor:
    """Mean of ρ ℓ over the b (t - 1) next-token predictions of `tokens` (b, t) int64, nats; `weights` ρ is (b, t - 1).

    `bfloat16` rounds what goes into matrix products; parameters, sums and softmaxes keep their type. One derivative.
    """
    table = model.unembed.weight
    inner = torch.bfloat16 if bfloat16 else table.dtype
    with rounded(tokens.device.type, bfloat16, once=True):
        x, positions = model.start(tokens)
        mask = _later(x)
        for block in model.layers():
            x = x + _attend(block.attention, block.ln1(x), positions, mask)
            if block.mlp is not None and block.ln2 is not None:
                x = x + block.mlp(block.ln2(x))
        x = model.ln_final(x[:, :-1])  # the last token is only predicted, but kernels like an even number of positions
    hidden, targets = x.to(table.dtype).flatten(0, 1), tokens[:, 1:].flatten()
    if model.unembed.bias is not None:  # one more column, read by a constant
        table = torch.cat([table, model.unembed.bias[:, None]], dim=1)
        hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1)
    loss = _Unembed.apply(hidden, table, targets, weights.to(table.dtype).flatten(), inner)
    return cast(Tensor, loss)


def _later(x: Tensor) -> Tensor:
    """-inf where a key is later than the query (t, t), else 0."""
    t = x.shape[1]
    return torch.full((t, t), -math.inf, device=x.device).triu(1)


def _attend(attention: Attention, x: Tensor, positions: Tensor | None, mask: Tensor) -> Tensor:
    """`attention(x, positions)`."""
    q, k, v = attention.project(x, positions)
    if x.is_cuda:
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        b, h, t, size = q.shape
        q, k, v = (part.reshape(b * h, t, size) for part in (q, k, v))
        half = t // 2  # the first half of the queries reads nothing of the second half of the keys: a fifth of the time
        parts = [_mix(q[:, :half], k[:, :half], v[:, :half], mask[:half, :half]), _mix(q[:, half:], k, v, mask[half:])]
        mixed = torch.cat(parts, dim=1).view(b, h, t, size)
    return attention.out(mixed.transpose(1, 2).reshape(x.shape))


def _mix(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """What queries (n, s, size) read of keys and values (n, t, size), with `mask` (s, t) added to their scores."""
    scores = torch.baddbmm(mask.to(q.dtype), q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    return scores.softmax(-1) @ v


class _Unembed(torch.autograd.Function):
    """(hidden (n, d), unembedding (V, d), targets (n,), ρ (n,)) → Σ ρ ℓ / n, with its two gradients made on the way."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        unembed: Tensor,
        targets: Tensor,
        weights: Tensor,
        inner: torch.dtype,
    ) -> Tensor:
        n = len(hidden)
        rows = 1 << 14 if hidden.is_cuda else 256  # 256 rows of logits lie in the cache of one core
        table, states = unembed.to(inner), hidden.to(inner)
        loss, d_hidden, d_unembed = hidden.new_zeros(()), torch.empty_like(hidden), torch.zeros_like(unembed)
        for first in range(0, n, rows):
            part = slice(first, first + rows)
            target, rho = targets[part, None], weights[part, None] / n
            chances = torch.softmax(states[part] @ table.T, 1, dtype=hidden.dtype)  # (rows, V)
            right = chances.gather(1, target)
            # The floor keeps the reported loss finite; the gradient ρ (p - 1[target]) / n does not need the logarithm.
            loss -= (right.clamp_min(1e-38).log() * rho).sum()
            d_logits = chances.scatter_(1, target, right - 1).mul_(rho).to(inner)
            d_hidden[part] = d_logits @ table
            d_unembed += d_logits.T @ states[part]
        ctx.save_for_backward(d_hidden, d_unembed)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_hidden, d_unembed = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        return d_hidden * grad, d_unembed * grad, None, None, None
