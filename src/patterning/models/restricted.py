"""A task with one component free and everything else clamped at a checkpoint: states hold the component only."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from patterning.errors import PatterningError
from patterning.models.components import ComponentLike, find_component
from patterning.models.module import LossTask, take_rows
from patterning.rng import Stream, generator

CELLS_AT_ONCE = 16_384
"""Samples × replicas that a probe evaluates in one call: enough for a GPU, and not too much for a CPU's cache."""


class Restricted:
    """`task` around `anchor` w* (P,) with the coordinates of `component` free: parameter rows are (r, P_C).

    Parameters outside of the component are shared by all replicas and carry no gradient, so that the layers below it
    are computed once for a shared minibatch, and never for a `Probe`. `anchor` (P_C,) is w* in the free coordinates.
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
        self.base_weights, self.draws, self.samples_per_row = task.base_weights, task.draws, task.samples_per_row

    @property
    def num_parameters(self) -> int:
        """P_C, the number of free coordinates."""
        return len(self.anchor)

    def init(self, seeds: Sequence[int]) -> Tensor:
        """w* for every seed: a clamped model starts nowhere else."""
        return self.anchor.expand(len(seeds), -1).clone()

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        """Loss in nats of rows `index` (r, b): (r, b), the mean where a row holds several samples."""
        found = self.sample_losses(flat, index)
        return found if self.samples_per_row == 1 else found.unflatten(1, (index.shape[1], -1)).mean(2)

    def sample_losses(self, flat: Tensor, index: Tensor) -> Tensor:
        """Loss of every sample in rows `index` (r, b) under free coordinates `flat` (r, P_C): (r, b·t)."""
        return self.task.run(self.varied(flat), self.fixed, self.task.data, index)

    def varied(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters that the component touches, (r, *shape), at free coordinates `flat` (r, P_C)."""
        if flat.ndim != 2 or flat.shape[1] != self.num_parameters:
            raise PatterningError(f"parameters {tuple(flat.shape)} are not (r, {self.num_parameters})")
        result = {}
        for (name, pick), part in zip(self._picks.items(), flat.split(self._sizes, dim=1), strict=True):
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


class Probe:
    """Losses of fixed rows of the data, with what lies below the component computed once and kept.

    Called with `flat` (r, P_C) it returns the losses of all samples in `rows`, (r, len(rows)·t). A submodule's output
    is kept when changing the component does not change it by a bit; a module called twice in a pass, or one whose
    replay does not give the same losses again (it works in place), is computed as usual.
    """

    def __init__(self, restricted: Restricted, rows: Tensor, replicas: int = 1) -> None:
        self.restricted = restricted
        chunk = max(1, CELLS_AT_ONCE // (restricted.samples_per_row * replicas))
        self.chunks = rows.split(chunk)
        self._constants = [_constant_calls(restricted, part) for part in self.chunks]

    def __len__(self) -> int:
        """How many samples."""
        return sum(len(part) for part in self.chunks) * self.restricted.samples_per_row

    @property
    def kept_bytes(self) -> int:
        """Memory that the kept outputs take."""
        return sum(value.nbytes for part in self._constants for value in part.values())

    def __call__(self, flat: Tensor) -> Tensor:
        """(r, P_C) → (r, n), rows in order."""
        task, r = self.restricted.task, self.restricted
        found = []
        for part, constants in zip(self.chunks, self._constants, strict=True):
            with _replayed(task.module, constants):
                found.append(task.run(r.varied(flat), r.fixed, task.data, part.expand(len(flat), -1)))
        return torch.cat(found, dim=1)

    def along(self, flat: Tensor, tangent: Tensor) -> Tensor:
        """Derivative of every loss at `flat` along `tangent`, both (r, P_C): (r, n), by forward differentiation."""
        with warnings.catch_warnings():  # loading torch's own formulas warns of torch's own script
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
            return torch.func.jvp(self, (flat,), (tangent,))[1]


def _constant_calls(restricted: Restricted, rows: Tensor) -> dict[str, Any]:
    """Submodule name → its output on `rows`, for the outermost calls that the component cannot reach."""
    module, batch = restricted.task.module, take_rows(restricted.task.data, rows)
    rng = generator(0, Stream.NOISE)

    def run(shift: float) -> Tensor:
        noise = torch.from_numpy(rng.standard_normal(restricted.num_parameters)).to(restricted.anchor)
        varied = {
            name: value[0] for name, value in restricted.varied((restricted.anchor + shift * noise)[None]).items()
        }
        parameters = {**restricted.fixed, **varied}
        return restricted.task.loss_fn(lambda *a, **k: functional_call(module, parameters, a, k), batch)

    with torch.no_grad():
        with _recorded(module) as here:
            truth = run(0.0)
        with _recorded(module) as moved:
            run(float(restricted.anchor.abs().mean()) + 0.1)
        same = {
            name: outputs[0]
            for name, outputs in here.items()
            if len(outputs) == 1 and len(moved.get(name, ())) == 1 and _equal(outputs[0], moved[name][0])
        }
        kept = {name: value for name, value in same.items() if not any(name.startswith(f"{up}.") for up in same)}
        for _ in range(2):
            with _replayed(module, kept):
                if not torch.equal(run(0.0), truth):
                    return {}
    return kept


@contextmanager
def _recorded(module: nn.Module) -> Iterator[dict[str, list[Any]]]:
    """The outputs of every submodule while the context lasts, by name, in the order of its calls."""
    outputs: dict[str, list[Any]] = {}
    handles = [
        part.register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.setdefault(name, []).append(_copied(output))
        )
        for name, part in module.named_modules()
        if name
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


def _copied(output: Any) -> Any:
    return output.detach().clone() if isinstance(output, Tensor) else None


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
