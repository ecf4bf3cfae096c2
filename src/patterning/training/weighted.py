"""Weighted training of many replicas at once: minimise `Σ_j q_j ρ_j ℓ_j / Σ_j q_j ρ_j`.

Epochs permute the data as it was drawn, so sample j comes up about in proportion to q_j, and the relative weight ρ_j,
scaled to mean 1 under q, multiplies its loss (divided by how much too often it comes up).

Minibatches and initial weights depend on the seed alone: the same seed in two
arms is a pair. They are the same on every device: the host permutes, and a GPU is given a whole epoch at a time.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patterning.core.errors import PatterningError, check_whole
from patterning.core.flat import FlatTask
from patterning.core.rng import Stream, generator
from patterning.core.samples import times_too_often

FUSED = ("cpu", "cuda")
"""Kinds of devices on which PyTorch has Adam's step in one kernel."""
SETTLED = 0.02
"""Share of the learning rate that is left at the end of a run that settles."""


@dataclass(frozen=True)
class TrainConfig:
    """Adam with coupled L2 (`weight_decay`), as in the paper's code.

    `epsilon` is added to the root of the second moment: a large one makes small gradients take small steps. `settle`:
    over this share of the steps, the last ones, the learning rate falls linearly to `SETTLED` of its value, so that a
    run that moves between solutions comes to rest in one.
    """

    steps: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    epsilon: float = 1e-8
    settle: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that train nothing, or leave NaN behind."""
        check_whole("steps", self.steps, 0)
        check_whole("batch_size", self.batch_size, 1)
        for name in ("learning_rate", "weight_decay", "epsilon", "settle"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise PatterningError(f"{name} is {value!r}: it must be a number")
        for name, value, low in (
            ("learning_rate", self.learning_rate, 0),
            ("weight_decay", self.weight_decay, 0),
            ("epsilon", self.epsilon, 0),
            ("settle", self.settle, 0),
        ):
            if not (math.isfinite(value) and value >= low) or (name == "learning_rate" and value == 0):
                raise PatterningError(f"{name} is {value}: it must be finite and {'> 0' if name[0] == 'l' else '>= 0'}")
        if self.settle > 1:
            raise PatterningError(f"settle is {self.settle}: it is a share of the steps, from 0 to 1")

    def rate(self, step: int) -> float:
        """The learning rate of the step that follows `step` finished ones."""
        length = self.settle * self.steps
        gone = max(0.0, step - (self.steps - length)) / length if length else 0.0
        return self.learning_rate * (1 - (1 - SETTLED) * min(1.0, gone)) if gone else self.learning_rate


@dataclass(frozen=True)
class TrainState:
    """Everything a run needs to go on: parameters and Adam's two moments, each (r, P), after `step` steps."""

    step: int
    flat: Tensor
    first_moment: Tensor
    second_moment: Tensor


def init_state(task: FlatTask, seeds: Sequence[int]) -> TrainState:
    """Step 0, one replica a seed."""
    flat = task.init(seeds)
    return TrainState(0, flat, torch.zeros_like(flat), torch.zeros_like(flat))


def normalise_weights(rho: Tensor, base_weights: Tensor) -> Tensor:
    """ρ scaled to mean 1 under q. `rho` is (n,) or (r, n); raises `PatterningError` when it cannot weight a loss."""
    rho = torch.as_tensor(rho).detach()
    if rho.ndim not in (1, 2) or rho.is_complex():
        raise PatterningError(f"weights of shape {tuple(rho.shape)} ({rho.dtype}) are not real numbers (n,) or (r, n)")
    if rho.shape[-1] != len(base_weights):
        raise PatterningError(f"there are {rho.shape[-1]} weights for {len(base_weights)} samples")
    if not bool(torch.isfinite(rho).all()):
        bad = int((~torch.isfinite(rho)).sum())
        raise PatterningError(f"{bad} of {rho.numel()} weights are NaN or infinite")
    if bool((rho < 0).any()):
        raise PatterningError(
            f"{int((rho < 0).sum())} of {rho.numel()} weights are negative: training would raise these losses without "
            "end; make_weights gives weights >= 0"
        )
    mean = (rho.double() * base_weights).sum(-1, keepdim=True)
    if bool((mean <= 0).any()):
        raise PatterningError("the weights are all zero: there is nothing left to train on")
    return rho.double() / mean


def drawn_weights(rho: Tensor, task: FlatTask) -> Tensor:
    """What the losses of drawn samples are multiplied by, so that their mean is that of L_ρ: (n,) or (r, n)."""
    return normalise_weights(rho, task.base_weights) / times_too_often(task.draws, task.base_weights)


def epoch_minibatches(task: FlatTask, seed: int, batch_size: int) -> Callable[[int], Tensor]:
    """`step → sample numbers (b,)`; each epoch permutes the draws afresh and drops its incomplete last batch."""
    return permuted_batches(task.draws, seed, batch_size)


