"""Which observable of a response is φ = L(w) - L(w*) of its own samples, as the responses of a solution need."""

from collections.abc import Sequence

import numpy as np

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError
from patterning.response.moments import Moments
from patterning.response.sample import COMPONENT_LOSS, SampledResponse


def find_phi(
    moments: Moments, observables: Sequence[str], q: Floats, n_beta: float, wanted: str | None
) -> tuple[str, float]:
    """Name of the observable that is a multiple of L - L(w*), nβ or 1, and that multiple, by the sums of draws."""
    if wanted is not None and wanted not in observables:
        raise PatterningError(f"there is no observable {wanted!r}: χ has rows for {', '.join(observables)}")
    rise = moments.losses @ q
    for name in observables if wanted is None else [wanted]:
        sums = moments.phi[:, :, observables.index(name)]
        for scale in (n_beta, 1.0):
            if np.allclose(sums, scale * rise, rtol=1e-4, atol=1e-6 * scale * np.abs(moments.losses).max()):
                return name, scale
    raise PatterningError(
        f"{'no observable' if wanted is None else repr(wanted)} is L(w) - L(w*) of these samples under their base "
        f"weights, or nβ times it (there are {', '.join(observables)}): sample with `llc_observable`, which P needs"
    )


def check_means(response: SampledResponse, observable: str | None) -> None:
    """Raise `PatterningError` unless φ of a response without sums is L - L(w*) of its own samples, or of all data."""
    if response.estimator == "first-order":
        raise PatterningError("a first look samples nothing: four responses need chains (covariance, or pathwise)")
    chi = response.susceptibility
    if observable not in (None, COMPONENT_LOSS) or COMPONENT_LOSS not in chi.observables:
        asked = "no observable" if observable is None else repr(observable)
        raise PatterningError(
            f"{asked} is known to be L(w) - L(w*): of a {response.estimator} response that is {COMPONENT_LOSS!r} alone "
            f"(there are {', '.join(chi.observables)}); sample with it, component_loss=True"
        )
    if response.phi == "rows":
        raise PatterningError(
            "φ was read on other rows than the sampled ones, so that P would be of one loss and X of another: sample "
            "with phi='probes' (or 'data')"
        )
