"""A head as a module of its own: what the other heads compute is then shared by all replicas, and kept by a `Probe`."""

import re
from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning.models.language import Attention, LanguageModel, attention_pattern, mix, project


class HeadGroup(nn.Module):
    """Some heads of an `Attention`: their rows of `qkv` and their columns of `out`."""

    def __init__(self, attention: Attention, heads: list[int], *, bias: bool) -> None:
        super().__init__()
        self.heads = len(heads)
        width = attention.out.weight.shape[0]
        size = width // attention.heads
        own = torch.tensor([i * size + j for i in heads for j in range(size)])
        rows = torch.cat([own + k * width for k in range(3)])
        device = attention.out.weight.device
        self.qkv_weight = nn.Parameter(attention.qkv.weight.detach()[rows.to(device)])
        self.qkv_bias = nn.Parameter(attention.qkv.bias.detach()[rows.to(device)])
        self.out_weight = nn.Parameter(attention.out.weight.detach()[:, own.to(device)])
        self.out_bias = nn.Parameter(attention.out.bias.detach().clone()) if bias else None

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """(b, t, d) → what these heads add, (b, t, d)."""
        q, k, v = project(x, positions, self.qkv_weight, self.qkv_bias, self.heads)
        return F.linear(mix(attention_pattern(q, k), v), self.out_weight, self.out_bias)


class SplitAttention(nn.Module):
    """The same function as an `Attention`, up to the order of one sum, with one head apart."""

    def __init__(self, attention: Attention, head: int) -> None:
        super().__init__()
        self.rest = HeadGroup(attention, [i for i in range(attention.heads) if i != head], bias=True)
        self.own = HeadGroup(attention, [head], bias=False)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """(b, t, d) → (b, t, d)."""
        return self.rest(x, positions) + self.own(x, positions)


def split_head(module: nn.Module, component: str) -> tuple[nn.Module, str] | None:
    """A shallow copy of a `LanguageModel` with head "l1h3" apart, and the prefix of its parameters; None elsewhere.

    The head's `qkv_weight`, `qkv_bias` and `out_weight` hold what the component's mask selects, in the same order.
    """
    match = re.fullmatch(r"l(\d+)h(\d+)", component)
    if match is None or not isinstance(module, LanguageModel) or module.config.heads < 2:
        return None
    layer, head = int(match[1]), int(match[2])
    blocks = [_shallow(block) for block in module.blocks]
    attention = blocks[layer].attention
    assert isinstance(attention, Attention)
    blocks[layer].attention = SplitAttention(attention, head).eval()
    model = _shallow(module)
    model.blocks = nn.ModuleList(blocks).eval()
    return model, f"blocks.{layer}.attention.own."


def _shallow(module: nn.Module) -> nn.Module:
    """A module with the same parts, whose parts can be replaced."""
    result = copy(module)
    result.__dict__["_modules"] = dict(module._modules)
    return result
