"""The parentheses task's minGPT with a leading replica axis (reconstruction of Li et al., arXiv 2507.06445).

Causal, pre-LayerNorm, tanh-GELU, learned positions, no dropout. The answer is read at one position for each string, so
the last block computes keys and values everywhere but queries, MLP and logits only there: the same function for about
half the work. All parameters of a replica are one row of a flat `(r, P)` tensor; `unflatten` gives the named views.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patterning.core.rng import Stream, generator

VOCABULARY = 5


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the model; `context` counts START and END."""

    layers: int
    heads: int
    context: int
    width: int = 64
    mlp_ratio: int = 4


def parameter_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape without the replica axis, in the order of the flat row. Weights are stored (in, out)."""
    d, hidden = config.width, config.mlp_ratio * config.width
    shapes: dict[str, tuple[int, ...]] = {"embed": (VOCABULARY, d), "positions": (config.context, d)}
    for layer in range(config.layers):
        shapes |= {
            f"l{layer}.ln1.scale": (d,),
            f"l{layer}.ln1.shift": (d,),
            f"l{layer}.qkv.weight": (d, 3 * d),
            f"l{layer}.qkv.bias": (3 * d,),
            f"l{layer}.attention_out.weight": (d, d),
            f"l{layer}.attention_out.bias": (d,),
            f"l{layer}.ln2.scale": (d,),
            f"l{layer}.ln2.shift": (d,),
            f"l{layer}.mlp_in.weight": (d, hidden),
            f"l{layer}.mlp_in.bias": (hidden,),
            f"l{layer}.mlp_out.weight": (hidden, d),
            f"l{layer}.mlp_out.bias": (d,),
        }
    return shapes | {"ln_final.scale": (d,), "ln_final.shift": (d,), "head": (d, VOCABULARY)}


def count_parameters(config: TransformerConfig) -> int:
    """P; 53,440 / 103,424 / 153,408 at width 64, context 42 and 1 / 2 / 3 layers, as in the paper's code."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def unflatten(config: TransformerConfig, flat: Tensor) -> dict[str, Tensor]:
    """Named views (r, *shape) of flat parameters (r, P). One `split`, so the backward pass is one concatenation."""
    shapes = parameter_shapes(config)
    parts = flat.split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {name: part.reshape(len(flat), *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def init_parameters(config: TransformerConfig, seeds: Sequence[int]) -> Tensor:
    """Flat float32 parameters (r, P), one row a seed: N(0, 0.02), residual projections / √(2 layers), LayerNorm 1."""
    rows = []
    for seed in seeds:
        rng = generator(seed, Stream.INIT)
        parts = []
        for name, shape in parameter_shapes(config).items():
            if name.endswith(".scale"):
                parts.append(np.ones(shape))
            elif name.endswith((".shift", ".bias")):
                parts.append(np.zeros(shape))
            else:
                residual = name.endswith(("attention_out.weight", "mlp_out.weight"))
                parts.append(rng.standard_normal(shape) * 0.02 / (math.sqrt(2 * config.layers) if residual else 1))
        rows.append(np.concatenate([part.ravel() for part in parts]))
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def _layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift[:, None], F.layer_norm(x, x.shape[-1:]), scale[:, None])


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(r, rows, in) · (r, in, out) + (r, out)."""
    return torch.baddbmm(bias[:, None], x, weight)


class _Place(torch.autograd.Function):
    """`rows[index]` along axis 0 whose inverse is known: the gradient is a gather too, not a scattered addition.

    `inverse` names, for each input row, the one output row that carries its gradient.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None


def reach_of(last: Tensor) -> tuple[int, int]:
    """What t must be for rows that end at `last` (r, b), and the most cells that they fill in one replica."""
    return int(last.max()) + 1, int((last + 1).sum(1).max())


def answer_logits(
    config: TransformerConfig, flat: Tensor, tokens: Tensor, last: Tensor, cells: int | None = None
) -> Tensor:
    """Logits (r, b, 5) at position `last` (r, b) of token rows `tokens` (r, b, t), for flat parameters (r, P).

    Positions after `last` cannot reach the answer (the model is causal): they are never computed, except inside
    attention. Callers trim t; `reach_of` tells how far, and of `cells`, which are read off `last` where they are not
    given.
    """
    p = unflatten(config, flat)
    r, b, t = tokens.shape
    d, h = config.width, config.heads
    device = flat.device
    # Valid cells of the (b, t) grid, packed to n rows for each replica; replicas are padded with cells that are not.
    valid = torch.arange(t, device=device) <= last[:, :, None]  # (r, b, t)
    n = reach_of(last)[1] if cells is None else cells
    cell = valid.view(r, -1).to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :n]
    replica = torch.arange(r, device=device)[:, None]
    packed_to_cell = (cell + replica * (b * t)).view(-1)  # (r*n)
    cell_to_packed = (valid.view(r, -1).cumsum(1).sub_(1).clamp_(min=0) + replica * n).view(-1)  # (r*b*t)
    last_cell = last + t * torch.arange(b, device=device) + replica * (b * t)  # (r, b) in the grid
    answer = cell_to_packed[last_cell.view(-1)].view(r, b) - replica * n

    flat_tokens = tokens.reshape(-1)[packed_to_cell].view(r, n)
    x = torch.bmm(F.one_hot(flat_tokens, VOCABULARY).to(flat.dtype), p["embed"])
    x = x + p["positions"].gather(1, (cell % t)[:, :, None].expand(r, n, d))
    causal = torch.ones(t, t, dtype=torch.bool, device=device).tril()
    for layer in range(config.layers):
        name = f"l{layer}"
        y = _layer_norm(x, p[f"{name}.ln1.scale"], p[f"{name}.ln1.shift"])
        weight, bias = p[f"{name}.qkv.weight"], p[f"{name}.qkv.bias"]
        if layer == config.layers - 1:
            pick = answer[:, :, None].expand(r, b, d)
            x, q = x.gather(1, pick), _linear(y.gather(1, pick), weight[:, :, :d], bias[:, :d])
            grid = _Place.apply(
                _linear(y, weight[:, :, d:], bias[:, d:]).view(r * n, -1), cell_to_packed, packed_to_cell
            )
            k, v = grid.view(r * b, t, 2, h, d // h).permute(2, 0, 3, 1, 4)
            q = q.view(r * b, 1, h, d // h).transpose(1, 2)
            mask = valid.view(r * b, 1, 1, t)
        else:
            grid = _Place.apply(_linear(y, weight, bias).view(r * n, -1), cell_to_packed, packed_to_cell)
            q, k, v = grid.view(r * b, t, 3, h, d // h).permute(2, 0, 3, 1, 4)
            mask = causal
        scores = torch.matmul(q, k.transpose(2, 3)) * (h / d) ** 0.5  # (r*b, h, queries, t)
        attention = scores.masked_fill(~mask, -math.inf).softmax(-1)
        z = torch.matmul(attention, v).transpose(1, 2).reshape(-1, d)
        if layer < config.layers - 1:
            z = z.masked_fill(~valid.view(-1, 1), 0)  # no gradient from cells that are not packed
            z = _Place.apply(z, packed_to_cell, cell_to_packed)
        x = x + _linear(z.view(r, -1, d), p[f"{name}.attention_out.weight"], p[f"{name}.attention_out.bias"])
        y = _layer_norm(x, p[f"{name}.ln2.scale"], p[f"{name}.ln2.shift"])
        y = F.gelu(_linear(y, p[f"{name}.mlp_in.weight"], p[f"{name}.mlp_in.bias"]), approximate="tanh")
        x = x + _linear(y, p[f"{name}.mlp_out.weight"], p[f"{name}.mlp_out.bias"])
    x = _layer_norm(x, p["ln_final.scale"], p["ln_final.shift"])
    return torch.bmm(x, p["head"])
