"""Losses of fixed rows while one component moves: what the component cannot reach is computed once and kept."""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from patterning.core.errors import PatterningError
from patterning.models.replay import replayed
from patterning.models.restricted import Restricted
from patterning.models.tangents import fused_tangents


class Probe:
    """Losses of fixed rows of the data, with what lies below the component computed once and kept.

    Called with `flat` (r, P_C) it returns the losses of all n `samples` in `rows`, (r, n); masked ones are left out.
    What is kept: the outputs of submodules that are `out_of_reach` of the component. `at_anchor` (n,): the losses at
    w*. Raises `PatterningError` where one of these is NaN or infinite.

    `of`: how many rows the whole has of which `rows` are a shard (`shard_rows`): they are evaluated as they are there,
    so that their losses have the same bits.
    """

    def __init__(self, restricted: Restricted, rows: Tensor, replicas: int = 1, of: int | None = None) -> None:
        self.restricted = restricted
        # Below the component nothing is computed, so replicas share no work: batched, they only fill the device.
        self.one_by_one = restricted.fills_core(of or len(rows))
        self.samples = restricted.task.samples(rows.cpu())
        self.chunks = rows.to(restricted.anchor.device).split(restricted.cut(1 if self.one_by_one else replicas))
        self._columns = self._split_columns()
        parts = [self._at_anchor(*part) for part in zip(self.chunks, self._columns, strict=True)]
        self._constants = [constants for _, constants in parts]
        self.at_anchor = torch.cat([losses for losses, _ in parts])
        if not bool(self.at_anchor.isfinite().all()):
            bad = int((~self.at_anchor.isfinite()).nonzero()[0])
            raise PatterningError(
                f"the loss of row {self.samples.row[bad]}, position {self.samples.position[bad]}, is NaN or infinite "
                "at w*: leave it out, or mask it"
            )

    def __len__(self) -> int:
        """How many samples."""
        return len(self.samples)

    def _split_columns(self) -> list[Tensor | None]:
        """For each chunk, which of its cells are samples; None: all."""
        t, device = self.restricted.samples_per_row, self.restricted.anchor.device
        cells = [len(rows) * t for rows in self.chunks]
        if len(self.samples) == sum(cells):
            return [None] * len(self.chunks)
        place, first, columns = torch.from_numpy(self.samples.place), 0, list[Tensor | None]()
        for count in cells:
            own = place[(place >= first) & (place < first + count)] - first
            columns.append(own.to(device))
            first += count
        return columns

    @property
    def kept_bytes(self) -> int:
        """Memory that the kept outputs take."""
        return sum(value.nbytes for part in self._constants for value in part.values())

    def _at_anchor(self, rows: Tensor, columns: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses at w*, without their graph, and what is kept."""
        r = self.restricted
        losses, constants = r.apart(r.anchor[None].requires_grad_(), rows, r.out_of_reach)
        return losses[0].detach() if columns is None else losses[0].detach()[columns], constants

    def __call__(self, flat: Tensor) -> Tensor:
        """(r, P_C) → (r, n), rows in order."""
        return torch.cat([self._part(flat, i) for i in range(len(self.chunks))], dim=1)

    def _part(self, flat: Tensor, i: int) -> Tensor:
        """Losses of the samples in chunk i."""
        r, columns = self.restricted, self._columns[i]
        with replayed(r.module, self._constants[i]):
            losses = r.run(flat, r.task.data, self.chunks[i].expand(len(flat), -1), one_by_one=self.one_by_one)
        return losses if columns is None else losses[:, columns]

    def slope(self, flat: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (r, n), their mean under `weights` (n,), both float64, and the gradient (r, P_C) of that mean."""
        counts = zip(self.chunks, self._columns, strict=True)
        t = self.restricted.samples_per_row
        own = weights.split([len(rows) * t if columns is None else len(columns) for rows, columns in counts])
        found = [self._slope(part, own) for part in flat.split(1 if self.one_by_one else len(flat))]
        values, slope = (torch.cat(part) for part in zip(*found, strict=True))
        return values, (values * weights).sum(1), slope

    def _slope(self, flat: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        state, found, slope = flat.detach().requires_grad_(), [], torch.zeros_like(flat)
        for i, own in enumerate(weights):
            losses = self._part(state, i).double()
            slope += torch.autograd.grad((losses * own).sum(), state)[0]
            found.append(losses.detach())
        return torch.cat(found, dim=1), slope

    def along(self, flat: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """Losses at `flat` and their derivatives along `tangent`, both (r, P_C): (r, n), by forward differentiation."""
        with warnings.catch_warnings():  # loading torch's own formulas warns of torch's own script
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
            with fused_tangents(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward derivative
                found = torch.func.jvp(self, (flat,), (tangent,))
        return found[0], found[1]


def shard_rows(restricted: Restricted, rows: Tensor, replicas: int, shards: int) -> list[Tensor]:
    """At most `shards` parts of `rows`, in order, that end where a `Probe` of all rows ends a call of the model."""
    size = restricted.cut(1 if restricted.fills_core(len(rows)) else replicas)
    chunks = math.ceil(len(rows) / size)
    return list(rows.split(size * math.ceil(chunks / shards)))
