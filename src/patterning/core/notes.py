"""Attributes of library objects that decide no number: where a model came from, what a process noted down on the way.

A key must be the same in every process that loads the same model. Some libraries keep a `hash()` in their objects,
which Python salts anew for each process, and Hugging Face models keep their origin beside their values.
"""

from collections.abc import Mapping
from typing import Any

from patterning.core.libraries import is_library

OF_TRANSFORMERS = frozenset(
    ("_name_or_path", "name_or_path", "_commit_hash", "_original_object_hash", "_from_model_config",
     "transformers_version", "warnings_issued", "model_tags")
)  # fmt: skip
"""Origin, version of the writer and warnings given: class, settings, parameters and buffers say what a model does."""


def without_notes(owner: object, held: Mapping[str, Any]) -> dict[str, Any]:
    """`held`, attributes of `owner` by name, without those that decide no number."""
    homes = {kind.__module__ for kind in type(owner).__mro__ if kind is not object}
    named = OF_TRANSFORMERS if any(home.partition(".")[0] == "transformers" for home in homes) else frozenset[str]()
    salted = any(is_library(home) for home in homes)
    return {
        name: value
        for name, value in held.items()
        if name not in named and not (salted and type(value) is int and name.endswith("_hash"))
    }
