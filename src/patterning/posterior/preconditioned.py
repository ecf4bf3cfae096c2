r"""RMSProp-preconditioned SGLD (Li et al., arXiv 1512.07666, without the Γ term).

.. math:: v \leftarrow a v + (1 - a) g^2, \qquad G = \frac{1}{\sqrt{\hat v} + \delta}
.. math:: w \leftarrow w - \tfrac{\epsilon G}{2}\,[\,n\beta\, g + \gamma\,(w - w^*)\,] + \sqrt{\epsilon G}\,\xi

with g = ∇L_B and v̂ = v / (1 - aᵗ). Leaving out Γ = Σ ∂G/∂w biases the stationary law where v̂ changes over the
posterior; with δ well above √v̂ the sampler is SGLD with step ε/δ.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.posterior.sgld import check_settings


@dataclass(frozen=True)
class RMSPropSGLD:
    """SGLD whose step in each coordinate is divided by the size of recent gradients there, as in RMSProp.

    nβ, γ and ε are those of `SGLD`. `decay` a: how slowly the mean of squared gradients forgets. `damping` δ: the least
    that a step is divided by.
    """

    n_beta: float
    localization: float
    step_size: float
    decay: float = 0.99
    damping: float = 0.1
    bias_correction: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that define no chain."""
        for name in ("decay", "damping"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise PatterningError(f"{name} is {value!r}: it must be a number")
        if not 0 <= self.decay < 1:
            raise PatterningError(f"decay is {self.decay}: it must be in [0, 1)")
        if not (math.isfinite(self.damping) and self.damping > 0):
            raise PatterningError(f"damping is {self.damping}: it must be finite and > 0")
        check_settings(self.n_beta, self.localization, self.step_size, self.damping)
        for name in ("n_beta", "localization", "step_size", "decay", "damping"):
            object.__setattr__(self, name, float(getattr(self, name)))


@dataclass(frozen=True)
class State:
    """`position`, `anchor` and `second_moment` v, each (r, P) float32 or wider, after `step` steps."""

    position: Tensor
    anchor: Tensor
    second_moment: Tensor
    step: int


def init(anchor: Tensor, chains: int) -> State:
    """`chains` copies of one checkpoint w* (P,)."""
    rows = anchor.expand(chains, -1)
    return State(rows.clone(), rows, torch.zeros_like(rows, memory_format=torch.contiguous_format), 0)


def scale(state: State, kernel: RMSPropSGLD) -> Tensor:
    """The preconditioner G (r, P) of the step that was last made: ε G is its size."""
    return 1 / _divisor(state.second_moment, state.step, kernel)


def update(state: State, gradient: Tensor, noise: Tensor, kernel: RMSPropSGLD) -> State:
    """One step; `gradient` is ∇L_B (r, P) of the mean minibatch loss, `noise` standard normal (r, P)."""
    second = kernel.decay * state.second_moment + (1 - kernel.decay) * gradient**2
    step = kernel.step_size / _divisor(second, state.step + 1, kernel)
    drift = kernel.n_beta * gradient + kernel.localization * (state.position - state.anchor)
    position = state.position + (step.sqrt() * noise - (step / 2) * drift)
    return State(torch.as_tensor(position), state.anchor, torch.as_tensor(second), state.step + 1)


def _divisor(second: Tensor, step: int, kernel: RMSPropSGLD) -> Tensor:
    """√v + δ after `step` >= 1 steps, v corrected for its start at 0 where that is asked for."""
    corrected = second / (1 - kernel.decay**step) if kernel.bias_correction else second
    return corrected.sqrt() + kernel.damping
