r"""SGLD with exact gradients on numpy rows: many small replicas at once, each with noise of its seed alone.

.. math:: w \leftarrow w - \tfrac{\epsilon}{2}\,[\,n\beta\,\nabla L(w) + \gamma\,(w - w^*)\,] + \sqrt{\epsilon}\,\xi

The same rule serves two purposes. Around a solution w* it samples the localized posterior (Lau et al., arXiv
2308.12108). With w* = 0 it is noisy training under the prior N(0, 1/γ): at γ = 1 and learning rate η = ε nβ / 2 it
reads w ← w - η (∇L + w / nβ) + √(2 η / nβ) ξ.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from patterning.core.rng import Stream, generator
from patterning.posterior.sgld import SGLD

Floats = NDArray[np.float64]
Gradient = Callable[[Floats], Floats]

_BLOCK = 250
"""Steps whose noise is drawn at once; a block is a function of (seed, replica, its first step)."""


def walk(
    gradient: Gradient,
    start: Floats,
    anchor: Floats,
    kernel: SGLD,
    rows: Sequence[tuple[int, int]],
    steps: int,
    visit: Callable[[int, Floats], None] | None = None,
) -> Floats:
    """`steps` steps from `start` (r, P) with `gradient` ∇L of rows (r, P); returns the last positions (r, P).

    `anchor` is w*, (r, P) or (P,); `rows` names the (seed, replica) of each row's noise; `visit(t, positions)` is
    called after step t = 1, 2, ... A row that overflows turns to infinity or NaN without a warning: the caller must
    look.
    """
    drift, scale = kernel.step_size / 2, math.sqrt(kernel.step_size)
    position = start
    with np.errstate(over="ignore", invalid="ignore"):
        for block in range(0, steps, _BLOCK):
            noise = _noise(rows, block, min(_BLOCK, steps - block), start.shape[1])
            for t, xi in enumerate(noise, start=block + 1):
                pull = kernel.n_beta * gradient(position) + kernel.localization * (position - anchor)
                position = position - drift * pull + scale * xi
                if visit is not None:
                    visit(t, position)
    return position


def descend(gradient: Gradient, start: Floats, rate: float, steps: int) -> Floats:
    """`steps` steps of gradient descent without noise from `start` (r, P); a row that overflows turns to NaN."""
    position = start
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            position = position - rate * gradient(position)
    return position


def _noise(rows: Sequence[tuple[int, int]], step: int, count: int, parameters: int) -> Floats:
    """Standard normal numbers of `count` steps from `step` on, (count, r, P)."""
    noise = np.empty((count, len(rows), parameters))
    for i, (seed, replica) in enumerate(rows):
        noise[:, i] = generator(seed, Stream.NOISE, replica, step).standard_normal((count, parameters))
    return noise
