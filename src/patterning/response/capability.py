"""What a component's loss can do, tried in seconds before anything is sampled.

A chain needs the gradient of the loss in the component's coordinates; the pathwise estimator needs its curvature and
forward derivatives as well, and losses that these describe.
"""

import torch
from torch import Tensor

from patterning.core.modules import spread
from patterning.errors import PatterningError
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior.chains import loss_and_gradient
from patterning.posterior.sgld import SGLD
from patterning.response.adjoint import curvature
from patterning.rng import Stream, generator

ROWS = 16
"""Most rows that anything is tried on."""
LOOSE = 0.25
"""Least slope of the curvature on the change of the gradient that it stands for: 1 where the loss is smooth."""


def try_gradient(free: Restricted) -> None:
    """Raise `PatterningError` where the loss has no gradient in the component, or none that is ever other than 0."""
    rows, size = _rows(free), 0.0
    for flat in (free.anchor[None], _moved(free, float(free.anchor.abs().mean()) + 0.1)):
        try:
            losses = free.losses(flat.detach().requires_grad_(), rows[None])
            if not losses.requires_grad:
                continue
            _, gradient = loss_and_gradient(free, flat, rows[None])
        except PatterningError:
            raise
        except Exception as error:
            raise PatterningError(
                f"component {free.component.name!r}: the loss has no gradient in it ({_reason(error)})"
            ) from error
        if not bool(gradient.isfinite().all()) and size == 0:
            raise PatterningError(
                f"component {free.component.name!r}: the gradient of the loss is NaN or infinite at w*"
            )
        size = max(size, float(gradient.nan_to_num().abs().max()))
    if size == 0:
        raise PatterningError(
            f"component {free.component.name!r}: nothing in the loss depends on it (its gradient is 0 at w* and "
            "elsewhere); leave it out"
        )


def why_not_pathwise(free: Restricted, kernel: SGLD) -> str | None:
    """Why the pathwise estimator cannot serve this component, as a clause; None where it can.

    Its curvature must exist and agree with the change of the gradient over a typical distance of the chain, 1/√γ at
    most: it does not where the loss is piecewise linear, or a function hides its second derivative. Forward derivatives
    must agree with the gradient.
    """
    rows = _rows(free)
    generator_of_noise = generator(0, Stream.TRIAL, 1)
    vector = torch.from_numpy(generator_of_noise.standard_normal(free.num_parameters)).to(free.anchor)[None]
    try:
        gradient, bend = curvature(free, free.anchor[None], rows[None], vector)
    except Exception as error:
        return f"the loss has no second derivative ({_reason(error)})"
    if not bool(bend.isfinite().all()):
        return "the second derivative of the loss is NaN or infinite at w*"
    step = min(kernel.localization**-0.5, 0.05 * (float(free.anchor.square().mean().sqrt()) + 0.02))
    ahead, behind = (
        loss_and_gradient(free, free.anchor[None] + sign * step * vector, rows[None])[1] for sign in (1, -1)
    )
    change = (ahead - behind) / (2 * step)
    floor = 1e-4 * float(gradient.norm()) / step  # float32 tells no smaller change of the gradient
    if float(change.norm()) > floor:
        agreement = float((bend * change).sum() / change.square().sum())
        if not agreement > LOOSE:
            return (
                f"the second derivative of the loss does not say how its gradient changes (it accounts for "
                f"{max(agreement, 0):.0%} of the change): the loss is piecewise linear, or hides a derivative"
            )
    return _why_no_forward_derivative(free, rows, vector)


def _why_no_forward_derivative(free: Restricted, rows: Tensor, vector: Tensor) -> str | None:
    try:
        probe = Probe(free, rows)
        tangent = probe.along(free.anchor[None], vector)[1].double()
        weights = torch.from_numpy(probe.samples.weight).to(free.anchor.device)
        expected = float((probe.slope(free.anchor[None], weights)[2].double() * vector.double()).sum())
    except Exception as error:
        return f"the loss has no forward derivative ({_reason(error)})"
    value = float((tangent[0] * weights).sum())
    size = float((tangent[0].abs() * weights).sum())
    if abs(value - expected) > 1e-2 * size + 1e-6:
        return f"the forward derivative of the loss ({value:.3g}) and its gradient ({expected:.3g}) do not agree"
    return None


def _rows(free: Restricted) -> Tensor:
    """A few rows that hold samples, evenly spread."""
    weighted = (free.base_weights > 0).nonzero()[:, 0]
    return weighted[spread(len(weighted), ROWS)].to(free.anchor.device)


def _moved(free: Restricted, size: float) -> Tensor:
    noise = torch.from_numpy(generator(0, Stream.TRIAL).standard_normal(free.num_parameters))
    return free.anchor[None] + size * noise.to(free.anchor)


def _reason(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]
