r"""Edits of a data set as interventions: rows dropped or duplicated, texts rewritten, and what they should do.

Dropping and duplicating rows are changes of weights, and exact as such: n rows without the rows D are ρ = 0 there and
n / (n - |D|) elsewhere. To first order an observable then moves by

.. math:: \Delta\langle\varphi\rangle = \sum_j q_j \chi_j (\rho_j - 1)

with χ the response to the share of a sample (Wang & Murfet, arXiv 2601.13548): in the units of `Response`, nβ χ. A
rewritten text is a new sample whose χ is not known; the same formula then takes away the old rows and adds others.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import ndtri

from patterning.core.arrays import Floats, as_floats, check_level
from patterning.core.errors import PatterningError
from patterning.intervention.change import Change
from patterning.intervention.data_weights import Weights

_DELIMITERS = re.compile(r"\s*([()\[\]{}<>,;:])\s*")
_SPACES = re.compile(r"\s+")


def collapse_whitespace(texts: Iterable[str]) -> list[str]:
    """Each text with every run of whitespace as one space, and none at its ends."""
    return [_SPACES.sub(" ", text).strip() for text in _texts(texts)]


def expand_delimiters(texts: Iterable[str]) -> list[str]:
    """Each text with one space on both sides of every bracket, comma, colon and semicolon (none at its ends)."""
    return [re.sub(r" {2,}", " ", _DELIMITERS.sub(r" \1 ", text)).strip(" ") for text in _texts(texts)]


def drop(rows: Sequence[Any], places: Iterable[int]) -> list[Any]:
    """The rows without those at `places`."""
    out = set(_places(places, _count(rows)))
    return [row for place, row in enumerate(rows) if place not in out]


def duplicate(rows: Sequence[Any], places: Iterable[int], times: int = 2) -> list[Any]:
    """The rows with each of those at `places` `times` times, one after the other."""
    if isinstance(times, bool) or not isinstance(times, int) or times < 1:
        raise PatterningError(f"times is {times!r}: it must be a whole number >= 1 (drop takes rows out)")
    often = set(_places(places, _count(rows)))
    return [row for place, row in enumerate(rows) for _ in range(times if place in often else 1)]


def dropped(weights: Weights, rows: Iterable[Any]) -> Weights:
    """The weights that do what dropping the rows with these ids does: 0 there, more for the others."""
    return _multiplied(weights, rows, 0.0, "dropped")


def duplicated(weights: Weights, rows: Iterable[Any], times: float = 2.0) -> Weights:
    """The weights that do what having the rows with these ids `times` times does."""
    return _multiplied(weights, rows, float(times), f"{times:g} times")


def effect_of(
    weights: Weights, chi: Any, chi_se: Any = None, before: Weights | None = None, level: float = 0.95
) -> Change:
    """What weights should do to an observable, to first order, with an interval from the error of χ.

    `chi` (n,) or (n, t), shaped like the weights: the change of the observable per unit of ρ and of base weight, in its
    units (nβ χ of a `Response`). `chi_se`: its standard errors, taken as independent; without them the interval is NaN.
    `before`: the weights at which χ was measured, found by the rows' ids (default: ρ = 1). Second order is not covered:
    check large edits by retraining.
    """
    check_level(level)
    base = np.ones_like(weights.rho) if before is None else before.of(weights.ids)
    change = weights.base_weights * (weights.rho - base)
    response = _like("chi", chi, change)
    value = float((change * response).sum())
    error = np.nan if chi_se is None else float(np.sqrt(((change * _like("chi_se", chi_se, change)) ** 2).sum()))
    width = float(ndtri((1 + level) / 2)) * error
    return Change(value, value - width, value + width)


def effect_of_groups(rho_by_group: Mapping[Any, float], groups: Any, chi: Any, chi_se: Any = None) -> Change:
    """χ · Δρ of a mixture: `Weights.of_groups` and `effect_of` in one."""
    return effect_of(Weights.of_groups(groups, rho_by_group), chi, chi_se)


def _multiplied(weights: Weights, rows: Iterable[Any], factor: float, what: str) -> Weights:
    if not (np.isfinite(factor) and factor >= 0):
        raise PatterningError(f"rows cannot be there {factor!r} times: give a number >= 0")
    if isinstance(rows, str | bytes):
        raise PatterningError(f"rows is one text, {rows!r}: give a list of ids")
    wanted = rows if isinstance(rows, np.ndarray) else list(rows)
    places = weights.places(wanted)
    if len(np.unique(places)) < len(places):
        raise PatterningError("a row is named twice: each is changed once, so name it once")
    rho = weights.rho.copy()
    rho[places] *= factor
    facts = {"what": f"{len(np.unique(places))} rows {what}"}
    return replace(weights, rho=rho, facts=facts)


def _like(name: str, values: Any, shape_of: Floats) -> Floats:
    array = as_floats(name, values)
    if array.shape != shape_of.shape:
        raise PatterningError(f"{name} has shape {array.shape}, and the weights {shape_of.shape}")
    if not np.isfinite(array[shape_of != 0]).all():
        raise PatterningError(f"{name} is NaN or infinite for rows whose weight changes")
    return np.where(shape_of != 0, array, 0.0)


def _texts(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise PatterningError("texts is one text: give a list of them, one a row")
    found = list(texts)
    for place, text in enumerate(found):
        if not isinstance(text, str):
            raise PatterningError(f"text {place} is {type(text).__name__}: it must be a string")
    return found


def _count(rows: Any) -> int:
    """How many rows there are; raises `PatterningError` for what does not hold its rows one after the other."""
    frame = hasattr(rows, "columns")  # of pandas, polars, Arrow: going through it gives columns
    if frame or isinstance(rows, Mapping | str | bytes | set | frozenset) or not hasattr(rows, "__len__"):
        hint = ": for a pandas frame, frame.drop(index=frame.index[places])" if frame else ""
        raise PatterningError(f"the rows are a {type(rows).__name__}: give a list of them, one entry a row{hint}")
    return len(rows)


def _places(places: Iterable[int], count: int) -> list[int]:
    found = list(places)
    for place in found:
        if isinstance(place, bool) or not isinstance(place, int | np.integer) or not 0 <= place < count:
            raise PatterningError(
                f"place {place!r} is none of the {count} rows: give whole numbers from 0 to {count - 1}"
            )
    return [int(place) for place in found]
