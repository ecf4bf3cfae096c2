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
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError
from patterning.core.flat import FlatTask
from patterning.posterior.chains import ChainConfig, StepNumbers, init, loss_and_gradient, minibatch, update
from patterning.posterior.curvature import Curvature
from patterning.posterior.sgld import SGLD

STEPS = 30
"""Of the short chain: directions that the loss holds have settled by then."""
NUMBER = 1 << 20
"""The number of the short chain, whose minibatches and noise no long chain has."""
PAIRS = 6
"""Pairs of minibatches whose gradients are compared."""
ROWS, LANCZOS = 64, 4
"""Rows on which the curvature along such a difference is taken, and steps of the Lanczos iteration from it."""
LONG, TOO_LONG = 0.5, 2.0
"""ελ in the steepest direction: past the first a warning; from the second on the response of the chain has another sign
than that of the posterior, as its variance grows with the curvature."""
NOISY = 0.2
"""Share of the rise of the loss that minibatches may make without a warning."""
AIM = 0.1
"""The share that is aimed at by advice."""


@dataclass(frozen=True)
class ShortChain:
    """What is met at the end of a short chain: the `length` ελ of its steps, and the `noise` of its minibatches, nats.

    `length`: in the steepest direction that was met. `noise`: by how much minibatches raise E[L], at this `step_size`.
    """

    length: float
    noise: float
    step_size: float

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
    """Run it from `anchor` w* (P,); None for a kernel with a preconditioner, and where the chain blows up.

    (The long chains are then left out by name.)
    """
    if not isinstance(kernel, SGLD):
        return None
    one = ChainConfig(1, 1, 0, 1, chains.batch_size, chains.seed)
    numbers, state = StepNumbers(task.base_weights, one, NUMBER, anchor), init(kernel, anchor, 1)
    for step in range(min(STEPS, chains.steps)):
        _, gradient = loss_and_gradient(task, state.position, numbers.rows(step))
        state = update(state, gradient, numbers.noise(step), kernel)
    if not bool(state.position.isfinite().all()):
        return None
    steepest, noise = _curvature_and_noise(task, anchor[None], state.position, kernel, chains)
    length = kernel.step_size * (kernel.n_beta * steepest + kernel.localization)
    return ShortChain(length, noise, kernel.step_size)


def step_warnings(short: ShortChain | None, rise: float, kernel: object, chains: ChainConfig) -> list[str]:
    """What to know of chains that raised the loss by `rise` nats, minibatches and steps included."""
    if short is None or not isinstance(kernel, SGLD):
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
    share = short.noise / rise if rise > 0 else 0.0
    if share > NOISY:
        exact = max(rise - short.noise, 0.1 * rise)
        size = math.ceil(chains.batch_size * short.noise / (AIM * exact))
        lines.append(
            f"minibatches are small: about {min(share, 1):.0%} of the rise of the loss is the noise of "
            f"{chains.batch_size} rows, and χ and λ̂ are about {rise / exact:.2g} times too large; batch_size={size} "
            "leaves a tenth, and so do steps that are as many times shorter and more"
        )
    return lines


def _curvature_and_noise(
    task: FlatTask, anchor: Tensor, position: Tensor, kernel: SGLD, chains: ChainConfig
) -> tuple[float, float]:
    """The largest curvature h at w* and at `position`, both (1, P), 0 where there is none; and the noise in nats.

    That is by how much minibatches raise E[L].
    """
    cumulative = np.cumsum(task.base_weights.cpu().numpy())

    def rows(number: int, step: int, size: int) -> Tensor:
        index = minibatch(cumulative, chains.seed, NUMBER + number, step, size)
        return torch.from_numpy(index)[None].to(position.device)

    seen = rows(1, 0, ROWS)
    most = getattr(task, "at_once", lambda *shape: shape)(1, ROWS)[1]
    parts = [lambda at, part=part: task.losses(at, part).sum() / ROWS for part in seen.split(most, dim=1)]

    def gradient(pair: int, which: int) -> Tensor:
        return loss_and_gradient(task, position, rows(2 + which, pair, chains.batch_size))[1]

    first = gradient(0, 0)
    if not float(first.norm()) > 0:
        return 0.0, 0.0
    try:
        hessian = Curvature.of(parts, position, first / first.norm())
        at_anchor = Curvature.of(parts, anchor, first / first.norm())
        steepest = max(float(lanczos(there.times, first / first.norm())[0].max()) for there in (hessian, at_anchor))
        total = 0.0
        for pair in range(PAIRS):
            difference = (gradient(pair, 0) - gradient(pair, 1)) / math.sqrt(2)
            size = float(difference.norm())
            if not size > 0:
                continue  # the rows have one and the same gradient, or a minibatch is all the data
            curvatures, shares = lanczos(hessian.times, difference / size)
            held = np.maximum(curvatures, 0.0)
            steepest = max(steepest, float(held.max()))
            total += size**2 * float(shares @ (held / (kernel.n_beta * held + kernel.localization)))
    except (RuntimeError, NotImplementedError, PatterningError):  # a loss without curvature is tried elsewhere
        return 0.0, 0.0
    return max(steepest, 0.0), kernel.step_size / 8 * kernel.n_beta**2 * total / PAIRS


def lanczos(times: Callable[[Tensor], Tensor], start: Tensor, steps: int = LANCZOS) -> tuple[Floats, Floats]:
    """Nodes and weights (k,) of the Gauss quadrature of vᵀ f(H) v, v the unit vector `start` (1, P); k <= `steps`.

    `times` multiplies by H. The largest node is a lower bound of the largest eigenvalue that v has a part of.
    """
    basis, diagonal, beside = [start], list[float](), list[float]()
    for _ in range(steps):
        product = times(basis[-1])
        diagonal.append(float((product * basis[-1]).sum()))
        for vector in basis:  # few vectors: made orthogonal to all of them, against rounding
            product = product - (product * vector).sum() * vector
        size = float(product.norm())
        if not size > 1e-6 * abs(diagonal[0]) or len(diagonal) == steps:
            break
        beside.append(size)
        basis.append(product / size)
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    return values, vectors[0] ** 2
