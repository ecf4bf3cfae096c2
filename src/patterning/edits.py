"""`patterning.edits`: edits of a data set as interventions (`patterning.intervention.edits`)."""

from patterning.intervention.edits import (
    collapse_whitespace,
    drop,
    dropped,
    duplicate,
    duplicated,
    effect_of,
    effect_of_groups,
    expand_delimiters,
)

__all__ = [
    "collapse_whitespace", "drop", "dropped", "duplicate", "duplicated", "effect_of", "effect_of_groups",
    "expand_delimiters",
]  # fmt: skip
