"""A small causal language model as a plain module: the reference for components, response and tests.

Pre-LayerNorm, GELU (exact), optional MLP blocks, untied unembedding. `positions="shortformer"` adds the position
vectors to the inputs of queries and keys only (Press et al., arXiv 2012.15832), as in the paper's attention-only model.
"""

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning.core.batch import Batch
from patterning.core.errors import PatterningError
from patterning.core.task import Call


@dataclass(frozen=True)
class LanguageConfig:
    """Shape of the model. `mlp_ratio` 0: attention only. Weights start as N(0, `init_std`).

    `position_init` "sinusoidal" starts the position vectors, which are learned all the same, as waves of amplitude
    `position_scale` (Vaswani et al., arXiv 1706.03762; the Shortformer paper adds such waves to queries and keys).
    "shortformer" positions are added to what comes from a LayerNorm and has size 1, so N(0, 0.02) is next to nothing
    there: waves of amplitude 3 bring previous-token heads forward several times (docs/results/induction-onset.md).
    `unembed_bias`: the unembedding has a bias, as in TransformerLens.
    """

    vocabulary: int
    context: int
    layers: int
    heads: int
    width: int
    mlp_ratio: int = 4
    positions: Literal["added", "shortformer"] = "added"
    init_std: float = 0.02
    position_init: Literal["normal", "sinusoidal"] = "normal"
    unembed_bias: bool = False
    position_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a width that the heads cannot share."""
        if self.width % self.heads:
            raise PatterningError(f"width {self.width} is not a multiple of {self.heads} heads")
        if self.position_init == "sinusoidal" and self.width % 2:
            raise PatterningError(f"width {self.width} is odd: sinusoidal positions are pairs of a sine and a cosine")


class Table(nn.Module):
    """Learned vectors (rows, width), N(0, `std`)."""

    def __init__(self, rows: int, width: int, std: float = 0.02) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(rows, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh values from the global generator, as PyTorch's own modules do."""
        nn.init.normal_(self.weight, std=self.std)

    def forward(self, index: Tensor) -> Tensor:
        """Vectors of `index` (...,): (..., width)."""
        return F.embedding(index, self.weight)


