"""Architectures whose parts are known by name, a file each.

A new one is one file with `layout(module) -> Layout | None`, and its line below.
"""

from torch import nn

from patterning.models.architectures import bert, gpt2, lens, llama, neox, own
from patterning.models.architectures.layout import Layout

ARCHITECTURES = (own.layout, lens.layout, gpt2.layout, neox.layout, llama.layout, bert.layout)


def layout_of(module: nn.Module) -> Layout | None:
    """Where a module keeps its parts; None for an unknown architecture."""
    return next((found for layout in ARCHITECTURES if (found := layout(module)) is not None), None)
