"""Losses of fixed rows while one component moves: what the component cannot reach is computed once and kept."""

import math
import warnings
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from patterning.models.restricted import ENOUGH_CELLS, Restricted
from patterning.models.tangents import fused_tangents
from patterning.rng import Stream, generator

TRIED = 512
"""Samples on which a `Probe` finds out what it can keep."""


class Probe:
    """Losses of fixed rows of the data, with what lies below the component computed once and kept.

    Called with `flat` (r, P_C) it returns the losses of all samples in `rows`, (r, len(rows)·t). A submodule's output
    is kept when autograd finds no way to it from the component, and a change of the component does not change it by a
    bit on the first of the rows. A module called twice in a pass is computed as usual, and so is all where a replay
    gives other losses or writes into what is kept. `at_anchor` (n,): the losses at w*.
    """

    def __init__(self, restricted: Restricted, rows: Tensor, replicas: int = 1) -> None:
        self.restricted = restricted
        # Below the component nothing is computed, so replicas share no work: batched, they only fill the device.
        cells = len(rows) * restricted.samples_per_row
        self.one_by_one = restricted.anchor.device.type == "cpu" and cells >= ENOUGH_CELLS
        self.chunks = rows.split(restricted.cut(1 if self.one_by_one else replicas))
        names = _constant(restricted, rows[: math.ceil(TRIED / restricted.samples_per_row)])
        found = [_apart(restricted, part, names) for part in self.chunks]
        self._constants = [constants for constants, _ in found]
        self.at_anchor = torch.cat([losses for _, losses in found])

    def __len__(self) -> int:
        """How many samples."""
        return sum(len(part) for part in self.chunks) * self.restricted.samples_per_row

    @property
    def kept_bytes(self) -> int:
        """Memory that the kept outputs take."""
        return sum(value.nbytes for part in self._constants for value in part.values())

    def __call__(self, flat: Tensor) -> Tensor:
        """(r, P_C) → (r, n), rows in order."""
        parts = zip(self.chunks, self._constants, strict=True)
        return torch.cat([self._part(flat, part, constants) for part, constants in parts], dim=1)

    def _part(self, flat: Tensor, rows: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        r = self.restricted
        with _replayed(r.module, constants):
            return r.run(flat, r.task.data, rows.expand(len(flat), -1), one_by_one=self.one_by_one)

    def slope(self, flat: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (r, n), their mean under `weights` (n,), both float64, and the gradient (r, P_C) of that mean."""
        state, found, slope = flat.detach().requires_grad_(), [], torch.zeros_like(flat)
        t = self.restricted.samples_per_row
        parts = weights.split([len(part) * t for part in self.chunks])
        for part, constants, own in zip(self.chunks, self._constants, parts, strict=True):
            losses = self._part(state, part, constants).double()
            slope += torch.autograd.grad((losses * own).sum(), state)[0]
            found.append(losses.detach())
        values = torch.cat(found, dim=1)
        return values, (values * weights).sum(1), slope

    def along(self, flat: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """Losses at `flat` and their derivatives along `tangent`, both (r, P_C): (r, n), by forward differentiation."""
        with warnings.catch_warnings():  # loading torch's own formulas warns of torch's own script
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
            with fused_tangents(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward derivative
                found = torch.func.jvp(self, (flat,), (tangent,))
        return found[0], found[1]


def _apart(restricted: Restricted, rows: Tensor, only: Container[str] | None) -> tuple[dict[str, Tensor], Tensor]:
    """Submodule (of `only` these) → its output on `rows` at w*, where no gradient leads to the component; the losses.

    Equal outputs would not do: a unit that is dead here may wake up elsewhere.
    """
    with _recorded(restricted.module, only) as outputs:
        losses = _at(restricted, restricted.anchor, rows)
    return {
        name: calls[0]
        for name, calls in outputs.items()
        if len(calls) == 1 and isinstance(calls[0], Tensor) and not calls[0].requires_grad
    }, losses


def _constant(restricted: Restricted, rows: Tensor) -> set[str]:
    """The outermost submodules that the component cannot reach; none, where the module writes into their outputs.

    Another value of the component must leave them alone, too: an argmax has no gradient, but moves.
    """
    apart, losses = _apart(restricted, rows, None)
    noise = torch.from_numpy(generator(0, Stream.NOISE).standard_normal(restricted.num_parameters))
    size = float(restricted.anchor.abs().mean()) + 0.1
    with _recorded(restricted.module, apart) as moved:
        _at(restricted, restricted.anchor + size * noise.to(restricted.anchor), rows)
    same = {name for name, value in apart.items() if len(moved.get(name, ())) == 1 and _equal(value, moved[name][0])}
    kept = {name: apart[name] for name in same if not any(name.startswith(f"{up}.") for up in same)}
    versions = [value._version for value in kept.values()]
    with _replayed(restricted.module, kept):
        good = torch.equal(_at(restricted, restricted.anchor, rows), losses)
    return set(kept) if good and versions == [value._version for value in kept.values()] else set()


def _at(restricted: Restricted, flat: Tensor, rows: Tensor) -> Tensor:
    """Losses of `rows` at `flat` (P_C,), computed as where a gradient is wanted."""
    with torch.enable_grad():
        free = flat[None].detach().requires_grad_()
        return restricted.run(free, restricted.task.data, rows[None], one_by_one=True)[0].detach()


@contextmanager
def _recorded(module: nn.Module, only: Container[str] | None = None) -> Iterator[dict[str, list[Any]]]:
    """What every submodule (of `only` these) returns while the context lasts, by name, in the order of its calls."""
    outputs: dict[str, list[Any]] = {}

    def keep(name: str, output: Any) -> None:
        changes = isinstance(output, Tensor) and not output.requires_grad  # the module may write into it later
        outputs.setdefault(name, []).append(output.clone() if changes else output)

    handles = [
        part.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name, part in module.named_modules()
        if name and (only is None or name in only)
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replayed(module: nn.Module, constants: Mapping[str, Tensor]) -> Iterator[None]:
    """Submodules named in `constants` give these outputs instead of computing them."""
    parts = dict(module.named_modules())
    for name, value in constants.items():
        parts[name].__dict__["forward"] = lambda *_args, _value=value, **_kwargs: _value
    try:
        yield
    finally:
        for name in constants:
            del parts[name].__dict__["forward"]


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
