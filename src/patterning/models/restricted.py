"""A task with one component free and everything else clamped at a checkpoint: states hold the component only."""

import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from patterning.errors import PatterningError
from patterning.models.components import Component, ComponentLike, find_component
from patterning.models.module import Batch, LossTask
from patterning.models.split import split_head
from patterning.models.tangents import fused_tangents
from patterning.rng import Stream, generator

CELLS_AT_ONCE = {"cpu": 4_096, "other": 65_536}
"""Samples × replicas that a probe evaluates in one call: what a CPU's cache holds, and enough to fill a GPU."""

ENOUGH_CELLS = 1_024
"""Samples of one replica that fill a CPU core: from there on the replicas of a probe take turns."""


class Restricted:
    """`task` around `anchor` w* (P,) with the coordinates of `component` free: parameter rows are (r, P_C).

    Parameters outside of the component are shared by all replicas and carry no gradient, so that the layers below it
    are computed once for a shared minibatch, and never for a `Probe`. `anchor` (P_C,) is w* in the free coordinates.
    `module` is what is run: the task's, or for a head of our `LanguageModel` the same function with that head apart.
    """

    def __init__(self, task: LossTask, anchor: Tensor, component: ComponentLike) -> None:
        self.task = task
        self.component = find_component(task.module, component)
        whole = {name: part[0] for name, part in task.named(anchor.detach()[None]).items()}
        self._picks = {
            name: None if mask is None else mask.flatten().nonzero()[:, 0].to(anchor.device)
            for name, mask in self.component.masks.items()
        }
        self._whole = {name: whole[name] for name in self._picks}
        self.fixed = {name: value for name, value in whole.items() if name not in self._picks}
        self._sizes = [self._whole[name].numel() if pick is None else len(pick) for name, pick in self._picks.items()]
        self.anchor = torch.cat(
            [
                self._whole[name].flatten() if pick is None else self._whole[name].flatten()[pick]
                for name, pick in self._picks.items()
            ]
        )
        names = list(task.shapes)
        below = sum(task.shapes[name].numel() for name in names[: min(names.index(name) for name in self._picks)])
        # Replicas share the work below the component. Where that is little they may as well take turns on a CPU.
        self.shares_little = self.anchor.device.type == "cpu" and below < task.num_parameters / 4
        self.module, self._alone = task.module, ""
        if _is_head(task.module, self.component):
            loaded = task.load(deepcopy(task.module), anchor).requires_grad_(False)
            if (split := split_head(loaded, self.component.name)) is not None:
                self.module, self._alone = split
        self.base_weights, self.draws, self.samples_per_row = task.base_weights, task.draws, task.samples_per_row

    @property
    def num_parameters(self) -> int:
        """P_C, the number of free coordinates."""
        return len(self.anchor)

    def init(self, seeds: Sequence[int]) -> Tensor:
        """w* for every seed: a clamped model starts nowhere else."""
        return self.anchor.expand(len(seeds), -1).clone()

    def rows_at_once(self, replicas: int) -> int:
        """Rows of data that a minibatch of `replicas` is cut into."""
        return self.cut(1 if self.shares_little else replicas)

    def cut(self, replicas: int) -> int:
        """Rows of data that `replicas` evaluate in one call."""
        cells = CELLS_AT_ONCE.get(self.anchor.device.type, CELLS_AT_ONCE["other"])
        return max(1, cells // (self.samples_per_row * replicas))

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        """Loss in nats of rows `index` (r, b): (r, b), the mean where a row holds several samples."""
        found = self.sample_losses(flat, index)
        return found if self.samples_per_row == 1 else found.unflatten(1, (index.shape[1], -1)).mean(2)

    def sample_losses(self, flat: Tensor, index: Tensor) -> Tensor:
        """Loss of every sample in rows `index` (r, b) under free coordinates `flat` (r, P_C): (r, b·t)."""
        turns = self.shares_little and index.shape[1] * self.samples_per_row >= ENOUGH_CELLS
        return self.run(flat, self.task.data, index, one_by_one=turns)

    def run(self, flat: Tensor, data: Batch, index: Tensor, *, one_by_one: bool = False) -> Tensor:
        """Losses (r, b·t) of rows `index` (r, b) of `data` under free coordinates `flat` (r, P_C)."""
        return self.task.run(*self.parameters(flat), data, index, module=self.module, one_by_one=one_by_one)

    def parameters(self, flat: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What `module` is called with: parameters that differ by replica (r, *shape), and those that do not."""
        if not self._alone:
            return self.varied(flat), self.fixed
        own = {name: p.shape for name, p in self.module.named_parameters() if name.startswith(self._alone)}
        parts = self._checked(flat).split([shape.numel() for shape in own.values()], dim=1)
        return {name: part.view(-1, *own[name]) for name, part in zip(own, parts, strict=True)}, {}

    def varied(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters that the component touches, (r, *shape), at free coordinates `flat` (r, P_C)."""
        result = {}
        parts = self._checked(flat).split(self._sizes, dim=1)
        for (name, pick), part in zip(self._picks.items(), parts, strict=True):
            whole = self._whole[name]
            rows = part if pick is None else whole.flatten().expand(len(flat), -1).index_copy(1, pick, part)
            result[name] = rows.reshape(-1, *whole.shape)
        return result

    def expand(self, flat: Tensor) -> Tensor:
        """Full parameter rows (r, P) of the task at free coordinates `flat` (r, P_C), for observables of the model."""
        varied = self.varied(flat)
        return torch.cat(
            [
                (varied[name] if name in varied else self.fixed[name].expand(len(flat), *shape)).reshape(len(flat), -1)
                for name, shape in self.task.shapes.items()
            ],
            dim=1,
        )

    def _checked(self, flat: Tensor) -> Tensor:
        if flat.ndim != 2 or flat.shape[1] != self.num_parameters:
            raise PatterningError(f"parameters {tuple(flat.shape)} are not (r, {self.num_parameters})")
        return flat


class Probe:
    """Losses of fixed rows of the data, with what lies below the component computed once and kept.

    Called with `flat` (r, P_C) it returns the losses of all samples in `rows`, (r, len(rows)·t). A submodule's output
    is kept when autograd finds no way to it from the component, and a change of the component does not change it by a
    bit (on the rows of the first call). A module called twice in a pass is computed as usual, and so is all where a
    replay gives other losses or writes into what is kept. `at_anchor` (n,): the losses at w*.
    """

    def __init__(self, restricted: Restricted, rows: Tensor, replicas: int = 1) -> None:
        self.restricted = restricted
        # Below the component nothing is computed, so replicas share no work: batched, they only fill the device.
        cells = len(rows) * restricted.samples_per_row
        self.one_by_one = restricted.anchor.device.type == "cpu" and cells >= ENOUGH_CELLS
        self.chunks = rows.split(restricted.cut(1 if self.one_by_one else replicas))
        self._constants, losses, names = [], [], None
        for part in self.chunks:
            apart, here = _apart(restricted, part, names)
            names = _unmoved(restricted, part, apart, here) if names is None else names
            self._constants.append({name: value for name, value in apart.items() if name in names})
            losses.append(here)
        self.at_anchor = torch.cat(losses)

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

    def _part(self, flat: Tensor, rows: Tensor, constants: Mapping[str, Any]) -> Tensor:
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


def _is_head(module: nn.Module, component: Component) -> bool:
    """Whether a component called like a head is that head, and not a mask of the user's own."""
    try:
        known = find_component(module, component.name).masks
    except PatterningError:
        return False
    return list(known) == list(component.masks) and all(
        own is not None and mask is not None and torch.equal(own, mask)
        for own, mask in zip(known.values(), component.masks.values(), strict=True)
    )


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


def _unmoved(restricted: Restricted, rows: Tensor, apart: Mapping[str, Tensor], losses: Tensor) -> set[str]:
    """The outermost of `apart` that another value of the component leaves alone (an argmax has no gradient, but moves).

    Nothing, where the module writes into them.
    """
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
def _replayed(module: nn.Module, constants: Mapping[str, Any]) -> Iterator[None]:
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
