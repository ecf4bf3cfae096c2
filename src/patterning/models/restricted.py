"""A task with one component free and everything else clamped at a checkpoint: states hold the component only."""

import math
from collections.abc import Container, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from patterning.core.anchors import check_anchor
from patterning.core.batch import Batch
from patterning.core.errors import PatterningError
from patterning.core.modules import copy_module, spread
from patterning.core.rng import Stream, generator
from patterning.core.task import Task
from patterning.models.components import Component, ComponentLike, find_component
from patterning.models.footprint import graph_bytes
from patterning.models.replay import recorded, replayed
from patterning.models.split import split_head
from patterning.models.tangents import in_transform

CELLS_AT_ONCE = {"cpu": 4_096, "other": 65_536}
"""Samples × replicas that a probe evaluates in one call: what a CPU's cache holds, and enough to fill a GPU."""

ENOUGH_CELLS = 1_024
"""Samples of one replica that fill a CPU core: from there on the replicas of a probe take turns."""

MOST_BYTES = {"cpu": 500_000_000, "other": 8_000_000_000}
"""What an evaluation in one call may keep for its backward pass: of large models fewer rows are taken at a time. Scores
of a large vocabulary take as much again on the way.

Stated, and not read off a card's free memory, which would make the order of sums depend on who else computes there."""

TRIED = 512
"""Samples on which is found out what a component cannot reach; fewer where those of a large model would fill memory."""


