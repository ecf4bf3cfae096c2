"""Plain values: what JSON can hold. Facts about weights, directions and arms are made of them alone."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Plain: TypeAlias = "bool | int | float | str | Sequence[Plain] | Mapping[str, Plain] | None"
Facts: TypeAlias = Mapping[str, Plain]
"""How something was made, by name: for tables and files."""
