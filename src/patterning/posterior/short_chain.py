r"""A short chain before the long ones: are its steps short enough, and its minibatches large enough?

On a quadratic of total curvature λ = nβ h + γ, steps ε with minibatches of B rows give the variance

.. math:: \frac{1 + r}{\lambda\,(1 - \epsilon\lambda/4)},\qquad r = \frac{\epsilon}{4}\,(n\beta)^2\,\frac{c}{B}

in place of 1/λ, with c the variance over rows of the gradient in that direction (Mandt, Hoffman & Blei, JMLR 18, 2017,
have the law of such chains). So minibatches raise E[L], which is half the sum of h times the variance, by the
mean of

.. math:: \frac{\epsilon}{8}\,(n\beta)^2\; d^T H (n\beta H + \gamma)^{-1} d

over differences d of the gradients of two minibatches, divided by √2. A few steps of Lanczos from d give that form, as
a Gauss quadrature (Golub & Meurant 1994), and the largest curvature h besides.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.flat import FlatTask
from patterning.posterior import preconditioned
from patterning.posterior.chains import (
    ChainConfig,
    State,
    StepNumbers,
    init,
    loss_and_gradient,
    minibatch,
    update,
)
from patterning.posterior.curvature import Curvature, lanczos
from patterning.posterior.preconditioned import RMSPropSGLD
from patterning.posterior.sgld import SGLD

STEPS, SHARE = 10, 16
"""Of the short chain: directions that the loss holds have settled by then; and at most a sixteenth of all steps."""
NUMBER = 1 << 20
"""The number of the short chain, whose minibatches and noise no long chain has."""
PAIRS, LEAST_SIZE = 8, 16
"""Pairs of gradients that are compared, and how many rows each is of at least: smaller minibatches are joined, as
gradients of single rows vary so much in size that a few of them say little."""
FURTHEST = 10.0
"""How much further than a short chain came the noise may be measured."""
ROWS, LEAST_ROWS, CELLS = 64, 8, 512
"""Most and fewest rows, and about how many samples, on which curvature is taken."""
LANCZOS = 4
"""Steps of the Lanczos iteration."""
LEAST_CHANGES = 4
"""Changes of the gradient from step to step, from which the largest possible noise of minibatches is told."""
LONG, TOO_LONG = 0.5, 2.0
"""ελ in the steepest direction: past the first a warning; from the second on the response of the chain has another sign
than that of the posterior, as its variance grows with the curvature."""
NOISY = 0.2
"""Share of the rise of the loss that minibatches may make without a warning."""
ROUNDED = 0.02
"""Share of the noise of a step that rounding may add without a warning."""
AIM = 0.1
"""The share that is aimed at by advice."""


@dataclass(frozen=True)
class ShortChain:
    """What is met at the end of a short chain: the `length` ελ of its steps, and the `noise` of its minibatches, nats.

    `length`: in the steepest direction that was met. `noise`: by how much minibatches raise E[L], at this `step_size`,
    with its standard `error`; it is the most that this can be where there is a `measure`, which takes some seconds and
    says how much it is, and its error, where the chains have raised the loss by so many nats. `rounding`: the variance
    that rounding adds in each step, as a share of that of the noise, in the parameter that is largest.
    """

    length: float
    noise: float
    step_size: float
    measure: Callable[[float], tuple[float, float]] | None = None
    error: float = 0.0
    rounding: float = 0.0

    def measured(self, rise: float = 0.0) -> "ShortChain":
        """With the noise as it is at a `rise` of the loss, not the most that it can be; 0: near w*."""
        if self.measure is None:
            return self
        noise, error = self.measure(rise)
        return replace(self, noise=noise, error=error, measure=None)

    def at(self, step_size: float) -> "ShortChain":
        """The same at other steps, in proportion to which both numbers are."""
        own = self.measured()
        share = step_size / self.step_size
        return ShortChain(
            own.length * share, own.noise * share, step_size, None, own.error * share, own.rounding / share
        )

    @property
    def short_enough(self) -> float:
        """A step size with ελ = 0.2, at which the variance is right to 5 %."""
        return 0.2 * self.step_size / self.length

    @property
    def why_no_response(self) -> str | None:
        """Why the derivative of such a chain is no χ; None where it is."""
        if self.length < TOO_LONG:
            return None
        return (
            f"the steps are too long: ε (nβ h + γ) is {self.length:.2g} in the steepest direction of the loss, and "
            f"from {TOO_LONG:g} on the response of a chain has the wrong sign there. Lower step_size to about "
            f"{self.short_enough:.1g}"
        )


def try_chain(task: FlatTask, anchor: Tensor, kernel: object, chains: ChainConfig) -> ShortChain | None:
    """Run it from `anchor` w* (P,); None where the chain blows up (the long ones are then left out by name).

    With a preconditioner G, lengths are those in its coordinates, and the noise of minibatches is not measured.
    """
    if not isinstance(kernel, SGLD | RMSPropSGLD):
        return None
    state, changes = _run(task, anchor, kernel, chains, 1)
    if not bool(state.position.isfinite().all()):
        return None
    rough = _Rough(task, anchor, state.position, kernel, chains)
    if isinstance(kernel, RMSPropSGLD):
        assert isinstance(state, preconditioned.State)
        scale = preconditioned.scale(state, kernel)
        held = kernel.n_beta * rough.steepest(scale.sqrt()) + kernel.localization * float(scale.max())
        return ShortChain(kernel.step_size * held, 0.0, kernel.step_size)
    length = kernel.step_size * (kernel.n_beta * rough.steepest() + kernel.localization)
    # f(h) = h / (nβ h + γ) is at most 1 / nβ, and the way from step to step adds to the changes; twice, for chance
    most = math.inf
    if len(changes) > LEAST_CHANGES:
        most = kernel.step_size / 4 * kernel.n_beta * float(torch.stack(changes[1:]).mean())
    return ShortChain(length, most, kernel.step_size, rough.noise, rounding=_rounding(anchor) / kernel.step_size)


def _rounding(anchor: Tensor) -> float:
    """Variance of rounding a number as large as the largest one of w* (P,): the spacing there squared, over 12."""
    exponent = int(torch.frexp(anchor.abs().amax())[1])
    return (torch.finfo(anchor.dtype).eps * 2.0 ** (exponent - 1)) ** 2 / 12


def _run(
    task: FlatTask, anchor: Tensor, kernel: SGLD | RMSPropSGLD, chains: ChainConfig, count: int
) -> tuple[State, list[Tensor]]:
    """`count` short chains: where they are at the end, and half the squared changes of the gradient at each step."""
    own = ChainConfig(count, 1, 0, 1, chains.batch_size, chains.seed)
    numbers, state = StepNumbers(task.base_weights, own, NUMBER, anchor), init(kernel, anchor, count)
    before, changes = torch.zeros_like(state.position), list[Tensor]()
    for step in range(min(STEPS, chains.steps, max(LEAST_CHANGES + 1, chains.steps * chains.replicas // SHARE))):
        _, gradient = loss_and_gradient(task, state.position, numbers.rows(step))
        state = update(state, gradient, numbers.noise(step), kernel)
        changes.append((gradient - before).square().sum() / 2)
        before = gradient
    return state, changes


def step_warnings(short: ShortChain | None, rise: float, chains: ChainConfig) -> list[str]:
    """What to know of chains that raised the loss by `rise` nats, minibatches and steps included."""
    if short is None:
        return []
    lines = []
    if short.length > LONG:
        wide = (
            f"is {1 / (1 - short.length / 4):.2g} times that of the posterior" if short.length < 4 else "has no limit"
        )
        lines.append(
            f"steps are long: ε (nβ h + γ) is {short.length:.2g} in the steepest direction of the loss, and the "
            f"variance of a chain there {wide}; a step_size of {short.short_enough:.1g} is short enough"
        )
    if short.rounding > ROUNDED:
        lines.append(
            "steps are rounded: a parameter is so large that rounding adds "
            f"{short.rounding:.1%} to the variance of each step, and that of a chain in it is as much too large; "
            "subtract an offset from what it stands for (normalise the data), or take longer steps"
        )
    if rise > 0 and short.noise > NOISY * rise:
        short = short.measured(rise)
    share, error = (short.noise / rise, short.error / rise) if rise > 0 else (0.0, 0.0)
    if share + error > NOISY:
        exact = max(rise - short.noise, 0.1 * rise)
        size = math.ceil(chains.batch_size * short.noise / (AIM * exact))
        lines.append(
            f"minibatches are small: about {min(share, 1):.0%} (± {error:.0%}) of the rise of the loss is the "
            f"noise of {chains.batch_size} rows, and λ̂ is about {rise / exact:.2g} times too large. χ may be as well "
            f"(pathwise χ of an observable often by less). batch_size={size} leaves about a tenth, and so does a "
            f"step_size {size / chains.batch_size:.2g} times smaller, with as many times more burn_in and draws"
        )
    return lines


@dataclass(frozen=True)
class _Rough:
    """Curvature at the `position` (1, P) that a short chain reached, and noise about there, on a few rows."""

    task: FlatTask
    anchor: Tensor
    position: Tensor
    kernel: SGLD | RMSPropSGLD
    chains: ChainConfig

    def steepest(self, root: Tensor | float = 1.0) -> float:
        """The largest curvature h that is met, in coordinates divided by `root` (1, P); 0 where there is none."""
        first = self._gradient(self.position, self._rows(2, 0, self.chains.batch_size))
        if not float(first.norm()) > 0:
            return 0.0
        try:
            hessian = self._hessian(self.position, first)
            found, _ = lanczos(lambda along: root * hessian.times(root * along), first / first.norm(), LANCZOS)
            return max(0.0, float(found.max()))
        except (RuntimeError, NotImplementedError, PatterningError):  # a loss without curvature is tried elsewhere
            return 0.0

    def noise(self, rise: float) -> tuple[float, float]:
        """By how much minibatches raise E[L] where it was raised by `rise`, nats, and the standard error of that.

        0 where nothing has curvature.
        """
        kernel, found = self.kernel, np.zeros(PAIRS)
        joined = math.ceil(LEAST_SIZE / self.chains.batch_size)
        try:
            places = self._places(rise)
            hessian: Curvature | None = None
            for pair in range(PAIRS):
                place = places[[pair % len(places)]]
                one, other = (self._gradient(place, self._minibatches(2 + which, pair, joined)) for which in (0, 1))
                difference = (one - other) * math.sqrt(joined / 2)
                size = float(difference.norm())
                if not size > 0:
                    continue  # the rows have one and the same gradient, or a minibatch is all the data
                hessian = hessian or self._hessian(self.position, difference)
                curvatures, shares = lanczos(hessian.times, difference / size, LANCZOS)
                held = np.maximum(curvatures, 0.0)
                found[pair] = size**2 * float(shares @ (held / (kernel.n_beta * held + kernel.localization)))
        except (RuntimeError, NotImplementedError, PatterningError):
            return 0.0, 0.0
        found *= kernel.step_size / 8 * kernel.n_beta**2
        return float(found.mean()), float(found.std(ddof=1) / math.sqrt(PAIRS))

    def _places(self, rise: float) -> Tensor:
        """Positions (r, P) like those of chains that have raised the loss by `rise` nats.

        A short chain has not gone as far from w*, and rows have larger gradients where their losses are larger. So its
        way from w* is made longer, until the loss has risen by `rise`: the rise grows with the square of the way.
        """
        count = min(PAIRS, self.chains.replicas)
        ways = _run(self.task, self.anchor, self.kernel, self.chains, count)[0].position - self.anchor
        with torch.no_grad():
            rows = self._rows(1, 0, self._few)
            start = float(self.task.losses(self.anchor[None], rows).mean())
            losses = [float(self.task.losses(self.anchor + way[None], rows).mean()) for way in ways]
        came = sum(losses) / count - start
        further = min(math.sqrt(rise / came), FURTHEST) if came > 0 else 1.0
        return self.anchor + max(1.0, further) * ways

    def _hessian(self, place: Tensor, direction: Tensor) -> Curvature:
        count, rows = self._few, self._rows(1, 0, self._few)
        most = getattr(self.task, "at_once", lambda *shape: shape)(1, count)[1]
        parts = [lambda at, part=part: self.task.losses(at, part).sum() / count for part in rows.split(most, dim=1)]
        return Curvature.of(parts, place, direction / direction.norm())

    @property
    def _few(self) -> int:
        return min(ROWS, max(LEAST_ROWS, CELLS // getattr(self.task, "samples_per_row", 1)))

    def _gradient(self, place: Tensor, rows: Tensor) -> Tensor:
        return loss_and_gradient(self.task, place, rows)[1]

    def _minibatches(self, number: int, pair: int, joined: int) -> Tensor:
        """Rows (1, b·joined) of so many minibatches."""
        size = self.chains.batch_size
        return torch.cat([self._rows(number, pair * joined + part, size) for part in range(joined)], dim=1)

    def _rows(self, number: int, step: int, size: int) -> Tensor:
        cumulative = np.cumsum(self.task.base_weights.cpu().numpy())
        index = minibatch(cumulative, self.chains.seed, NUMBER + number, step, size)
        return torch.from_numpy(index)[None].to(self.position.device)
