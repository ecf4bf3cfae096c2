"""Hugging Face: training under weights. Nothing of it is imported before it is used, `transformers` least of all."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patterning.hf.collate import RowCollator
    from patterning.hf.trainer import WeightedMixin, WeightedTrainer

_PLACES = {"RowCollator": "collate", "WeightedMixin": "trainer", "WeightedTrainer": "trainer"}

__all__ = ["RowCollator", "WeightedMixin", "WeightedTrainer"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'patterning.hf' has no attribute {name!r}")
    value = getattr(import_module(f"patterning.hf.{_PLACES[name]}"), name)
    globals()[name] = value
    return value
