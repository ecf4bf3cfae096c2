"""Observables as a user gives them, tried on one row before anything is sampled."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from patterning.core.answers import reason_of, same
from patterning.core.arrays import are_shares
from patterning.core.batch import Batch, leaves
from patterning.core.errors import PatterningError
from patterning.core.rng import Stream, generator

ROUNDING = 2e-4
"""By which the values of an observable may differ besides a share of what they are: one near 0 is a difference."""


def check_names(names: Mapping[str, object]) -> None:
    """Raise `PatterningError` for names that a table or a file could not hold, or that read alike."""
    alike: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or name != name.strip():
            raise PatterningError(
                f"an observable is called {name!r}: a name is a line of text, without line breaks and without spaces "
                "at its ends"
            )
        if (other := alike.setdefault(name.casefold(), name)) != name:
            raise PatterningError(f"observables {other!r} and {name!r} differ in capital letters alone: rename one")


def check_value(name: str, value: object, flat: Tensor) -> Tensor:
    """What an observable returned for rows `flat` (r, P): real numbers (r,) on their device.

    Raises `PatterningError` for anything else.
    """
    if not isinstance(value, Tensor):
        raise PatterningError(f"observable {name!r} returned {type(value).__name__}: it must return a tensor (r,)")
    if value.shape != (len(flat),):
        raise PatterningError(
            f"observable {name!r} gave shape {tuple(value.shape)} for {len(flat)} replicas: it must be (r,)"
        )
    if value.is_complex():
        raise PatterningError(f"observable {name!r} returned complex numbers: they must be real")
    if value.device != flat.device:
        raise PatterningError(
            f"observable {name!r} returned numbers on {value.device} for parameters on {flat.device}: keep them there"
        )
    return value


def try_observables(observables: Mapping[str, Callable[[Tensor], Tensor]], anchor: Tensor, data: Batch = None) -> None:
    """Evaluate functions of parameter rows (r, P) at `anchor` w* (P,) and beside it.

    Raises `PatterningError` for one that fails, that gives anything but finite real numbers (r,) at w*, that is not the
    same twice or mixes rows, that writes into `data`, or that is the same at w* and at noise around it: it does not
    depend on the parameters.
    """
    check_names(observables)
    seen = dict[tuple[float, ...], str]()
    for name, function in observables.items():
        written = versions(data)
        value = evaluated(name, function, anchor[None])
        if versions(data) != written:
            raise PatterningError(
                f"observable {name!r} writes into the task's data, which then is no longer what it was made of: copy "
                "what it changes (x.clone()), and make the task again"
            )
        if not bool(value.isfinite().all()):
            raise PatterningError(f"observable {name!r} is {float(value[0])} at w*")
        if not same(evaluated(name, function, anchor[None]), value, ROUNDING):
            raise PatterningError(
                f"observable {name!r} is not the same twice at w*: something in it is random. Draw its random numbers "
                "once, before"
            )
        others = _others(anchor)
        try:
            moved = evaluated(name, function, others)
            together = evaluated(name, function, torch.stack([anchor, *others]))
        except PatterningError:
            continue  # it is defined near w* alone, which suffices, and is refused by name where it is not
        if not same(together[:1], value, ROUNDING):
            raise PatterningError(
                f"observable {name!r} is {float(value[0]):.6g} for w* alone and {float(together[0]):.6g} for w* beside "
                "other rows: it must give each row (P,) of (r, P) a value of its own"
            )
        if bool((moved == value).all()):
            raise PatterningError(
                f"observable {name!r} is {float(value[0]):.6g} whatever the parameters are: it must be computed from "
                "the module or the parameter row that it is given"
            )
        values = tuple(together.tolist())
        if values in seen and not are_shares(together.double().cpu().numpy()):
            raise PatterningError(
                f"observables {seen[values]!r} and {name!r} are the same at w* and beside it. A function made in a "
                "loop sees the loop's last value: bind it (lambda model, i=i: …), or leave one of them out"
            )
        seen[values] = name


def evaluated(name: str, function: Callable[[Tensor], Tensor], flat: Tensor) -> Tensor:
    """φ (r,) at rows `flat` (r, P), which it cannot change; raises `PatterningError` where it fails."""
    try:
        with torch.no_grad():
            value = function(flat.clone())
    except PatterningError:
        raise
    except Exception as error:
        raise PatterningError(
            f"observable {name!r} cannot be evaluated ({type(error).__name__}: {reason_of(error)}): it is given "
            "parameter rows (r, P) and must return a tensor (r,)"
        ) from error
    return check_value(name, value, flat)


def versions(data: Batch) -> list[int]:
    """How often the tensors of a task's data have been written to."""
    return [leaf._version for leaf in leaves(data)]


def _others(anchor: Tensor) -> Tensor:
    """Two rows (2, P) of noise around w*, as large as it is."""
    size = float(anchor.double().square().mean().sqrt()) + 0.05
    noise = generator(0, Stream.TRIAL, 1).standard_normal((2, len(anchor)), dtype="float32")
    return anchor + size * torch.from_numpy(noise).to(anchor)


def at_two_places(function: Callable[[Tensor], Tensor], anchor: Tensor) -> list[float]:
    """An observable at w* and beside it: what it reads from outside, a file say, may be another thing than it was.

    At w* alone a factor of 0 may hide that, as in a distance from w*.
    """
    noise = torch.from_numpy(generator(0, Stream.TRIAL).standard_normal(len(anchor))).to(anchor)
    size = 0.05 * float(anchor.abs().mean()) + 1e-3
    with torch.no_grad():
        first = float(function(anchor[None]))
        try:
            return [first, float(function((anchor + size * noise)[None]))]
        except Exception:  # it may be defined near w* alone
            return [first, math.nan]
