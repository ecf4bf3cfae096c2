"""The `LanguageModel` of this package."""

from torch import nn

from patterning.models.architectures.layout import Layout, Masks, piece, rows


def layout(module: nn.Module) -> Layout | None:
    """Of a `LanguageModel`; None for any other module."""
    from patterning.models.language import LanguageModel

    if not isinstance(module, LanguageModel):
        return None
    config = module.config
    size = config.width // config.heads

    def head(layer: int, i: int) -> Masks:
        name = f"blocks.{layer}.attention"
        thirds = [piece(i, size, k * config.width) for k in range(3)]
        return {
            **rows(module, f"{name}.qkv.weight", thirds),
            **rows(module, f"{name}.qkv.bias", thirds),
            **rows(module, f"{name}.out.weight", [piece(i, size)], axis=1),
        }

    parts = {
        "embed": ["embed.weight"],
        "positions": ["positions.weight"],
        "unembed": ["unembed.weight", "unembed.bias"],
    }
    return Layout(
        config.layers, config.heads, head, ("blocks.{}.attention.",),
        ("blocks.{}.mlp.",) if config.mlp_ratio > 0 else (), parts, output="blocks.{}.attention.out",
    )  # fmt: skip
