"""Why finished work in a folder does not serve a call: the parts of what it depends on, by name, and which differ.

A unit's key is one number, which says that something differs and not what. So a folder keeps beside its units what the
last call depended on, part by part (`identity.json`), and a call that finds units of which none fits says what changed.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from patterning.core.identity import attributes_of, digest_of
from patterning.core.libraries import is_library
from patterning.core.module_reads import globals_read, imported, read_from_modules
from patterning.core.notes import without_notes
from patterning.core.store import IDENTITY, RunFolder, Work, write_json

DEPTH = 4
"""How far functions, objects and containers are taken apart."""
MOST_ITEMS = 64
"""A container of more items is one part."""
MOST_NAMED = 4
"""Parts that differ and are named; of more, the number is given."""
OF_LAYERS = "attributes of"
"""Begins the names of parts of a model's layers, which repeat what its configuration says."""
PARTIAL = ("function", "arguments", "keywords")
_log = logging.getLogger("patterning")

Parts = dict[str, str]
"""Name of a part, in words → digest."""


def parts_of(name: str, value: object) -> Parts:
    """What `value` holds, taken apart: "the code of train", "train → net: its parameters", … → digests."""
    found: Parts = {}
    _visit(found, name, value, DEPTH, [])
    return found


def _visit(found: Parts, name: str, value: object, depth: int, above: list[int]) -> None:
    inner = _inner(name, value) if depth and id(value) not in above else None
    if inner is None:
        found[name] = digest_of(value)[0]
        return
    own, others = inner
    found |= {part: digest_of(held)[0] for part, held in own.items()}
    for part, held in others.items():
        _visit(found, part, held, depth - 1, [*above, id(value)])


def _inner(name: str, value: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What is compared as it is, and what is taken apart further, by name; None for what is one part."""
    if isinstance(value, FunctionType) and not is_library(value.__module__):
        return _of_function(name, value)
    if isinstance(value, nn.Module):
        return _of_module(name, value)
    others = _of_container(name, value)
    return None if others is None else ({}, others)


def _of_container(name: str, value: Any) -> dict[str, Any] | None:
    """The parts of a partial, a method, a container or an object by name; None for what has none."""
    held: dict[str, Any] | None = None
    if isinstance(value, partial):
        parts = (value.func, value.args, value.keywords)
        held = {f", its {key}": part for key, part in zip(PARTIAL, parts, strict=True)}
    elif isinstance(value, MethodType):
        held = {"": value.__func__, ", its object": value.__self__}
    elif isinstance(value, Mapping):
        held = {f"[{key!r}]": part for key, part in value.items()} if len(value) <= MOST_ITEMS else None
    elif isinstance(value, list | tuple):
        one = len(value) > MOST_ITEMS or all(map(_plain, value))
        held = None if one else {f"[{i}]": part for i, part in enumerate(value)}
    elif own := attributes_of(value):
        held = {f".{key}": part for key, part in own.items()}
    return None if held is None else {f"{name}{key}": part for key, part in held.items()}


def _of_function(name: str, value: FunctionType) -> tuple[dict[str, Any], dict[str, Any]]:
    code = value.__code__
    own = {f"the code of {name}": (code, value.__defaults__, value.__kwdefaults__)}
    held = {key: value.__globals__[key] for key in globals_read(code) if key in value.__globals__}
    held |= imported(code)
    held |= read_from_modules(code, held)
    for key, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
        try:
            held[key] = cell.cell_contents
        except ValueError:  # named, but not assigned yet
            continue
    return own, {f"{name} → {key}": part for key, part in held.items() if part is not value}


def _of_module(name: str, value: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    plain = vars(nn.Module())
    parameters, buffers = dict(value.named_parameters()), dict(value.named_buffers())
    own: dict[str, Any] = {
        f"the parameters of {name}": parameters,
        f"the buffers of {name}": buffers,
        f"what of {name} is frozen": [p.requires_grad for p in parameters.values()],
        f"the mode (train or eval) of {name}": [part.training for part in value.modules()],
        f"the layers of {name}": [(key, type(part)) for key, part in value.named_modules()],
    }
    for key, part in value.named_modules():
        held = without_notes(part, {one: kept for one, kept in vars(part).items() if one not in plain})
        if key and held:
            own[f"{OF_LAYERS} {name}.{key}"] = held
    held = without_notes(value, {one: kept for one, kept in vars(value).items() if one not in plain})
    return own, {f"{name}.{one}": kept for one, kept in held.items()}


def _plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str | bytes)


def difference(stored: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The parts that differ, in the order of `now`; then those that are gone. Parts of layers come last."""
    parts = [*(part for part in now if stored.get(part) != now[part]), *(part for part in stored if part not in now)]
    return sorted(parts, key=lambda part: part.startswith(OF_LAYERS))


def say_what_differs(run: RunFolder, units: Sequence[Work], parts: Mapping[str, str]) -> None:
    """A warning where the folder has finished units and none is one of `units`, with the parts that differ."""
    there = [path.stem for path in run.units.glob("*.safetensors")]
    if not there or any(unit.key in set(there) for unit in units):
        return
    stored = remembered(run)
    if stored is None:
        why = "an earlier version of the package made them, and nothing says what they depended on"
    elif changed := difference(stored, parts):
        more = f", and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
        why = f"what differs from the last call: {', '.join(changed[:MOST_NAMED])}{more}"
    else:
        why = "the parts that are compared by name are the same, so that something deeper in them differs"
    _log.warning(
        f"nothing of the finished work in {run.path} ({len(there)} pieces) fits this call, which begins anew; {why}. "
        "What is there is kept"
    )


def remember(run: RunFolder, parts: Mapping[str, str]) -> None:
    """Write what this call depends on."""
    write_json(run.path / IDENTITY, {"depends_on": dict(parts)})


def remembered(run: RunFolder) -> Parts | None:
    """What the last call depended on; None where nothing says so."""
    try:
        return dict(json.loads((run.path / IDENTITY).read_text(encoding="utf-8"))["depends_on"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
