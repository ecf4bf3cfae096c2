"""Hugging Face models built like Llama (SmolLM2, Mistral, Qwen2, Qwen3, Gemma, OLMo): split projections.

They are told by their parts, `layers[i].self_attn.{q,k,v,o}_proj`, not by their names. Several heads may read the keys
and values of one (grouped-query attention), and a head may have any size.
"""

from typing import Any

from torch import nn

from patterning.models.architectures.layout import Layout, Masks, base, piece, rows, settings, split_head

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def layout(module: nn.Module) -> Layout | None:
    """Of a decoder with split projections, with any output layer; None for any other module."""
    config, (body, prefix) = settings(module), base(module)
    layers: Any = getattr(body, "layers", None)
    if config is None or not isinstance(layers, nn.ModuleList) or not len(layers):
        return None
    attentions: list[Any] = [getattr(layer, "self_attn", None) for layer in layers]
    if not all(all(isinstance(getattr(a, part, None), nn.Linear) for part in PROJECTIONS) for a in attentions):
        return None
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    shares, size = heads // groups, attentions[0].q_proj.out_features // heads
    norms = [name for name in ("q_norm", "k_norm") if hasattr(attentions[0], name)]
    # A norm over each head has one set of gains for all of them; one over all heads (OLMo 2) has a slice for each.
    of_all = [name for name in norms if getattr(attentions[0], name).weight.numel() == size]

    def head(layer: int, i: int) -> Masks:
        name = f"{prefix}layers.{layer}.self_attn"
        read = {f"{name}.q_proj": piece(i, size)} | {
            f"{name}.{part}": piece(i // shares, size) for part in ("k_proj", "v_proj")
        }
        masks = split_head(module, read, f"{name}.o_proj", piece(i, size))
        for norm in norms:
            if norm not in of_all:
                masks |= rows(module, f"{name}.{norm}.weight", [piece(i if norm == "q_norm" else i // shares, size)])
        return masks

    parts = {"embed": [f"{prefix}embed_tokens.weight"]}
    if hasattr(module, "lm_head"):
        parts["unembed"] = ["lm_head.weight"]
    note = f"the gains of {' and '.join(of_all)} belong to all heads of the layer and stay at w*" if of_all else ""
    return Layout(
        len(layers), heads, head, (f"{prefix}layers.{{}}.self_attn.",), (f"{prefix}layers.{{}}.mlp.",), parts,
        shares, f"{prefix}layers.{{}}.self_attn.o_proj", note,
    )  # fmt: skip
