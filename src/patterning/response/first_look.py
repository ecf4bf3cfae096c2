r"""The first look: χ to first order in 1/γ, by one gradient and one forward derivative, without sampling.

For a Gaussian posterior of covariance I/γ in the component's coordinates,

.. math:: \chi_j(\phi) \to -\tfrac{1}{\gamma}\,\nabla\phi(w^*)\cdot\nabla[\ell_j - L](w^*)

It takes seconds where sampling takes minutes, and knows nothing of the curvature around w*: on a head of a small GPT-2
its rank correlation with pathwise χ was 0.82. At a minimum of L it says nothing of the component loss, whose gradient
is 0 there. It has no Monte Carlo error; its halves are made from the two halves of the rows that φ is a mean over,
where φ is one, and say how well these rows determine it.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.response.adjoint import ModelReading, mean_gradient
from patterning.response.one_component import ModelObservable, PhiOf
from patterning.response.sample import COMPONENT_LOSS, SampledResponse
from patterning.response.susceptibility import Susceptibility


def first_look(
    free: Restricted,
    probe: Probe,
    *,
    localization: float,
    n_beta: float,
    observables: Mapping[str, ModelObservable],
    phi: PhiOf | Tensor = "data",
    component_loss: bool = True,
) -> SampledResponse:
    """First-order χ of one component for the probe's samples, as a `SampledResponse` of estimator "first-order".

    Raises `PatterningError` where no observable has a gradient in the component.
    """
    gradients = _gradients(free, probe, observables, phi, component_loss)
    rows = {name: [_along(free, probe, part, localization) for part in parts] for name, parts in gradients.items()}
    if all(not np.any(row[0]) for row in rows.values()):
        raise PatterningError(
            f"component {free.component.name!r}: no observable has a gradient in it at w*, so that a first look sees "
            "nothing; sample it (estimator='auto')"
        )
    chi = np.stack([row[0] for row in rows.values()])
    halves = np.stack([np.stack([row[1 + half] for row in rows.values()]) for half in (0, 1)])
    at_anchor = probe.at_anchor.double().cpu().numpy()
    response = Susceptibility(
        observables=tuple(rows),
        n_beta=n_beta,
        base_weights=probe.samples.weight,
        chi=chi,
        standard_error=np.abs(halves[0] - halves[1]) / 2,
        degrees_of_freedom=math.inf,
        halves=halves,
        mean_losses=at_anchor,
        mean_losses_error=np.zeros_like(at_anchor),
        by_chain=halves,
    )
    return SampledResponse(
        susceptibility=response,
        traces={name: np.zeros((0, 0)) for name in rows},
        diagnostics={},
        sample_diagnostics={},
        watched_traces=np.zeros((0, 0, 0)),
        excluded={},
        rise=0.0,
        estimator="first-order",
        note="a first look: to first order in 1/γ, without sampling",
    )


def _gradients(
    free: Restricted, probe: Probe, observables: Mapping[str, ModelObservable], phi: PhiOf | Tensor, with_loss: bool
) -> dict[str, list[Tensor]]:
    """∇φ (P_C,) of every observable: whole, and of two halves of what it is a mean over (the same where unknown)."""
    gradients: dict[str, list[Tensor]] = {}
    if with_loss:
        if phi == "data" if isinstance(phi, str) else False:
            weighted = (free.base_weights > 0).nonzero()[:, 0]
            halves = [mean_gradient(free, weighted[half::2]) for half in (0, 1)]
        else:
            rows = phi if isinstance(phi, Tensor) else torch.cat(probe.chunks).cpu()
            halves = [_mean_slope(Probe(free, rows[half::2])) if len(rows) > 1 else None for half in (0, 1)]
            halves = [part for part in halves if part is not None] or [_mean_slope(probe)] * 2
        gradients[COMPONENT_LOSS] = [(halves[0] + halves[1]) / 2, *halves]
    for name, function in observables.items():
        slope = ModelReading(name, free, function)(free.anchor[None])[2][0]
        gradients[name] = [slope] * 3
    return gradients


def _mean_slope(probe: Probe) -> Tensor:
    weights = torch.from_numpy(probe.samples.weight).to(probe.restricted.anchor.device)
    return probe.slope(probe.restricted.anchor[None], weights)[2][0]


def _along(free: Restricted, probe: Probe, gradient: Tensor, localization: float) -> np.ndarray:
    """-(1/γ) ∇φ · ∇(ℓ_j - L), (n,)."""
    if not bool(gradient.any()):
        return np.zeros(len(probe))
    tangent = probe.along(free.anchor[None], gradient[None])[1][0].detach().double().cpu().numpy()
    return -(tangent - tangent @ probe.samples.weight) / localization
