"""A head as a module of its own, so that replicas share, and a `Probe` keeps, what the rest of its layer computes.

The MLP behind it reads what the head adds from the head's d/h numbers for each token, not from the stream's d.
"""

import re
from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning.models.language import MLP, Attention, Block, LanguageModel, attention_pattern, mix, project

WIDE = 64
"""From this width on the size of operations counts, not their number."""


class HeadGroup(nn.Module):
    """Some heads of an `Attention`: their rows of `qkv` and their columns of `out`, without its bias."""

    def __init__(self, attention: Attention, heads: list[int]) -> None:
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

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """(b, t, d) → what these heads read, (b, t, heads · d/h): `out_weight` takes it to the stream."""
        q, k, v = project(x, positions, self.qkv_weight, self.qkv_bias, self.heads)
        if torch.is_grad_enabled() or not torch.backends.cuda.flash_sdp_enabled():  # also says so of the CPU
            return mix(attention_pattern(q, k), v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class Others(nn.Module):
    """The stream after a block's attention, less what one head adds."""

    def __init__(self, attention: Attention, head: int) -> None:
        super().__init__()
        self.heads = HeadGroup(attention, [i for i in range(attention.heads) if i != head])
        self.out_bias = attention.out.bias

    def forward(self, x: Tensor, read: Tensor, positions: Tensor | None = None) -> Tensor:
        """The stream `x` and its normalised `read`, both (b, t, d) → (b, t, d)."""
        return x + F.linear(self.heads(read, positions), self.heads.out_weight, self.out_bias)


class NormedRead(nn.Module):
    """The first product of an MLP on LayerNorm(x), with its constants folded in: U x / σ(x) + c."""

    def __init__(self, norm: nn.LayerNorm, mlp: MLP) -> None:
        super().__init__()
        weight = (mlp.read.weight * norm.weight).detach()
        self.weight = nn.Parameter(weight - weight.mean(1, keepdim=True))  # U takes the mean off x
        self.shift = nn.Parameter(F.linear(norm.bias, mlp.read.weight, mlp.read.bias).detach())
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """U x: (b, t, d) → (b, t, hidden)."""
        return F.linear(x, self.weight)

    def of_sum(self, fixed: Tensor, moving: Tensor, out_weight: Tensor, x: Tensor) -> Tensor:
        """(U x / σ(x) + c) of x = rest + `out_weight` · `moving`, whose `fixed` = U rest is known: (b, t, hidden)."""
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return torch.addcmul(F.linear(moving * scale, self.weight @ out_weight, self.shift), fixed, scale)


class SplitBlock(nn.Module):
    """The same function as a `Block`, up to the order of some sums, with one head apart."""

    def __init__(self, block: Block, head: int) -> None:
        super().__init__()
        assert isinstance(block.attention, Attention)
        self.others = Others(block.attention, head)
        self.own = HeadGroup(block.attention, [head])
        self.block, self.read = block, None
        if block.ln2 is not None and block.mlp is not None and len(block.attention.out.weight) >= WIDE:
            self.read = NormedRead(block.ln2, block.mlp)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """(b, t, d) → (b, t, d)."""
        read = self.block.ln1(x)
        rest, moving = self.others(x, read, positions), self.own(read, positions)
        x = rest + F.linear(moving, self.own.out_weight)
        if self.read is None or self.block.mlp is None:
            return self.block.after_attention(x)
        hidden = self.read.of_sum(self.read(rest), moving, self.own.out_weight, x)
        return x + self.block.mlp.write(F.gelu(hidden))


def split_head(module: nn.Module, component: str) -> tuple[nn.Module, str] | None:
    """A shallow copy of a `LanguageModel` with head "l1h3" apart, and the prefix of its parameters; None elsewhere.

    The head's `qkv_weight`, `qkv_bias` and `out_weight` hold what the component's mask selects, in the same order.
    Everything else is a constant of the copy.
    """
    match = re.fullmatch(r"l(\d+)h(\d+)", component)
    if match is None or not isinstance(module, LanguageModel) or module.config.heads < 2:
        return None
    layer, head = int(match[1]), int(match[2])
    blocks: list[nn.Module] = list(module.layers())
    blocks[layer] = SplitBlock(module.layers()[layer], head).eval().requires_grad_(False)
    model = copy(module)
    model.__dict__["_modules"] = dict(module._modules)
    model.blocks = nn.ModuleList(blocks).eval()
    return model, f"blocks.{layer}.own."
