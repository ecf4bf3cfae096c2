"""Parts of the data that say themselves how their rows are called: pandas frames and columns, by their index."""

from collections.abc import Mapping, Sequence
from typing import Any

from patterning.core.errors import PatterningError


def in_one_order(data: Any, base_weights: object) -> Any:
    """The data; raises `PatterningError` where two indexes hold the same names in another order.

    Rows are paired by place.
    """
    found = [*_indexes(data, "data"), *_indexes(base_weights, "base_weights")]
    for place, index in found[1:]:
        first, known = found[0]
        if index != known and len(index) == len(known) and set(index) == set(known):
            raise PatterningError(
                f"the index of {place} holds the names of {first} in another order, and rows are paired by place: sort "
                "one as the other (part.loc[other.index]), or, where they do lie alike, reset_index(drop=True)"
            )
    return data


def _indexes(part: object, place: str) -> list[tuple[str, list[Any]]]:
    if isinstance(part, Mapping):
        return [found for key, value in part.items() for found in _indexes(value, f"{place}[{key!r}]")]
    if isinstance(part, tuple | list) and len(part) < 100:  # parts, not rows
        return [found for i, value in enumerate(part) for found in _indexes(value, f"{place}[{i}]")]
    index: Any = getattr(part, "index", None)
    if isinstance(part, Sequence) or index is None or not (hasattr(part, "iloc") and hasattr(index, "tolist")):
        return []
    return [(place, index.tolist())]


def index_of(part: object) -> list[Any] | None:
    """The names of a pandas series' rows; None where it is none, or where they are no more than 0, 1, 2, …"""
    found = _indexes(part, "")
    return found[0][1] if found and found[0][1] != list(range(len(found[0][1]))) else None


def refuse_shuffled(name: str, part: object) -> None:
    """Raise `PatterningError` for a pandas series whose index is 0, 1, 2, … in another order: it is taken by place."""
    index = index_of(part)
    if index is not None and sorted(index, key=str) == sorted(range(len(index)), key=str):
        raise PatterningError(
            f"the index of {name} holds the numbers of the rows in another order, and rows are paired by place: sort "
            "it (.sort_index()), or, where it does lie as the rows do, reset_index(drop=True)"
        )