class Waves(Table):
    """Learned vectors (rows, width) that start as sines and cosines of one amplitude, wavelengths 3 to 2 · rows."""

    def __init__(self, rows: int, width: int, amplitude: float) -> None:
        self.amplitude = amplitude
        super().__init__(rows, width)

    def reset_parameters(self) -> None:
        """Fresh values: the same each time."""
        rows, width = self.weight.shape
        rates = 2 * math.pi / torch.logspace(math.log10(3), math.log10(2 * rows), width // 2, dtype=torch.float64)
        angles = torch.arange(rows, dtype=torch.float64)[:, None] * rates
        waves = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
        self.weight.detach().copy_(self.amplitude * waves)


class Projection(nn.Linear):
    """A linear map, N(0, `std`), bias 0."""

    def __init__(self, inputs: int, outputs: int, std: float = 0.02, bias: bool = True) -> None:
        self.std = std
        super().__init__(inputs, outputs, bias=bias)

    def reset_parameters(self) -> None:
        """Fresh values."""
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Attention(nn.Module):
    """Causal self-attention; head i owns rows i·d/h to (i+1)·d/h of each third of `qkv` and those columns of `out`."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = Projection(config.width, 3 * config.width, config.init_std)
        self.out = Projection(config.width, config.width, config.init_std / math.sqrt(2 * config.layers))

    def project(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (b, h, t, d/h) of `x` (b, t, d); `positions` (t, d) are added for the first two."""
        return project(x, positions, self.qkv.weight, self.qkv.bias, self.heads)

    def pattern(self, q: Tensor, k: Tensor) -> Tensor:
        """What each position reads from each earlier one and itself, (b, h, t, t): rows sum to 1."""
        return attention_pattern(q, k)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """(b, t, d) → (b, t, d)."""
        q, k, v = self.project(x, positions)
        return self.out(mix(self.pattern(q, k), v))


def project(
    x: Tensor, positions: Tensor | None, weight: Tensor, bias: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (b, h, t, size) of `x` (b, t, d); `positions` (t, d) are added for the first two.

    `weight` (3 · heads · size, d), `bias` (3 · heads · size,): queries, keys, values, each by head.
    """
    b, t, _ = x.shape
    own = len(weight) // 3
    if positions is None:
        q, k, v = F.linear(x, weight, bias).split(own, dim=2)
    else:
        q, k = F.linear(x + positions, weight[: 2 * own], bias[: 2 * own]).split(own, dim=2)
        v = F.linear(x, weight[2 * own :], bias[2 * own :])
    q, k, v = (part.reshape(b, t, heads, own // heads).transpose(1, 2) for part in (q, k, v))
    return q, k, v


def attention_pattern(q: Tensor, k: Tensor) -> Tensor:
    """What each position reads from each earlier one and itself, (b, h, t, t): rows sum to 1."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
    # Adding -inf takes half of the time of filling it in.
    later = torch.full(scores.shape[-2:], -math.inf, dtype=scores.dtype, device=q.device).triu(1)
    return (scores + later).softmax(-1)


def mix(pattern: Tensor, v: Tensor) -> Tensor:
    """What the heads read, side by side: (b, h, t, t) and values (b, h, t, size) → (b, t, h · size)."""
    return (pattern @ v).transpose(1, 2).flatten(2)


class MLP(nn.Module):
    """Two projections and a GELU."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.width
        self.read = Projection(config.width, hidden, config.init_std)
        self.write = Projection(hidden, config.width, config.init_std / math.sqrt(2 * config.layers))

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, d) → (b, t, d)."""
        return self.write(F.gelu(self.read(x)))


class Block(nn.Module):
    """Attention, then an MLP if there is one, each read through a LayerNorm and added."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.ln2 = nn.LayerNorm(config.width) if config.mlp_ratio else None
        self.mlp = MLP(config) if config.mlp_ratio else None

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """(b, t, d) → (b, t, d)."""
        return self.after_attention(x + self.attention(self.ln1(x), positions))

    def after_attention(self, x: Tensor) -> Tensor:
        """The MLP's part, if there is one: (b, t, d) → (b, t, d)."""
        return x if self.mlp is None or self.ln2 is None else x + self.mlp(self.ln2(x))


class LanguageModel(nn.Module):
    """Token numbers (b, t) → logits (b, t, vocabulary)."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Table(config.vocabulary, config.width, config.init_std)
        if config.position_init == "sinusoidal":
            self.positions = Waves(config.context, config.width, config.position_scale)
        else:
            self.positions = Table(config.context, config.width, config.init_std)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_final = nn.LayerNorm(config.width)
        self.unembed = Projection(config.width, config.vocabulary, config.init_std, bias=config.unembed_bias)

    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return cast("list[Block]", list(self.blocks))

    def start(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the first block reads: the stream (b, t, d), and the positions (t, d) for queries and keys, if any."""
        positions = self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.embed(tokens)
        return (x + positions, None) if self.config.positions == "added" else (x, positions)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, t) int64 → (b, t, vocabulary)."""
        x, positions = self.start(tokens)
        for block in self.blocks:
            x = block(x, positions)
        return self.unembed(self.ln_final(x))


def next_token_losses(call: Call, batch: Batch) -> Tensor:
    """Cross-entropy in nats of every next token of `batch` (b, t) int64: (b, t - 1). A `BatchLoss`."""
    logits = call(batch)
    return losses_of_logits(getattr(logits, "logits", logits), batch)


def losses_of_logits(logits: Tensor, batch: Tensor) -> Tensor:
    """`next_token_losses` of logits (b, t, vocabulary)."""
    # F.cross_entropy takes half as long again under vmap.
    return -logits[:, :-1].log_softmax(-1).gather(2, batch[:, 1:, None])[..., 0]
