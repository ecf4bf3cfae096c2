"""Moments as endless chains would leave them: from the exact means of φ, ℓ and φℓ, without Monte Carlo error."""

import numpy as np

from patterning.posterior.diagnostics import diagnose
from patterning.response.moments import Moments
from patterning.response.sample import SampledResponse
from patterning.response.susceptibility import susceptibility
from zoo.known import Floats
from zoo.quadratic import Forms, Gaussian
from zoo.singular import Grid

ENDLESS = 1e12


def exact_response(
    phi: Floats, losses: Floats, covariance: Floats, at_anchor: Floats, q: Floats, n_beta: float
) -> SampledResponse:
    """From ⟨φ⟩ (k,), φ(w*) being 0, ⟨ℓ⟩ (n,) and Cov(φ, ℓ) (k, n). The first observable is called "llc"."""
    chains, batches = 3, 2
    moments = Moments.empty(chains, batches, at_anchor, np.zeros(len(phi)))
    moments.count[:] = ENDLESS
    moments.phi[:] = ENDLESS * phi
    moments.losses[:] = ENDLESS * (losses - at_anchor)
    moments.products[:] = ENDLESS * (covariance + phi[:, None] * (losses - at_anchor))
    names = ["llc", *(f"other {i}" for i in range(1, len(phi)))]
    trace = np.random.default_rng(0).standard_normal((20, chains))
    return SampledResponse(
        susceptibility=susceptibility(moments, names, q, n_beta),
        traces=dict.fromkeys(names, trace),
        diagnostics={name: diagnose(trace) for name in names},
        sample_diagnostics={},
        watched_traces=np.zeros((20, chains, 0)),
        excluded={},
        rise=float((losses - at_anchor) @ q),
        moments=moments,
    )


def of_gaussian(forms: Forms, law: Gaussian, anchor: Floats, q: Floats, n_beta: float) -> SampledResponse:
    """Of quadratic losses under a Gaussian law."""
    loss, at_anchor = forms.mix(q), forms.values(anchor)
    phi = Forms(n_beta * loss.matrices, n_beta * loss.vectors, n_beta * (loss.constants - at_anchor @ q))
    return exact_response(phi.means(law), forms.means(law), phi.covariance(forms, law), at_anchor, q, n_beta)


def of_grid(grid: Grid, losses: Floats, at_anchor: Floats, q: Floats, n_beta: float) -> SampledResponse:
    """Of losses (N, n) at the points of a grid."""
    phi = n_beta * (losses - at_anchor) @ q[:, None]
    covariance = grid.covariance(phi, losses)
    return exact_response(grid.mean(phi), grid.mean(losses), covariance, at_anchor, q, n_beta)