class Restricted:
    """`task` around `anchor` w* (P,) with the coordinates of `component` free: parameter rows are (r, P_C).

    Parameters outside of the component are shared by all replicas and carry no gradient, so that the layers below it
    are computed once for a shared minibatch, and never for a `Probe`. `anchor` (P_C,) is w* in the free coordinates,
    `whole_anchor` (P,) in all.
    `module` is what is run: a copy of the task's at w*, or for a head of our `LanguageModel` the same function with
    that head apart.
    """

    def __init__(self, task: Task, anchor: Tensor, component: ComponentLike) -> None:
        anchor = check_anchor(task, anchor)
        self.task, self.whole_anchor = task, anchor
        self.component = find_component(task.module, component)
        whole = {name: part[0] for name, part in task.named(anchor[None]).items()}
        self._picks = {
            name: None if mask is None else mask.flatten().nonzero()[:, 0].to(anchor.device)
            for name, mask in self.component.masks.items()
        }
        self._whole = {name: whole[name] for name in self._picks}
        self._fixed = {name: value for name, value in whole.items() if name not in self._picks}
        self._sizes = [self._whole[name].numel() if pick is None else len(pick) for name, pick in self._picks.items()]
        self.anchor = torch.cat(
            [
                self._whole[name].flatten() if pick is None else self._whole[name].flatten()[pick]
                for name, pick in self._picks.items()
            ]
        )
        self.module, self._alone = task.load(copy_module(task.module, convert=False), anchor).requires_grad_(False), ""
        if _is_head(task.module, self.component) and (split := split_head(self.module, self.component.name)):
            self.module, self._alone = split
        self._shared: tuple[Tensor, dict[str, Tensor]] = torch.empty(0, dtype=torch.int64), {}
        self.base_weights, self.draws, self.samples_per_row = task.base_weights, task.draws, task.samples_per_row

    @property
    def num_parameters(self) -> int:
        """P_C, the number of free coordinates."""
        return len(self.anchor)

    def init(self, seeds: Sequence[int]) -> Tensor:
        """w* for every seed: a clamped model starts nowhere else."""
        return self.anchor.expand(len(seeds), -1).clone()

    def at_once(self, replicas: int, rows: int) -> tuple[int, int]:
        """How many replicas and rows of data to evaluate in one call, of a minibatch (replicas, rows)."""
        together = 1 if self.fills_core(rows) else replicas
        return together, self.cut(together)

    def cut(self, replicas: int) -> int:
        """Rows of data that `replicas` evaluate in one call."""
        kind = self.anchor.device.type
        cells, most = (table.get(kind, table["other"]) for table in (CELLS_AT_ONCE, MOST_BYTES))
        if self._bytes_per_sample:
            cells = min(cells, int(most / self._bytes_per_sample))
        return max(1, cells // (self.samples_per_row * replicas))

    @cached_property
    def _bytes_per_sample(self) -> float:
        return graph_bytes(self.task, self.component)

    def fills_core(self, rows: int) -> bool:
        """Whether one replica of `rows` rows of data leaves a CPU nothing to gain from a batch of replicas."""
        return self.anchor.device.type == "cpu" and rows * self.samples_per_row >= ENOUGH_CELLS

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        """Loss in nats of rows `index` (r, b): (r, b), the mean over a row's samples."""
        return self.task.row_means(self.sample_losses(flat, index), index)

    def sample_losses(self, flat: Tensor, index: Tensor) -> Tensor:
        """Loss of every sample in rows `index` (r, b) under free coordinates `flat` (r, P_C): (r, b·t)."""
        one_of_several = len(index) == 1 and index.stride(0) == 0 and index.device.type == "cpu"
        if not (one_of_several and flat.requires_grad):
            return self.run(flat, self.task.data, index, one_by_one=len(index) == 1)
        # Replicas take turns with the same rows: what the component cannot reach is computed once.
        rows, constants = self._shared
        if torch.equal(rows, index[0]):
            with replayed(self.module, constants):
                return self.run(flat, self.task.data, index, one_by_one=True)
        losses, constants = self.apart(flat, index[0], self.out_of_reach)
        self._shared = index[0], constants
        return losses

    def apart(self, flat: Tensor, rows: Tensor, only: Container[str] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses (1, b·t) of `rows` (b,) at `flat` (1, P_C), which needs a gradient; submodule → its output.

        Of `only` these, those called once to whose output no gradient leads from `flat`. That their outputs are equal
        at several `flat` would not do: a unit that is dead there may wake up elsewhere. Nor those that the module calls
        inside a function transform of its own (an ensemble by `torch.vmap`), which are gone when it has ended.
        """
        with torch.enable_grad(), recorded(self.module, only) as outputs:
            losses = self.run(flat, self.task.data, rows[None], one_by_one=True)
        return losses, {
            name: calls[0]
            for name, calls in outputs.items()
            if len(calls) == 1
            and isinstance(calls[0], Tensor)
            and not calls[0].requires_grad
            and not in_transform(calls[0])
        }

    @cached_property
    def out_of_reach(self) -> frozenset[str]:
        """The outermost submodules that the component cannot reach; none, where the module writes into their outputs.

        Found on a few rows. Another value of the component must leave them alone, too: an argmax has no gradient, but
        moves. Given back after the module has seen other rows, they must lead to the same losses: a hook inside of
        them, or a tensor that they leave behind, may feed the loss as well.
        """
        few = min(math.ceil(TRIED / self.samples_per_row), max(2, self.cut(1) // 4))  # every output is kept meanwhile
        rows = spread(len(self.base_weights), few).to(self.anchor.device)
        noise = torch.from_numpy(generator(0, Stream.NOISE).standard_normal(self.num_parameters))
        size = float(self.anchor.abs().mean()) + 0.1
        here = self.anchor[None].requires_grad_()
        moved = (self.anchor + size * noise.to(self.anchor))[None].requires_grad_()
        losses, apart = self.apart(here, rows, None)
        losses = losses.detach()  # its graph would stand beside the next one
        others = self.apart(moved, rows, apart)[1]
        same = {name for name, value in apart.items() if name in others and torch.equal(value, others[name])}
        kept = {name: apart[name] for name in same if not any(name.startswith(f"{up}.") for up in same)}
        versions = [value._version for value in kept.values()]
        self.apart(moved, rows.roll(1), ())
        with replayed(self.module, kept):
            again, _ = self.apart(here, rows, ())
        written = versions != [value._version for value in kept.values()] or not torch.equal(again, losses)
        return frozenset() if written else frozenset(kept)

    def run(self, flat: Tensor, data: Batch, index: Tensor, *, one_by_one: bool = False) -> Tensor:
        """Losses (r, b·t) of rows `index` (r, b) of `data` under free coordinates `flat` (r, P_C)."""
        return self.task.run(self.parameters(flat), data, index, module=self.module, one_by_one=one_by_one)

    def parameters(self, flat: Tensor) -> dict[str, Tensor]:
        """What `module` is called with in place of its own: parameters (r, *shape)."""
        if not self._alone:
            return self.varied(flat)
        parts = self._checked(flat).split([shape.numel() for shape in self._shapes_alone.values()], dim=1)
        return {
            name: part.reshape(len(part), *shape)
            for (name, shape), part in zip(self._shapes_alone.items(), parts, strict=True)
        }

    @cached_property
    def _shapes_alone(self) -> dict[str, torch.Size]:
        """Of a head apart: its parameters in `module`."""
        return {name: p.shape for name, p in self.module.named_parameters() if name.startswith(self._alone)}

    def varied(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters that the component touches, (r, *shape), at free coordinates `flat` (r, P_C)."""
        result = {}
        parts = self._checked(flat).split(self._sizes, dim=1)
        for (name, pick), part in zip(self._picks.items(), parts, strict=True):
            whole = self._whole[name]
            rows = part if pick is None else whole.flatten().expand(len(flat), -1).index_copy(1, pick, part)
            result[name] = rows.reshape(len(rows), *whole.shape)
        return result

    def expand(self, flat: Tensor) -> Tensor:
        """Full parameter rows (r, P) of the task at free coordinates `flat` (r, P_C), for observables of the model."""
        varied = self.varied(flat)
        return torch.cat(
            [
                (varied[name] if name in varied else self._fixed[name].expand(len(flat), *shape)).reshape(len(flat), -1)
                for name, shape in self.task.shapes.items()
            ],
            dim=1,
        )

    def _checked(self, flat: Tensor) -> Tensor:
        if flat.ndim != 2 or flat.shape[1] != self.num_parameters:
            raise PatterningError(f"parameters {tuple(flat.shape)} are not (r, {self.num_parameters})")
        return flat


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
