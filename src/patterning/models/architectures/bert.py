"""Hugging Face BERT and DistilBERT (RoBERTa and ELECTRA have BERT's parts): encoders with split projections."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from patterning.models.architectures.layout import Layout, Masks, base, piece, settings, split_head


@dataclass(frozen=True)
class _Names:
    """What an encoder calls its parts, below a layer."""

    layers: str
    read: tuple[str, str, str]
    write: str
    mlp: tuple[str, ...]


BERT = _Names(
    "encoder.layer", ("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense",
    ("intermediate.dense.", "output.dense."),
)  # fmt: skip
DISTILBERT = _Names(
    "transformer.layer", ("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin", ("ffn.",)
)


def layout(module: nn.Module) -> Layout | None:
    """Of such an encoder, with any output layer; None for any other module."""
    config, (body, prefix) = settings(module), base(module)
    if config is None:
        return None
    for names in (BERT, DISTILBERT):
        layers: Any = _part(body, names.layers)
        if isinstance(layers, nn.ModuleList) and len(layers) and _part(layers[0], names.read[0]) is not None:
            return _encoder(module, config, prefix, names, layers)
    return None


def _part(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _encoder(module: nn.Module, config: Any, prefix: str, names: _Names, layers: nn.ModuleList) -> Layout | None:
    heads = int(config.num_attention_heads)
    widths = {
        getattr(layer.get_submodule(part), "in_features" if part == names.write else "out_features", 0)
        for layer in layers
        for part in (*names.read, names.write)
    }
    size, rest = divmod(max(widths), heads)
    if len(widths) > 1 or rest or not size:  # heads do not lie side by side in all of them (ConvBERT)
        return None
    inside = f"{prefix}{names.layers}.{{}}."

    def head(layer: int, i: int) -> Masks:
        here = inside.format(layer)
        read = {f"{here}{part}": piece(i, size) for part in names.read}
        return split_head(module, read, f"{here}{names.write}", piece(i, size))

    attention = tuple(f"{inside}{part}." for part in (*names.read, names.write))
    embeddings = f"{prefix}embeddings."
    parts = {
        "embed": [f"{embeddings}word_embeddings.weight"],
        "positions": [f"{embeddings}position_embeddings.weight"],
    }
    return Layout(
        len(layers), heads, head, attention, tuple(f"{inside}{part}" for part in names.mlp), parts,
        output=f"{inside}{names.write}",
    )  # fmt: skip
