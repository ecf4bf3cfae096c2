"""Hugging Face models built like Llama (SmolLM2, Mistral, Qwen2, Qwen3, Gemma, OLMo): split projections.

They are told by their parts, `layers[i].self_attn.{q,k,v,o}_proj`, not by their names. Several heads may read the keys
and values of one (grouped-query attention), and a head may have any size.
"""

from typing import Any

from torch import nn

from patterning.models.architectures.layout import Layout, Masks, base, piece, rows, settings, split_head

NORMS = ("q_norm", "k_norm")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def _plain(attention: Any, heads: int) -> bool:
    """Whether heads lie side by side in each projection, and nothing else is in them, such as gates or other heads."""
    q, k, v, o = (getattr(attention, part) for part in PROJECTIONS)
    size, rest = divmod(o.in_features, heads)
    groups, odd = divmod(k.out_features, max(size, 1))
    return (
        not rest and not odd and groups > 0 and not heads % groups
        and q.out_features == o.in_features and v.out_features == k.out_features
        and all(own.shape == (heads,) for own in attention.parameters(recurse=False))
    )  # fmt: skip


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
    if not all(_plain(attention, heads) for attention in attentions):
        return None
    sizes = [attention.o_proj.in_features // heads for attention in attentions]
    shares = heads // (attentions[0].k_proj.out_features // sizes[0])
    norms = [name for name in NORMS if hasattr(attentions[0], name)]
    # A norm over each head has one set of gains for all of them; one over all heads (OLMo 2) has a slice for each.
    of_all = [name for name in norms if getattr(attentions[0], name).weight.numel() == sizes[0]]
    # Parts of a head that are none of these, such as the gains of a norm over what all heads have read
    others = {path for path, _ in attentions[0].named_children() if path not in (*PROJECTIONS, *NORMS)}
    more = sorted(path for path in others if any(True for _ in attentions[0].get_submodule(path).parameters()))

    def head(layer: int, i: int) -> Masks:
        name, attention, size = f"{prefix}layers.{layer}.self_attn", attentions[layer], sizes[layer]
        group = i * (attention.k_proj.out_features // size) // heads
        read = {f"{name}.q_proj": piece(i, size)} | {
            f"{name}.{part}": piece(group, size) for part in ("k_proj", "v_proj")
        }
        masks = split_head(module, read, f"{name}.o_proj", piece(i, size))
        for norm in norms:
            if norm not in of_all:
                gains = getattr(attention, norm).weight
                step = 1 if gains.ndim == 2 else size
                masks |= rows(module, f"{name}.{norm}.weight", [piece(i if norm == "q_norm" else group, step)])
        for own, _ in attention.named_parameters(recurse=False):  # a number for each head
            masks |= rows(module, f"{name}.{own}", [piece(i, 1)])
        return masks

    parts = {"embed": [f"{prefix}embed_tokens.weight"]}
    if hasattr(module, "lm_head"):
        parts["unembed"] = ["lm_head.weight"]
    notes = [f"the gains of {' and '.join(of_all)} belong to all heads of the layer and stay at w*"] if of_all else []
    notes += [f"{' and '.join(more)} of the layer stays at w*"] if more else []
    return Layout(
        len(layers), heads, head, (f"{prefix}layers.{{}}.self_attn.",), (f"{prefix}layers.{{}}.mlp.",), parts,
        shares, f"{prefix}layers.{{}}.self_attn.o_proj", "; ".join(notes),
    )  # fmt: skip
