"""Run SGLD chains around a checkpoint and hand each draw on as it goes by.

Chain c of a seed sees the same minibatches and noise whether it runs alone, batched or after a resume. The host reads
nothing of a step back: it looks at the chains every `WINDOW` steps, and a GPU never waits for it in between.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from patterning.core import philox
from patterning.core.errors import PatterningError, check_whole
from patterning.core.flat import FlatTask
from patterning.core.progress import report_progress
from patterning.core.rng import Stream, reused_generator
from patterning.posterior import preconditioned, sgld

WINDOW = 50
"""Steps over whose mean loss a chain is watched."""
NUMPY_KINDS = ("cpu",)
"""Kinds of devices whose noise and minibatches are numpy's; all others draw theirs themselves (`core.philox`)."""
STEPS_AT_ONCE, NUMBERS_AT_ONCE = 64, 1 << 22
"""Most steps, and random numbers, that such a device draws at a time: neither changes a number."""

Kernel = sgld.SGLD | preconditioned.RMSPropSGLD
State = sgld.State | preconditioned.State


@dataclass(frozen=True)
class ChainConfig:
    """How long to sample. A draw follows every `steps_between_draws` steps after `burn_in` steps.

    `matched`: all chains see the same minibatches (their noise differs), so that what they share is computed once.
    The scatter of such chains leaves out what other minibatches would have given, and so does every error made of it:
    `measure` does without.
    `antithetic`: beside each chain runs its mirror image, with the same minibatches and the opposite noise (antithetic
    variates, Hammersley & Morton 1956): in the mean of the two, whatever is odd in the noise cancels.
    """

    chains: int
    draws: int
    burn_in: int
    steps_between_draws: int
    batch_size: int
    seed: int = 0
    matched: bool = False
    antithetic: bool = False

    @property
    def replicas(self) -> int:
        """How many positions are moved at a time: chains and their mirror images."""
        return 2 * self.chains if self.antithetic else self.chains

    @property
    def steps(self) -> int:
        """Of each chain, burn-in included."""
        return self.burn_in + self.draws * self.steps_between_draws

    def __post_init__(self) -> None:
        """Refuse sizes that are no whole numbers, or leave nothing to average."""
        for name in ("chains", "draws", "steps_between_draws", "batch_size"):
            check_whole(name, getattr(self, name), 1)
        for name in ("burn_in", "seed"):
            check_whole(name, getattr(self, name), 0)
        for name in ("chains", "draws", "burn_in", "steps_between_draws", "batch_size", "seed"):
            object.__setattr__(self, name, int(getattr(self, name)))  # numpy's numbers are no part of a key or a file
        for name in ("matched", "antithetic"):
            if not isinstance(getattr(self, name), bool):
                raise PatterningError(f"{name} is {getattr(self, name)!r}: it must be True or False")


@dataclass
class ChainTrace:
    """Minibatch losses of every step, burn-in included: (steps, chains); and the chains that diverged, with why."""

    losses: Tensor
    diverged: dict[int, str] = field(default_factory=dict)


