"""Plain values: what JSON can hold. Facts about weights, directions and arms are made of them alone."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Plain: TypeAlias = "bool | int | float | str | Sequence[Plain] | Mapping[str, Plain] | None"
Facts: TypeAlias = Mapping[str, Plain]
"""How something was made, by name: for tables and files."""
Document: TypeAlias = dict[str, Any]
"""A JSON document or a part of one: what `results.json` holds. Studies write it; tables and pages read it, also that
of a run of another day, so its shape is checked when it is read (`study.conduct.read_json_results`)."""
