r"""The strong-localization limit of χ, without sampling (a control, "nβ = 0", and a cheap estimator).

For a Gaussian posterior of covariance I/γ, to first order in 1/γ,

.. math:: \chi_j(\phi) \to -\tfrac{1}{\gamma}\,\nabla\phi(w^*)^T\,\nabla[\ell_j - L](w^*)

the gradient dot product of influence functions with the identity for a Hessian. It knows nothing of the loss landscape
around w*, has no Monte Carlo error, and costs two evaluations of the data for each observable.
"""

import math
import warnings
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

CHUNK = 512
"""Samples whose forward derivatives are taken in one call."""


def first_order_susceptibility(
    task: FlatTask,
    anchor: Tensor,
    observables: Mapping[str, DifferentiableObservable],
    *,
    localization: float,
    step: float = 1e-2,
) -> Floats:
    """χ (k, n) in [φ] · nats for observables that autograd can differentiate, around `anchor` w* (P,).

    Forward derivatives of all sample losses along ∇φ. A loss that has none (or whose forward derivative and gradient do
    not agree) is differenced instead, over a shift whose root mean square is `step` times that of w* (error O(step²)).
    Raises `PatterningError` where φ or a loss has no finite gradient.
    """
    anchor = check_anchor(task, anchor)
    if not (math.isfinite(localization) and localization > 0):
        raise PatterningError(f"localization is {localization}: it must be finite and > 0")
    if not (math.isfinite(step) and step > 0):
        raise PatterningError(f"step is {step}: it must be finite and > 0")
    q = task.base_weights.cpu().double()
    rows = []
    for name, observable in observables.items():
        gradient = _gradient(name, observable, anchor)
        norm = float(gradient.double().norm())
        if not np.isfinite(norm) or norm == 0:
            raise PatterningError(f"observable {name!r} has a gradient of size {norm} at w*: nothing responds to it")
        slope = slopes_along(task, anchor, gradient / norm, step) * norm
        if not bool(slope.isfinite().all()):
            bad = int((~slope.isfinite()).nonzero()[0])
            raise PatterningError(f"the loss of sample {bad} has no finite slope at w*")
        rows.append(-(slope - (slope @ q)) / localization)
    if not rows:
        raise PatterningError("there is no observable: χ has a row for each")
    return torch.stack(rows).numpy()


def _gradient(name: str, observable: DifferentiableObservable, anchor: Tensor) -> Tensor:
    flat = anchor[None].clone().requires_grad_()
    value = observable(flat)
    if not isinstance(value, Tensor) or value.shape != (1,):
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise PatterningError(f"observable {name!r} gave {what} for 1 replica: it must be a tensor (r,)")
    if not value.requires_grad:
        raise PatterningError(f"observable {name!r} has no gradient in the parameters: it cannot be differentiated")
    return torch.autograd.grad(value.sum(), flat)[0]


def slopes_along(task: FlatTask, anchor: Tensor, direction: Tensor, step: float) -> Tensor:
    """Slopes of all sample losses (n,) float64 along a direction (1, P) of length 1."""
    parts = torch.arange(len(task.base_weights), device=anchor.device).split(CHUNK)
    try:
        slopes = [_tangent(task, anchor[None], direction, part) for part in parts]
        if all(_agrees(task, anchor[None], direction, part, own) for part, own in zip(parts[:1], slopes, strict=False)):
            return torch.cat(slopes)
    except (RuntimeError, NotImplementedError):  # no forward derivative
        pass
    size = float(anchor.double().square().mean().sqrt())
    shift = step * (size if size > 0 else 1.0) * math.sqrt(anchor.numel())
    ahead, behind = (
        evaluate(task.losses, anchor[None] + sign * shift * direction, len(task.base_weights))[0].cpu().double()
        for sign in (1.0, -1.0)
    )
    return (ahead - behind) / (2 * shift)


def _tangent(task: FlatTask, flat: Tensor, direction: Tensor, part: Tensor) -> Tensor:
    with warnings.catch_warnings():  # loading torch's own formulas warns of torch's own script
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        slopes = torch.func.jvp(lambda at: task.losses(at, part[None]), (flat,), (direction,))[1]
    return slopes[0].detach().cpu().double()


def _agrees(task: FlatTask, flat: Tensor, direction: Tensor, part: Tensor, slopes: Tensor) -> bool:
    """Whether the sum of forward derivatives is that of the gradient, as it is not where a function hides one."""
    at = flat.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(task.losses(at, part[None]).sum(), at)
    expected = float((gradient.double() * direction.double()).sum())
    return abs(float(slopes.sum()) - expected) <= 1e-3 * float(slopes.abs().sum()) + 1e-4 * abs(expected)
