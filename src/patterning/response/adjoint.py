"""The parts of the adjoint of SGLD: the way forth, curvature on the way back, and what φ is read from."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.progress import report_progress
from patterning.core.rng import Stream, generator
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior import sgld
from patterning.posterior.chains import WINDOW, ChainConfig, StepNumbers, left_band, loss_and_gradient, pieces

Floats = NDArray[np.float64]

ModelObservable = Callable[[Tensor], Tensor]
"""φ: full parameter rows (r, P) of the task → (r,)."""
MOST_PULL = 0.65
"""Most that the localization alone may take off λ, (ε/2) γ a step, over the steps that one derivative of the probe
stands for: at twice as much the noise of χ grew by half or more (docs/results/response.md)."""


class Reading(Protocol):
    """φ at positions (r, P_C): the probes' losses (r, n) if they came with it, φ (r,), and its gradient (r, P_C)."""

    @property
    def at_anchor(self) -> float:
        """φ(w*)."""
        ...

    def __call__(self, flat: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Read it."""
        ...


@dataclass(frozen=True)
class ProbeLoss:
    """φ: the mean loss of a probe's samples under `weights` q (n,). `same`: the samples that χ has columns for."""

    probe: Probe
    weights: Tensor
    same: bool = True

    @property
    def at_anchor(self) -> float:
        """φ(w*)."""
        return float(self.probe.at_anchor.double() @ self.weights)

    def __call__(self, flat: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Losses, their mean, and its gradient."""
        values, mean, slope = self.probe.slope(flat, self.weights)
        return (values if self.same else None), mean, slope


class ModelReading:
    """φ: a function of full parameter rows (r, P) → (r,) that autograd can differentiate.

    Raises `PatterningError` where it is not, or φ(w*) is not finite.
    """

    def __init__(self, name: str, free: Restricted, function: ModelObservable) -> None:
        self._name, self._free, self._function = name, free, function
        value, _ = self._read(free.anchor[None])
        self.at_anchor = float(value.detach())
        if not math.isfinite(self.at_anchor):
            raise PatterningError(f"observable {name!r} is {self.at_anchor} at w*")

    def __call__(self, flat: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """φ and its gradient."""
        rows = [self._read(row[None]) for row in flat]
        return None, torch.cat([value.detach() for value, _ in rows]).double(), torch.cat([slope for _, slope in rows])

    def _read(self, row: Tensor) -> tuple[Tensor, Tensor]:
        state = row.detach().requires_grad_()
        value = self._function(self._free.expand(state))
        if value.shape != (1,):
            raise PatterningError(
                f"observable {self._name!r} gave shape {tuple(value.shape)} for 1 replica: it must be (r,)"
            )
        if not value.requires_grad:
            raise PatterningError(
                f"observable {self._name!r} has no gradient, which pathwise and first-order χ need: pass "
                "estimator='covariance'"
            )
        (slope,) = torch.autograd.grad(value.sum(), state, allow_unused=True)
        return value, torch.zeros_like(row) if slope is None else slope


def positions_of(
    free: Restricted, kernel: sgld.SGLD, chains: ChainConfig, numbers: StepNumbers, loss_band: float, first_chain: int
) -> tuple[Tensor, dict[int, str]]:
    """Every position (steps + 1, replicas, P_C) of the chains, and those that diverged: chain number → why."""
    steps, like = chains.steps, free.anchor
    positions = torch.empty(steps + 1, chains.replicas, free.num_parameters, device=like.device, dtype=like.dtype)
    diverged = forward(free, kernel, chains, numbers, loss_band, first_chain, positions.__setitem__)
    return positions, diverged


def forward(
    free: Restricted, kernel: sgld.SGLD, chains: ChainConfig, numbers: StepNumbers, loss_band: float, first_chain: int,
    keep: Callable[[int, Tensor], None],
) -> dict[int, str]:  # fmt: skip
    """Run the chains: `keep` hears the position (replicas, P_C) before each step and after the last.

    Returns those that diverged: chain number → why. Sampling stops where none is left.
    """
    steps, device = chains.steps, free.anchor.device
    state = sgld.init(free.anchor, chains.replicas)
    keep(0, state.position)
    losses = torch.empty(steps, chains.replicas, device=device)
    diverged: dict[int, str] = {}
    for step in range(steps):
        losses[step], gradient = loss_and_gradient(free, state.position, numbers.rows(step))
        noise = numbers.noise(step)
        state = sgld.update(state, gradient, torch.cat([noise, -noise]) if chains.antithetic else noise, kernel)
        keep(step + 1, state.position)
        if step % WINDOW == WINDOW - 1 or step == steps - 1:
            for replica, why in left_band(losses[: step + 1], state.position, loss_band).items():
                chain = first_chain + replica % chains.chains
                name = f"chain {chain}" if replica < chains.chains else f"mirror image of chain {chain}"
                diverged.setdefault(chain, f"{name}: {why}")
            if len(diverged) == chains.chains:
                break
        report_progress((step + 1) / steps)
    return diverged


def steps_at_once(kernel: sgld.SGLD, every: int) -> int:
    """For how many steps one derivative of the probe stands, of the `every` from draw to draw."""
    return math.ceil(every / math.ceil(every * kernel.step_size / 2 * kernel.localization / MOST_PULL))


def parts_of_the_way(
    chains: ChainConfig, kernel: sgld.SGLD, steps: int, first_chain: int
) -> Iterator[tuple[range, Floats]]:
    """The steps k from the last to the first, in pieces that share a derivative, and a number (chains,) in [0, 1) each.

    No piece spans a draw. The numbers say at which step of the piece a chain takes the derivative: uniform, evenly
    spread over the pieces (a golden-ratio sequence from a random start), independent between chains. They are the same
    on every device.
    """
    few, every = steps_at_once(kernel, chains.steps_between_draws), chains.steps_between_draws
    start = [generator(chains.seed, Stream.PHASE, first_chain + c).random() for c in range(chains.chains)]
    last, number = steps, 0
    while last > 0:
        ends = last - ((last - 1 - chains.burn_in) % every)  # the first step after the draw before
        first = max(ends, last - few + 1, 1)
        yield range(last, first - 1, -1), (np.array(start) + number * (math.sqrt(5) - 1) / 2) % 1
        last, number = first - 1, number + 1


def stand_in(positions: Tensor, adjoints: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
    """One of the steps of a piece for each replica: its position, and λ over its chance to be chosen, both (r, P_C).

    `positions`, `adjoints` (steps, r, P_C). A step is chosen in proportion to the size of its λ; a mirror image takes
    the step of its chain, `phase` (chains,).
    """
    size = adjoints.norm(dim=2).unflatten(1, (-1, len(phase))).sum(1)  # (steps, chains)
    size = torch.where(size.sum(0) > 0, size, torch.ones_like(size))
    share = size / size.sum(0)
    chosen = (share.cumsum(0) <= phase.to(share)).sum(0).clamp(max=len(share) - 1)
    chance = share.gather(0, chosen[None])[0]
    times = positions.shape[1] // len(phase)
    chosen, replica = chosen.repeat(times), torch.arange(positions.shape[1], device=chosen.device)
    return positions[chosen, replica], adjoints[chosen, replica] / chance.repeat(times)[:, None]


def anchor_gradient(free: Restricted, index: Tensor, chains: ChainConfig) -> Tensor:
    """∇L_B(w*) of rows `index` (r, b), (r, P_C), or (1, P_C) where all chains have the same rows."""
    rows = index[:1] if chains.matched else index
    return loss_and_gradient(free, free.anchor.expand(len(rows), -1), rows)[1]


def mean_gradient(free: Restricted, rows: Tensor | None = None) -> Tensor:
    """∇L(w*) (P_C,) over all the data (or `rows` of it, by their shares) in the free coordinates."""
    q, total = free.base_weights.to(free.anchor), torch.zeros_like(free.anchor)
    flat = free.anchor[None].detach().requires_grad_()
    rows = torch.arange(len(q), device=q.device) if rows is None else rows.to(q.device)
    q = q / q[rows].sum()
    for part in rows.split(free.cut(1)):
        total += torch.autograd.grad((free.losses(flat, part[None])[0] * q[part]).sum(), flat)[0][0]
    return total


def curvature(free: Restricted, at: Tensor, index: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the mean loss of rows `index` (r, b) at `at`, and H_B λ, its curvature along `vector`: (r, P_C)."""
    slope, bend = torch.zeros_like(at), torch.zeros_like(at)
    for replicas, part in pieces(free, index):
        flat = at[replicas].detach().requires_grad_()
        loss = free.losses(flat, part).sum() / index.shape[1]
        (gradient,) = torch.autograd.grad(loss, flat, create_graph=True)
        slope[replicas] += gradient.detach()
        if gradient.requires_grad:  # else the loss is linear in these coordinates
            (product,) = torch.autograd.grad(gradient, flat, vector[replicas], allow_unused=True)
            bend[replicas] += 0 if product is None else product
    return slope, bend
