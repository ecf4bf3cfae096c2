r"""The strong-localization limit of χ, without sampling (a control, "nβ = 0", and a cheap estimator).

For a Gaussian posterior of covariance I/γ, to first order in 1/γ,

.. math:: \chi_j(\phi) \to -\tfrac{1}{\gamma}\,\nabla\phi(w^*)^T\,\nabla[\ell_j - L](w^*)

the gradient dot product of influence functions with the identity for a Hessian. It knows nothing of the loss landscape
around w*, has no Monte Carlo error, and costs two evaluations of the data for each observable.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.anchors import check_anchor
from patterning.core.errors import PatterningError
from patterning.core.flat import FlatTask, evaluate
from patterning.response.sample import DifferentiableObservable

Floats = NDArray[np.float64]


def first_order_susceptibility(
    task: FlatTask,
    anchor: Tensor,
    observables: Mapping[str, DifferentiableObservable],
    *,
    localization: float,
    step: float = 1e-2,
) -> Floats:
    """χ (k, n) in [φ] · nats for observables that autograd can differentiate, around `anchor` w* (P,).

    Directional derivatives of all sample losses along ∇φ, by central differences of length `step` in weight space
    (error O(step²)). Raises `PatterningError` where φ has no gradient.
    """
    anchor = check_anchor(task, anchor)
    q = task.base_weights.cpu().double()
    rows = []
    for name, observable in observables.items():
        flat = anchor[None].detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(observable(flat).sum(), flat)
        norm = float(gradient.norm())
        if not np.isfinite(norm) or norm == 0:
            raise PatterningError(f"observable {name!r} has a gradient of size {norm} at w*: nothing responds to it")
        shift = gradient * (step / norm)
        ahead, behind = (
            evaluate(task.losses, anchor[None] + sign * shift, len(q))[0].cpu().double() for sign in (1.0, -1.0)
        )
        slope = (ahead - behind) * (norm / (2 * step))
        rows.append(-(slope - (slope @ q)) / localization)
    return torch.stack(rows).numpy()
