"""Hugging Face GPT-2: one projection for queries, keys and values, kept as (in, out) by its `Conv1D`."""

from torch import nn

from patterning.models.architectures.layout import Layout, Masks, base, piece, rows, settings


def layout(module: nn.Module) -> Layout | None:
    """Of GPT-2, with any output layer; None for any other module."""
    config, (body, prefix) = settings(module), base(module)
    if config is None or config.model_type != "gpt2" or not hasattr(body, "h"):
        return None
    width, size = config.n_embd, config.n_embd // config.n_head

    def head(layer: int, i: int) -> Masks:
        name = f"{prefix}h.{layer}.attn"
        thirds = [piece(i, size, k * width) for k in range(3)]
        return {
            **rows(module, f"{name}.c_attn.weight", thirds, axis=1),
            **rows(module, f"{name}.c_attn.bias", thirds),
            **rows(module, f"{name}.c_proj.weight", [piece(i, size)]),
        }

    parts = {"embed": [f"{prefix}wte.weight"], "positions": [f"{prefix}wpe.weight"]}
    if hasattr(module, "lm_head"):
        parts["unembed"] = ["lm_head.weight"]
    return Layout(
        config.n_layer, config.n_head, head, (f"{prefix}h.{{}}.attn.",), (f"{prefix}h.{{}}.mlp.",), parts,
        output=f"{prefix}h.{{}}.attn.c_proj",
    )  # fmt: skip
