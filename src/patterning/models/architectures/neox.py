"""Hugging Face GPT-NeoX (Pythia): one projection, in which the queries, keys and values of a head lie together."""

from torch import nn

from patterning.models.architectures.layout import Layout, Masks, base, piece, rows, settings


def layout(module: nn.Module) -> Layout | None:
    """Of GPT-NeoX, with any output layer; None for any other module."""
    config, (body, prefix) = settings(module), base(module)
    if config is None or config.model_type != "gpt_neox" or not hasattr(body, "layers"):
        return None
    heads = config.num_attention_heads
    size = config.hidden_size // heads

    def head(layer: int, i: int) -> Masks:
        name = f"{prefix}layers.{layer}.attention"
        return {
            **rows(module, f"{name}.query_key_value.weight", [piece(i, 3 * size)]),
            **rows(module, f"{name}.query_key_value.bias", [piece(i, 3 * size)]),
            **rows(module, f"{name}.dense.weight", [piece(i, size)], axis=1),
        }

    parts = {"embed": [f"{prefix}embed_in.weight"]}
    for output in ("lm_head", "embed_out"):  # the second is its name before version 5
        if hasattr(module, output):
            parts["unembed"] = [f"{output}.weight"]
    return Layout(
        config.num_hidden_layers, heads, head, (f"{prefix}layers.{{}}.attention.",), (f"{prefix}layers.{{}}.mlp.",),
        parts, output=f"{prefix}layers.{{}}.attention.dense",
    )  # fmt: skip
