"""The way back through chains of SGLD: λ of every step, and where the derivatives of the probes are to be taken."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from patterning.models.restricted import Restricted
from patterning.posterior import sgld
from patterning.posterior.chains import ChainConfig, StepNumbers
from patterning.response.adjoint import (
    Reading,
    anchor_gradient,
    curvature,
    mean_gradient,
    parts_of_the_way,
    stand_in,
)

DATA = "data"
"""In place of a `Reading`: φ is L of all the data, read off the minibatches."""


class Positions(Protocol):
    """The position (r, P_C) before each step and after the last: a tensor, or blocks of a file."""

    def __getitem__(self, index: int, /) -> Tensor:
        """One of them."""
        ...


@dataclass(frozen=True)
class Derivative:
    """χ is -ε/2 times the sum of the derivatives of the probes at positions `at` along `along`, both (r, P_C).

    `at_draw`: it stands for steps of which the last was a draw. `left`: the share of the steps that are still to come.
    """

    at: Tensor
    along: Tensor
    at_draw: bool
    left: float


@dataclass
class WayBack:
    """Back through the chains, once, for one φ; what is iterated over are the derivatives that χ is a sum of.

    `positions` are those of every step. Left behind are `phi`, φ (r,) at the draws from the last to the first (nothing
    for `DATA`); `losses` (r, n), the sum of the probes' losses at the draws where the reading gives them; and
    `expansion` (r,), the largest ‖λ_k‖ in units of λ at zero curvature. The host reads nothing back on the way.
    """

    free: Restricted
    kernel: sgld.SGLD
    chains: ChainConfig
    numbers: StepNumbers
    positions: Positions
    reading: Reading | str
    first_chain: int
    phi: list[Tensor] = field(default_factory=list)
    losses: Tensor | None = None
    expansion: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.expansion = torch.zeros_like(self.positions[0][:, 0])
        self._adjoint = torch.zeros_like(self.positions[0])
        self._owed = torch.zeros_like(self._adjoint)  # Σ λ less what stood for it
        self._bound = torch.zeros_like(self.expansion)

    def __iter__(self) -> Iterator[Derivative]:
        """From the last step to the first; then at w*, what the choice of steps did there."""
        steps, chains = self.chains.steps, self.chains
        parts = list(parts_of_the_way(chains, self.kernel, steps, self.first_chain))
        phases = torch.from_numpy(np.stack([phase for _, phase in parts])).to(self._adjoint.device)
        centre = mean_gradient(self.free) if isinstance(self.reading, str) else None
        for (piece, _), phase in zip(parts, phases, strict=True):
            adjoints = torch.stack([self._step(k, centre) for k in piece])
            before = torch.stack([self.positions[k - 1] for k in piece])
            at, along = stand_in(before, adjoints, phase)
            self._owed -= along
            last = piece[-1] - 1
            at_draw = last >= chains.burn_in and (last - chains.burn_in) % chains.steps_between_draws == 0
            yield Derivative(at, along, at_draw, last / steps)
        yield Derivative(self.free.init(range(len(self._owed))), self._owed, False, 0.0)

    def _step(self, k: int, centre: Tensor | None) -> Tensor:
        """λ of step k, from which that of the step before follows."""
        free, kernel, chains, half = self.free, self.kernel, self.chains, self.kernel.step_size / 2
        if not isinstance(self.reading, str) and self._is_draw(k):
            values, phi, slope = self.reading(self.positions[k])
            self._adjoint = self._adjoint + slope / chains.draws
            self._bound = self._bound + slope.norm(dim=1) / chains.draws
            self.phi.append(phi)
            if values is not None:
                self.losses = values if self.losses is None else self.losses + values
        adjoint = self._adjoint
        self._owed += adjoint
        read = (self._bound > 0).all()  # φ has been, in every replica
        grown = torch.maximum(self.expansion, adjoint.norm(dim=1) / self._bound)
        self.expansion = torch.where(read, grown, self.expansion)
        index = self.numbers.rows(k - 1)
        gradient, curved = curvature(free, self.positions[k - 1], index, adjoint)
        self._adjoint = adjoint - half * (kernel.n_beta * curved + kernel.localization * adjoint)
        self._bound = self._bound * (1 - half * kernel.localization)
        if centre is not None and k > chains.burn_in:  # φ at w_{k-1}
            counted = chains.steps - chains.burn_in
            slope = (gradient - anchor_gradient(free, index, chains) + centre) / counted
            self._adjoint, self._bound = self._adjoint + slope, self._bound + slope.norm(dim=1)
        return adjoint

    def _is_draw(self, k: int) -> bool:
        return k > self.chains.burn_in and (k - self.chains.burn_in) % self.chains.steps_between_draws == 0
