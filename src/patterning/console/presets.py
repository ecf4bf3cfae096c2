"""The sizes that each experiment comes in, for the help of `patterning run`: importing them takes seconds."""

from typing import Annotated

import typer

PRESETS = {
    "superposition": ("demo", "long", "fine"),
    "parentheses": ("quick", "standard", "standard-2-layers", "paper-3-layers"),
    "induction": ("tiny", "nano", "small", "paper"),
    "addition": ("standard",),
}
"""By experiment; the tests compare them with the experiments' own."""

_ALL = "; ".join(f"of {name}: {', '.join(sizes)}" for name, sizes in PRESETS.items())
Preset = Annotated[str | None, typer.Option("--preset", help=f"Its size ({_ALL}).")]