def permuted_batches(draws: Tensor, seed: int, batch_size: int) -> Callable[[int], Tensor]:
    """`step → draws (b,)`; each epoch permutes `draws` (N,) afresh and drops its incomplete last batch."""
    count = len(draws)
    if batch_size > count:
        raise PatterningError(f"batch_size {batch_size} is larger than the {count} training draws")
    per_epoch = count // batch_size
    cached: dict[int, Tensor] = {}

    def minibatch(step: int) -> Tensor:
        epoch, place = divmod(step, per_epoch)
        if epoch not in cached:
            cached.clear()
            cached[epoch] = permuted(draws, seed, epoch)
        return cached[epoch][place * batch_size : (place + 1) * batch_size]

    return minibatch


def permuted(draws: Tensor, seed: int, epoch: int) -> Tensor:
    """`draws` (N,) in the order of an epoch."""
    return draws[torch.from_numpy(generator(seed, Stream.EPOCH, step=epoch).permutation(len(draws)))]


class EpochRows:
    """Minibatches (r, b) of `draws` (N,), step by step, one a seed: on the CPU as they are asked for.

    Another device is sent a whole epoch of all seeds at once, so that no step waits for the host. `on_epoch`
    sees these rows (k, r, b) of k steps before they leave the host.
    """

    def __init__(
        self,
        draws: Tensor,
        seeds: Sequence[int],
        batch_size: int,
        device: torch.device,
        on_epoch: Callable[[Tensor], None] = lambda _rows: None,
    ) -> None:
        self._draws, self._seeds, self._device, self._on_epoch = draws, seeds, device, on_epoch
        self._of_seeds = [permuted_batches(draws, seed, batch_size) for seed in seeds]
        self.per_epoch, self._size = len(draws) // batch_size, batch_size
        self._epoch, self._rows = -1, torch.empty(0)

    def __call__(self, step: int) -> Tensor:
        """Rows (r, b) of a step."""
        if self._device.type == "cpu":
            return torch.stack([minibatch(step) for minibatch in self._of_seeds])
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            used = self.per_epoch * self._size
            orders = [permuted(self._draws, seed, epoch)[:used].view(-1, self._size) for seed in self._seeds]
            rows = torch.stack(orders, dim=1)
            self._on_epoch(rows)
            self._epoch, self._rows = epoch, rows.to(self._device)
        return self._rows[place]


class _Losses:
    """Losses of a task's minibatches, where no step may wait for the host.

    A task whose rows differ in length has `reaches(index (k, r, b))`, what each of k minibatches needs, and
    `losses_within(flat, index, reach)`: the host knows the rows, and a device would have to be asked.
    """

    def __init__(self, task: FlatTask, seeds: Sequence[int], batch_size: int, device: torch.device) -> None:
        self._task: Any = task
        self._rows = EpochRows(task.draws, seeds, batch_size, device, self._look)
        self._reaches: list[Any] = []

    def __call__(self, flat: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Sample numbers of a step and their losses, both (r, b), under parameters (r, P)."""
        index = self._rows(step)
        if not self._reaches:
            return index, self._task.losses(flat, index)
        return index, self._task.losses_within(flat, index, self._reaches[step % self._rows.per_epoch])

    def _look(self, rows: Tensor) -> None:
        self._reaches = self._task.reaches(rows) if hasattr(self._task, "reaches") else []


def advance(
    task: FlatTask,
    config: TrainConfig,
    state: TrainState,
    seeds: Sequence[int],
    rho: Tensor,
    until: int,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> TrainState:
    """Train every replica from `state.step` to `until` under weights `rho` ((n,) or (r, n)).

    `on_step(step, losses)` sees the number of finished steps and the weighted minibatch loss of each replica (r,).
    Stopping and going on gives the same bits as not stopping.
    """
    if len(seeds) != len(state.flat):
        raise PatterningError(f"there are {len(seeds)} seeds for {len(state.flat)} replicas: one for each is needed")
    check_whole("until", until, 0)
    rho = torch.as_tensor(rho)
    if rho.ndim == 2 and len(rho) not in (1, len(seeds)):
        raise PatterningError(f"there are weights for {len(rho)} replicas, and {len(seeds)} seeds")
    device = state.flat.device
    weights = drawn_weights(rho, task).to(device, state.flat.dtype).expand(len(seeds), -1)
    losses_at = _Losses(task, seeds, config.batch_size, device)
    flat = state.flat.detach().clone().requires_grad_()
    fused = device.type in FUSED
    optimizer = torch.optim.Adam(
        [flat], lr=config.learning_rate, weight_decay=config.weight_decay, eps=config.epsilon, fused=fused
    )
    optimizer.state[flat] = {
        "step": torch.tensor(float(state.step), device=device if fused else "cpu"),
        "exp_avg": state.first_moment.clone(),
        "exp_avg_sq": state.second_moment.clone(),
    }
    for step in range(state.step, until):
        index, losses = losses_at(flat, step)
        loss = (weights.gather(1, index) * losses).mean(1)  # (r,)
        (flat.grad,) = torch.autograd.grad(loss.sum(), flat)
        optimizer.param_groups[0]["lr"] = config.rate(step)
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, loss.detach())
    moments = optimizer.state[flat]
    return TrainState(max(until, state.step), flat.detach(), moments["exp_avg"], moments["exp_avg_sq"])


def uniform_weights(task: FlatTask) -> Tensor:
    """ρ = 1 for every sample (n,)."""
    return torch.ones(len(task.base_weights), dtype=torch.float64)
