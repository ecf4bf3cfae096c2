r"""Is w* a minimum of L? What a slope there does to the learning coefficient that is measured around it.

Let L = g·δ + ½ δᵀHδ in δ = w - w*, and A = nβH + γ. The localized posterior is a Gaussian around δ = -nβ A⁻¹g, where

.. math:: \hat\lambda = \tfrac{n\beta}{2}\,\mathrm{tr}(H A^{-1})
          - \tfrac{(n\beta)^2}{2}\left(g^T A^{-1} g + \gamma\, g^T A^{-2} g\right)

The first part is λ̂ without the slope. The second, the drop, lies between these, where H has no negative eigenvalue and
thus A ≥ γ; with κ = gᵀAg / |g|², by Jensen's inequality over the eigenvalues of A:

.. math:: \tfrac{(n\beta |g|)^2}{2}\left(\frac{1}{\kappa} + \frac{\gamma}{\kappa^2}\right)
          \quad\text{and}\quad \frac{(n\beta |g|)^2}{\gamma}
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from patterning.core.anchors import check_anchor
from patterning.core.errors import PatterningError
from patterning.core.flat import FlatTask
from patterning.posterior.curvature import NOTE, Curvature


@dataclass(frozen=True)
class Slope:
    """∇L at w* on all data: its length `gradient` (nats per unit of w), and L's `curvature` along it, gᵀHg / |g|².

    `least_drop`, `most_drop`: by how much it lowers λ̂ at this nβ and γ, to second order, where L has no negative
    curvature at w*. `least_drop` is NaN where the curvature along the slope is below -γ/nβ. `note`: how the curvature
    was made, where the loss has no usable second derivative.
    """

    gradient: float
    curvature: float
    n_beta: float
    localization: float
    least_drop: float
    most_drop: float
    note: str = ""

    def __str__(self) -> str:
        low = "an unknown amount" if math.isnan(self.least_drop) else f"{self.least_drop:.2g}"
        return (
            f"|∇L(w*)| = {self.gradient:.2g} lowers λ̂ by {low} to {self.most_drop:.2g} at nβ {self.n_beta:g} and γ "
            f"{self.localization:g}" + (f" ({self.note})" if self.note else "")
        )


def is_minimum(task: FlatTask, anchor: Tensor, *, n_beta: float, localization: float, chunk: int = 512) -> Slope:
    """The slope of L at `anchor` w* (P,), and what it does to λ̂: w* passes for a minimum where `most_drop` is small.

    The gradient and one Hessian-vector product (where the loss has no usable second derivative, a difference of
    gradients: `Slope.note`) are taken over all data, in pieces of `chunk` rows. A saddle passes, too: what is measured
    is the slope, and no negative curvature off it.
    """
    anchor = check_anchor(task, anchor)
    q = task.base_weights.to(anchor.device)
    flat = anchor[None].clone()
    rows = torch.arange(len(q), device=anchor.device).split(chunk)

    def loss_of(part: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda at: (task.losses(at, part[None])[0] * q[part].to(at)).sum()

    losses = [loss_of(part) for part in rows]
    slope = Curvature(tuple(losses), flat).gradient(flat)
    size = float(slope.double().norm())
    if not math.isfinite(size):
        raise PatterningError("the gradient of L at w* is NaN or infinite: it is no checkpoint to sample around")
    if size == 0:
        return Slope(0.0, 0.0, n_beta, localization, 0.0, 0.0)
    direction = slope / size
    curvature = Curvature.of(losses, flat, direction)
    bend = float((curvature.times(direction) * direction).double().sum())
    drive, kappa = (n_beta * size) ** 2, n_beta * bend + localization
    least = drive / 2 * (1 / kappa + localization / kappa**2) if kappa > 0 else math.nan
    note = NOTE if curvature.by_differences else ""
    return Slope(size, bend, n_beta, localization, least, drive / localization, note)