def run_chains(
    task: FlatTask,
    anchor: Tensor,
    kernel: Kernel,
    config: ChainConfig,
    on_draw: Callable[[int, Tensor], None],
    *,
    first_chain: int = 0,
    loss_band: float = math.inf,
) -> ChainTrace:
    """Sample `config.chains` chains around `anchor` (P,); `on_draw(draw, positions (r, P))` sees each draw.

    A chain that turns NaN, or whose mean minibatch loss over 50 steps passes `loss_band`, is named in
    `ChainTrace.diverged`; it stays in the batch, reset to the anchor, so that the others keep their numbers. The caller
    must leave it out of every average. When all have diverged, sampling stops. `first_chain` numbers the chains for the
    random streams. Raises `PatterningError` for antithetic chains: a covariance is even in the noise, and a mirror
    image adds next to nothing.
    """
    if config.antithetic:
        raise PatterningError(
            "antithetic chains serve the pathwise estimator alone: for draws use twice as many chains"
        )
    if math.isnan(loss_band):
        raise PatterningError("loss_band is NaN: it is the loss in nats past which a chain is left out")
    anchor = anchor.detach()  # a graph would grow with every step
    state = init(kernel, anchor, config.chains)
    steps = config.steps
    numbers = StepNumbers(task.base_weights, config, first_chain, anchor)
    losses = torch.empty(steps, config.chains, device=anchor.device)
    trace = ChainTrace(losses)
    for step in range(steps):
        losses[step], gradient = loss_and_gradient(task, state.position, numbers.rows(step))
        state = update(state, gradient, numbers.noise(step), kernel)
        if step % WINDOW == WINDOW - 1 or step == steps - 1:
            exclude(trace, state, step, loss_band, first_chain)
            if len(trace.diverged) == config.chains:
                losses[step + 1 :] = math.nan
                break
        report_progress((step + 1) / steps)
        if step >= config.burn_in and (step - config.burn_in + 1) % config.steps_between_draws == 0:
            on_draw((step - config.burn_in) // config.steps_between_draws, state.position)
    return trace


def loss_and_gradient(task: FlatTask, position: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss (r,) of rows `index` (r, b) and its gradient (r, P) at `position` (r, P)."""
    total, gradient = torch.zeros(len(position), device=position.device), torch.zeros_like(position)
    for replicas, part in pieces(task, index):
        flat = position[replicas].detach().requires_grad_()
        loss = task.losses(flat, part).sum(1) / index.shape[1]
        gradient[replicas] += torch.autograd.grad(loss.sum(), flat)[0]
        total[replicas] += loss.detach()
    return total, gradient


def pieces(task: FlatTask, index: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Parts of a minibatch `index` (r, b) to evaluate in one call: which replicas, and their rows.

    A task with `at_once` says how large: as long as a part stays in a CPU's cache it is faster, and holds less memory.
    """
    replicas, rows = getattr(task, "at_once", lambda *shape: shape)(*index.shape)
    for part in index.split(rows, dim=1):
        for first in range(0, len(index), replicas):
            own = slice(first, first + replicas)
            yield own, part[own]


def init(kernel: Kernel, anchor: Tensor, chains: int) -> State:
    """`chains` copies of w* (P,) as the kernel's method wants them."""
    return (sgld if isinstance(kernel, sgld.SGLD) else preconditioned).init(anchor, chains)


def update(state: State, gradient: Tensor, noise: Tensor, kernel: Kernel) -> State:
    """One step of the kernel's method."""
    if isinstance(kernel, sgld.SGLD):
        assert isinstance(state, sgld.State)
        return sgld.update(state, gradient, noise, kernel)
    assert isinstance(state, preconditioned.State)
    return preconditioned.update(state, gradient, noise, kernel)


class StepNumbers:
    """What the steps of some chains draw: minibatch rows and noise, by step, on the device of `anchor` (P,).

    `weights` q (n,) of the rows; chains are numbered from `first_chain` on. On the CPU the numbers are numpy's, drawn
    as they are asked for. Any other device draws those of several steps at once, by itself (`core.philox`): other
    numbers of the same law, the same on every device that is no CPU.
    """

    def __init__(self, weights: Tensor, config: ChainConfig, first_chain: int, anchor: Tensor) -> None:
        self._config, self._first, self._like = config, first_chain, anchor
        self._cumulative = np.cumsum(weights.cpu().numpy())
        self._numpy = anchor.device.type in NUMPY_KINDS
        self._on_device = torch.empty(0) if self._numpy else torch.from_numpy(self._cumulative).to(anchor.device)
        self._blocks: dict[str, tuple[range, Tensor]] = {}

    def rows(self, step: int) -> Tensor:
        """Row numbers (replicas, b) of a step, as `minibatches` has them."""
        config = self._config
        if self._numpy:
            return minibatches(self._cumulative, config, self._first, step).to(self._like.device)
        rows = self._of("rows", step, STEPS_AT_ONCE, self._draw_rows)
        if config.matched:
            return rows.expand(config.replicas, -1)
        return rows.repeat(config.replicas // config.chains, 1)

    def noise(self, step: int) -> Tensor:
        """Standard normal numbers (chains, P) of a step, float32 ones in the anchor's type."""
        config, (parameters,) = self._config, self._like.shape
        if self._numpy:
            return gaussian(self._like.expand(config.chains, -1), config.seed, self._first, step)
        most = max(1, min(STEPS_AT_ONCE, NUMBERS_AT_ONCE // (config.chains * parameters)))
        return self._of("noise", step, most, self._draw_noise).to(self._like.dtype)

    def _of(self, what: str, step: int, most: int, draw: Callable[[range], Tensor]) -> Tensor:
        """A step's numbers, from a block of `most` steps."""
        steps, block = self._blocks.get(what, (range(0), self._like))
        if step not in steps:
            first = step - step % most
            steps, block = range(first, first + most), draw(range(first, first + most))
            self._blocks[what] = steps, block
        return block[step - steps.start]

    def _draw_rows(self, steps: range) -> Tensor:
        """(steps, chains, b), or (steps, 1, b) where minibatches are matched: `minibatch` of many steps."""
        config, size = self._config, self._config.batch_size
        chains = range(1) if config.matched else range(self._first, self._first + config.chains)
        drawn = philox.uniform(config.seed, Stream.MINIBATCH, chains, steps, size, self._like.device)
        points = (torch.arange(size, device=drawn.device) + drawn) / size
        return torch.searchsorted(self._on_device, points, right=True).clamp(max=len(self._on_device) - 1)

    def _draw_noise(self, steps: range) -> Tensor:
        chains = range(self._first, self._first + self._config.chains)
        return philox.normal(self._config.seed, Stream.NOISE, chains, steps, len(self._like), self._like.device)


def minibatches(cumulative: np.ndarray, config: ChainConfig, first_chain: int, step: int) -> Tensor:
    """Row numbers (replicas, b) of one step; one row of numbers, expanded, where minibatches are matched.

    A mirror image has those of its chain.
    """
    chains = range(1) if config.matched else range(first_chain, first_chain + config.chains)
    drawn = [reused_generator(config.seed, Stream.MINIBATCH, chain, step).random(config.batch_size) for chain in chains]
    rows = torch.from_numpy(_stratified(cumulative, np.stack(drawn)))
    return rows.expand(config.replicas, -1) if config.matched else rows.repeat(config.replicas // config.chains, 1)


def minibatch(cumulative: np.ndarray, seed: int, chain: int, step: int, size: int) -> np.ndarray:
    """Sample numbers (size,) drawn with probability q_j, with replacement, stratified over the cumulative weights.

    One uniform number in each of `size` equal slices of [0, 1): unbiased for the mean loss, with less variance than
    independent draws.
    """
    return _stratified(cumulative, reused_generator(seed, Stream.MINIBATCH, chain, step).random(size))


def _stratified(cumulative: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Sample numbers shaped like the uniform numbers `drawn` (…, b)."""
    size = drawn.shape[-1]
    points = (np.arange(size) + drawn) / size
    return np.minimum(np.searchsorted(cumulative, points, side="right"), len(cumulative) - 1)


def gaussian(like: Tensor, seed: int, first_chain: int, step: int) -> Tensor:
    """Standard normal float32 numbers shaped like (r, P), a function of (seed, chain, step) only."""
    rows = [
        reused_generator(seed, Stream.NOISE, first_chain + c, step).standard_normal(like.shape[1], dtype=np.float32)
        for c in range(len(like))
    ]
    return torch.from_numpy(np.stack(rows)).to(like)


def exclude(trace: ChainTrace, state: State, step: int, loss_band: float, first_chain: int) -> None:
    """Name the chains that left `loss_band` in the window that ends with `step`, and put them back to w*."""
    for c, why in left_band(trace.losses[: step + 1], state.position, loss_band).items():
        trace.diverged.setdefault(c, f"chain {first_chain + c}: {why}")
    for c in trace.diverged:
        state.position[c] = state.anchor[c]


def left_band(losses: Tensor, position: Tensor, loss_band: float) -> dict[int, str]:
    """Replicas whose mean loss over the last 50 steps of `losses` (steps, r) is NaN or above the band: number → why."""
    step = len(losses)
    first = max(0, step - WINDOW)  # the last window of a run reaches back into the one before it
    window = torch.where(torch.isfinite(position).all(1), losses[first:].mean(0), math.nan)
    return {
        c: f"mean minibatch loss {value:.4g} over steps {first + 1}-{step}"
        + (f", above its band of {loss_band:.4g}" if math.isfinite(value) else "")
        for c, value in enumerate(window.tolist())
        if not (math.isfinite(value) and value <= loss_band)
    }
