"""Losses of fixed rows while one component moves: what the component cannot reach is computed once and kept."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from patterning.models.replay import replayed
from patterning.models.restricted import Restricted
from patterning.models.tangents import fused_tangents


class Probe:
    """Losses of fixed rows of the data, with what lies below the component computed once and kept.

    Called with `flat` (r, P_C) it returns the losses of all samples in `rows`, (r, len(rows)·t). What is kept: the
    outputs of submodules that are `out_of_reach` of the component. `at_anchor` (n,): the losses at w*.
    """

    def __init__(self, restricted: Restricted, rows: Tensor, replicas: int = 1) -> None:
        self.restricted = restricted
        # Below the component nothing is computed, so replicas share no work: batched, they only fill the device.
        self.one_by_one = restricted.fills_core(len(rows))
        self.chunks = rows.split(restricted.cut(1 if self.one_by_one else replicas))
        found = [self._at_anchor(part) for part in self.chunks]
        self._constants = [constants for _, constants in found]
        self.at_anchor = torch.cat([losses for losses, _ in found])

    def __len__(self) -> int:
        """How many samples."""
        return sum(len(part) for part in self.chunks) * self.restricted.samples_per_row

    @property
    def kept_bytes(self) -> int:
        """Memory that the kept outputs take."""
        return sum(value.nbytes for part in self._constants for value in part.values())

    def _at_anchor(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses at w*, without their graph, and what is kept."""
        r = self.restricted
        losses, constants = r.apart(r.anchor[None].requires_grad_(), rows, r.out_of_reach)
        return losses[0].detach(), constants

    def __call__(self, flat: Tensor) -> Tensor:
        """(r, P_C) → (r, n), rows in order."""
        parts = zip(self.chunks, self._constants, strict=True)
        return torch.cat([self._part(flat, part, constants) for part, constants in parts], dim=1)

    def _part(self, flat: Tensor, rows: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        r = self.restricted
        with replayed(r.module, constants):
            return r.run(flat, r.task.data, rows.expand(len(flat), -1), one_by_one=self.one_by_one)

    def slope(self, flat: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (r, n), their mean under `weights` (n,), both float64, and the gradient (r, P_C) of that mean."""
        own = weights.split([len(rows) * self.restricted.samples_per_row for rows in self.chunks])
        found = [self._slope(part, own) for part in flat.split(1 if self.one_by_one else len(flat))]
        values, slope = (torch.cat(part) for part in zip(*found, strict=True))
        return values, (values * weights).sum(1), slope

    def _slope(self, flat: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        state, found, slope = flat.detach().requires_grad_(), [], torch.zeros_like(flat)
        for part, constants, own in zip(self.chunks, self._constants, weights, strict=True):
            losses = self._part(state, part, constants).double()
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
