r"""Localized stochastic gradient Langevin dynamics (Welling & Teh 2011; Lau et al., arXiv 2308.12108; SPEC §2).

.. math:: w \leftarrow w - \tfrac{\epsilon}{2}\,[\,n\beta\,\nabla L_B(w) + \gamma\,(w - w^*)\,] + \sqrt{\epsilon}\,\xi

On a quadratic of total curvature λ = nβ h + γ the stationary variance is `1 / (λ (1 - ελ/4))`, not 1/λ.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from patterning.errors import PatterningError


def check_settings(n_beta: float, localization: float, step_size: float) -> None:
    """Raise `PatterningError` for values that define no localized posterior."""
    for name, value, low in (
        ("n_beta", n_beta, 0.0),
        ("localization", localization, 0.0),
        ("step_size", step_size, None),
    ):
        if not math.isfinite(value) or (value <= 0 if low is None else value < low):
            raise PatterningError(f"{name} is {value}: it must be finite and {'> 0' if low is None else '>= 0'}")
    if localization == 0:
        raise PatterningError("localization is 0: nothing keeps the chain near w*; state a positive value")


@dataclass(frozen=True)
class SGLD:
    """Settings of the kernel. `n_beta` nβ, `localization` γ and `step_size` ε have no default (SPEC §2)."""

    n_beta: float
    localization: float
    step_size: float

    def __post_init__(self) -> None:
        """Refuse settings that define no chain."""
        check_settings(self.n_beta, self.localization, self.step_size)


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
    """One step; `gradient` is ∇L_B (r, P) of the mean minibatch loss, `noise` standard normal (r, P)."""
    drift = kernel.n_beta * gradient + kernel.localization * (state.position - state.anchor)
    position = state.position - (kernel.step_size / 2) * drift + math.sqrt(kernel.step_size) * noise
    return State(torch.as_tensor(position), state.anchor)
