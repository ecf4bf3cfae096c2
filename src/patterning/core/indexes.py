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
