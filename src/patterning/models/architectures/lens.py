"""TransformerLens: a `HookedTransformer`, whose heads are entries of its parameters."""

from typing import Any

from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.models.architectures.layout import Layout, Masks, rows


def layout(module: nn.Module) -> Layout | None:
    """Of a `HookedTransformer`; None for any other module.

    Raises `PatterningError` for a pretrained one whose weights were processed: gains of its norms are then part of the
    weights that read the stream, so that w* lies in other coordinates than those the model was trained in.
    """
    config: Any = getattr(module, "cfg", None)
    if config is None or not hasattr(config, "n_heads") or not hasattr(module, "blocks"):
        return None
    if hasattr(module, "original_model"):  # a TransformerBridge, whose parameters are the wrapped model's
        return None
    folded = getattr(config, "normalization_type", None) in ("LNPre", "RMSPre")
    if folded and getattr(config, "original_architecture", None):
        raise PatterningError(
            "the layer norms of this HookedTransformer are folded into its weights, which are then not those that "
            "training moves: load it with HookedTransformer.from_pretrained_no_processing(...), or with fold_ln=False"
        )
    # Under grouped-query attention several heads read the keys and values of one.
    groups = getattr(config, "n_key_value_heads", None) or config.n_heads
    shares, mark = config.n_heads // groups, "" if groups == config.n_heads else "_"

    def head(layer: int, i: int) -> Masks:
        masks: dict[str, Tensor | None] = {}
        of_head = {"W_Q": i, "W_O": i, "b_Q": i}
        of_group = {f"{mark}{name}": i // shares for name in ("W_K", "W_V", "b_K", "b_V")}
        for name, place in {**of_head, **of_group}.items():
            masks |= rows(module, f"blocks.{layer}.attn.{name}", [slice(place, place + 1)])
        return masks

    parts = {"embed": ["embed.W_E"], "positions": ["pos_embed.W_pos"], "unembed": ["unembed.W_U", "unembed.b_U"]}
    mlp = () if getattr(config, "attn_only", False) else ("blocks.{}.mlp.",)
    return Layout(
        config.n_layers, config.n_heads, head, ("blocks.{}.attn.",), mlp, parts, shares, "blocks.{}.attn.hook_z"
    )
