"""Is what was sampled a result? Refusals and warnings that every estimator shares."""

import math
from dataclasses import replace

import numpy as np
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.posterior.band import Band
from patterning.posterior.diagnostics import MOST_R_HAT, NOT_QUITE_SETTLED, missing_share
from patterning.posterior.resolution import below_resolution, resolution
from patterning.response.sample import SampledResponse

MOST_EXPANSION = 10.0
"""`auto` leaves the pathwise estimator for a component whose adjoint outgrows a convex loss's by this factor."""
APART = "chains disagree on"
NOT_QUITE = "chains have not quite settled on"
FAR = 0.5
"""Share of the way to the loss band from which a rise of the loss is called far from w*."""


class LostError(PatterningError):
    """Chains left the neighbourhood of w*."""


def judged(response: SampledResponse, losses: Tensor, band: Band) -> SampledResponse:
    """The response with its warnings, from the probed losses at w* (n,); raises where it is none."""
    chi = response.susceptibility
    if not (np.isfinite(chi.chi).all() and np.isfinite(chi.standard_error).all()):
        raise LostError("χ holds NaN or infinite entries")
    at_anchor, kind = losses.double().cpu().numpy(), losses.dtype
    least = resolution(at_anchor, chi.base_weights, kind)
    warnings = [why for why in (band.note, below_resolution(response.rise, least, kind)) if why]
    room = band.loss - float(at_anchor @ chi.base_weights)
    if math.isfinite(room) and room > 0 and response.rise > FAR * room:
        warnings.append(
            f"the loss rises by {response.rise:.3g} nats, {response.rise / room:.0%} of the way to a model that knows "
            "nothing: χ describes weights far from w*; raise localization γ or lower n_beta"
        )
    if response.expansion > MOST_EXPANSION:
        warnings.append(f"steps do not contract (adjoint expansion {response.expansion:.2g}): χ is noisy")
    for name, diagnostics in response.diagnostics.items():
        if diagnostics.r_hat > MOST_R_HAT:
            warnings.append(
                f"{APART} {name} (R-hat {diagnostics.r_hat:.2f}): they have not settled, or lie too "
                "close together to tell, and χ may be that of chains still moving away from w*; raise burn_in and "
                "draws, or γ"
            )
        elif diagnostics.r_hat > NOT_QUITE_SETTLED:
            warnings.append(
                f"{NOT_QUITE} {name} (R-hat {diagnostics.r_hat:.2f}): χ may be some "
                f"{missing_share(diagnostics.r_hat):.0%} too small, which its ± leaves out; raise burn_in and draws, "
                "or γ"
            )
    return replace(response, warnings=(*response.warnings, *warnings))
