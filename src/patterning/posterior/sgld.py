r"""Localized stochastic gradient Langevin dynamics (Welling & Teh 2011; Lau et al., arXiv 2308.12108).

.. math:: w \leftarrow w - \tfrac{\epsilon}{2}\,[\,n\beta\,\nabla L_B(w) + \gamma\,(w - w^*)\,] + \sqrt{\epsilon}\,\xi

On a quadratic of total curvature λ = nβ h + γ the stationary variance is `1 / (λ (1 - ελ/4))`, not 1/λ.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patterning.core.errors import PatterningError, PatterningWarning


def check_settings(n_beta: float, localization: float, step_size: float, damping: float = 1.0) -> None:
    """Raise `PatterningError` for values that define no localized posterior, or a chain that cannot be stable.

    `damping` δ: the largest step is ε/δ where a preconditioner has nothing to divide by.
    """
    for name, value in (("n_beta", n_beta), ("localization", localization), ("step_size", step_size)):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise PatterningError(f"{name} is {value!r}: it must be a number")
    for name, value, low in (
        ("n_beta", n_beta, 0.0),
        ("localization", localization, 0.0),
        ("step_size", step_size, None),
    ):
        if not math.isfinite(value) or (value <= 0 if low is None else value < low):
            raise PatterningError(f"{name} is {value}: it must be finite and {'> 0' if low is None else '>= 0'}")
    if localization == 0:
        raise PatterningError("localization is 0: nothing keeps the chain near w*; state a positive value")
    # w - w* is multiplied by 1 - γε/2 in a step where the loss is flat: past 2 it grows without end, past 1 it swings.
    pull = localization * step_size / damping / 2
    factors, bound = ("γε/2", "2/γ") if damping == 1 else ("γε/(2δ)", "2δ/γ")
    advice = f"lower step_size below {bound} = {2 * damping / localization:.3g}"
    if pull >= 2:
        raise PatterningError(
            f"{factors} is {pull:.3g}: from 2 on, the pull to w* alone makes a chain explode, whatever the loss is; "
            f"{advice}"
        )
    if pull > 1:
        warnings.warn(
            f"{factors} is {pull:.3g}: past 1 a chain overshoots w* at every step, and its variance is "
            f"{1 / (1 - pull / 2):.2g} times the posterior's or more; {advice}",
            PatterningWarning,
            stacklevel=4,
        )


@dataclass(frozen=True)
class SGLD:
    """SGLD, gradient descent with noise around a checkpoint w*: what a chain walks by. Nothing has a default.

    `n_beta` nβ: how strictly the loss counts. `localization` γ: how strongly w* attracts. `step_size` ε: how long a
    step is (docs/sampler-settings.md). Raises `PatterningError` for values with which no chain can be stable.
    """

    n_beta: float
    localization: float
    step_size: float

    def __post_init__(self) -> None:
        """Refuse settings that define no chain."""
        check_settings(self.n_beta, self.localization, self.step_size)
        for name, value in vars(self).items():  # numpy's numbers are no part of a key or a file
            object.__setattr__(self, name, float(value))


@dataclass(frozen=True)
class State:
    """`position` and `anchor` w*, both (r, P) float32 or wider, one row a chain."""

    position: Tensor
    anchor: Tensor


def init(anchor: Tensor, chains: int) -> State:
    """`chains` copies of one checkpoint w* (P,)."""
    rows = anchor.expand(chains, -1)
    return State(rows.clone(), rows)


def update(state: State, gradient: Tensor, noise: Tensor, kernel: SGLD) -> State:
    """One step; `gradient` is ∇L_B (r, P) of the mean minibatch loss, `noise` standard normal (r, P).

    Drift and noise are added up first: a drift that is less than the spacing of numbers near the position would be
    rounded away by itself, and the chain would have too large a variance.
    """
    drift = kernel.n_beta * gradient + kernel.localization * (state.position - state.anchor)
    position = state.position + (math.sqrt(kernel.step_size) * noise - (kernel.step_size / 2) * drift)
    return State(torch.as_tensor(position), state.anchor)
