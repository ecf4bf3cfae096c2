"""Whether `train` is a function of its weights and its seed alone: one run is made once more, and must end the same.

A loop that goes on from earlier runs (a network or data outside of it that it changes) gives arms that come later other
outcomes, whatever their weights are. A loop that draws from a generator without a seed makes no pairs. Either shows in
a second run of the same weights and seed. Sums whose order a machine does not fix (several threads, a GPU) show as
well, and differ by little: they are noted and not refused.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np

from patterning.core.errors import PatterningError
from patterning.core.identity import digest_of
from patterning.core.libraries import is_library
from patterning.core.store import Arrays
from patterning.verification.suspicion import STATE

CHANGED = "changed_by_train"
"""Name under which a repeated run stores what `train` changed outside of itself, in UTF-8."""
SLIGHT = 1e-3
"""A difference under this share of the larger of two values is one of rounding."""
NOT_REPEATED = "no run was made twice (recheck=False), so that train was not seen to depend on weights and seed alone"


def reads(function: Any) -> dict[str, Any]:
    """What a function finds outside of itself, by name: in its closure, its module's names, and its object."""
    found = dict[str, Any]()
    bound = function.func if isinstance(function, partial) else function
    if isinstance(function, partial):
        found |= {f"argument {place}": value for place, value in enumerate(function.args)} | function.keywords
    owner = getattr(bound, "__self__", None)
    found |= {f"self.{name}": value for name, value in getattr(owner, "__dict__", {}).items()}
    bound = getattr(bound, "__func__", bound)
    if not isinstance(bound, FunctionType):
        return found | {f"self.{name}": value for name, value in getattr(bound, "__dict__", {}).items()}
    for name, cell in zip(bound.__code__.co_freevars, bound.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # one that is not filled yet
            continue
    return found | {name: bound.__globals__[name] for name in bound.__code__.co_names if name in bound.__globals__}


def digests(train: Callable[..., Any]) -> dict[str, str]:
    """What `train` and its helpers read, as digests by name; what has no value to tell it by is left out."""
    found, waiting, seen = dict[str, str](), [train], set[int]()
    while waiting:
        function = waiting.pop()
        seen.add(id(function))
        for name, value in reads(function).items():
            if isinstance(value, FunctionType):
                if id(value) not in seen and not is_library(value.__module__ or ""):
                    waiting.append(value)
                continue
            own, without_key = digest_of(value)
            if not without_key:
                found.setdefault(name, own)
    return found


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> np.ndarray:
    """Names whose digests differ, as UTF-8 bytes (k,) uint8."""
    names = [name for name, own in before.items() if after.get(name, own) != own]
    return np.frombuffer(", ".join(names).encode(), dtype=np.uint8)


def note_on_repeat(
    first: Arrays, again: Arrays, measures: Mapping[str, Any], seed: int, arm: str, *, found: bool = False
) -> tuple[str, ...]:
    """Notes on a run and its repetition; raises `PatterningError`, by name, where they are not the same run.

    `found`: the first is one of an earlier call.
    """
    differences = {name: (float(first[name]), float(again[name])) for name in measures if first[name] != again[name]}
    other = STATE in first and (STATE not in again or first[STATE].tobytes() != again[STATE].tobytes())
    if not differences and not other:
        return ()
    shown = ", ".join(f"{name!r} {one:.6g} and then {two:.6g}" for name, (one, two) in differences.items())
    large = [name for name, (one, two) in differences.items() if abs(one - two) > SLIGHT * max(abs(one), abs(two))]
    names = again[CHANGED].tobytes().decode()
    if large and found:
        raise PatterningError(
            f"the runs in this folder are those of another train or other measures: the {arm} run of seed {seed} ends "
            f"otherwise now ({shown}). What they read has changed where no key sees it (a file, a variable of the "
            "environment, a name put together at run time): name another folder, out=..."
        )
    if large and STATE in first and not other:
        raise PatterningError(
            f"measures gave other values for the same parameters, when the unweighted run of seed {seed} was made once "
            f"more ({shown}): something in them is random, or they count their calls; draw random numbers once, before"
        )
    if large:
        why = (
            f"it goes on with what earlier runs left in {names}, from outside of it; let it make a fresh one or a "
            "copy, or load the initial values first"
            if names
            else "it draws from a generator or reads a clock that its seed does not set, goes on from files that "
            "earlier runs wrote, or sums in an order that the machine does not fix"
        )
        raise PatterningError(
            f"train gave other outcomes when it was called again with the same weights and seed (arm {arm!r}, seed "
            f"{seed}: {shown}): {why}. The same seed in two arms is then no pair. recheck=False compares such runs all "
            "the same, and the evidence says so"
        )
    what = shown or "the parameters alone differ"
    return (
        f"train does not repeat itself to the last bit (seed {seed}, unweighted: {what}"
        f"{f'; it changes {names}' if names else ''})",
    )
