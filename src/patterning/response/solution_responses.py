r"""What "the response of a solution" to the weight of a sample can mean: four responses, from the same draws.

In the localized posterior of a solution w*, exp(-nβ L - γ/2 |w - w*|²), let Δ_j = ℓ_j - L and φ = nβ (L - L(w*)), whose
mean is the local learning coefficient λ̂ (Lau et al., arXiv 2308.12108). Weight h moved onto sample j makes L + h Δ_j
of L, and changes

.. math:: P_j = -n\beta\,\mathrm{Cov}[\phi, \Delta_j] = n\beta\,\chi_j
          \qquad\text{(llc-posterior) } \langle\phi\rangle \text{, with } L \text{ inside } \phi \text{ held fixed}
.. math:: X_j = n\beta\,(\langle\Delta_j\rangle - \Delta_j(w^*))
          \qquad\text{(entropic) } L \text{ inside } \hat\lambda
.. math:: T_j = P_j + X_j \qquad\text{(llc-total) } \hat\lambda \text{, re-measured with the new } L
.. math:: F_j = n\beta\,\langle\Delta_j\rangle = X_j + E_j,\quad E_j = n\beta\,\Delta_j(w^*)
          \qquad\text{(free-energy) } -\log Z

at the rate h: (n,) each, per unit of weight moved, in units of 1 (nats of loss times nβ). Under an intervention
ρ = 1 + α s with Σ q_j s_j = 0 they change by α Σ_j q_j s_j R_j. P / nβ is χ of φ, of Baker et al. (arXiv 2504.18274).
On a quadratic basin with Hessian H of L and K of Δ_j, and A = nβH + γ, they are P = -½ (nβ)² tr(H A⁻¹ K A⁻¹),
X = ½ nβ tr(K A⁻¹) and T = ½ nβγ tr(A⁻¹ K A⁻¹): P and X cancel as γ → 0. docs/llc-responses.md says what each is for.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import as_floats
from patterning.core.errors import PatterningError
from patterning.posterior.chains import Kernel
from patterning.posterior.two_state import FEWEST_DRAWS, two_state_chains
from patterning.response.base_weights import as_base_weights
from patterning.response.chain_errors import Cosine, Estimate, cosine, jackknife, over_chains
from patterning.response.find_phi import check_means, find_phi
from patterning.response.moments import Moments, unbiased_covariances
from patterning.response.sample import COMPONENT_LOSS, SampledResponse

Floats = NDArray[np.float64]

NAMES = ("llc-posterior", "entropic", "llc-total", "free-energy")


@dataclass(frozen=True)
class FourResponses:
    """P, X, T and F of one solution for each sample, and what they were made of.

    `energy` E (n,) is exact: the losses at w*. `cosine` is that of E and F, `cosine_parts` that of E and X.
    `coefficient` λ̂ with its `coefficient_error` over chains. `base_weights` q (n,), `n_beta` nβ, `localization` γ,
    `step_size` ε. `chains`: numbers of those that were used; `left_out` number → why; `two_state` number → why a chain
    that was used must not be trusted. `notes`: what else limits the numbers. `posterior_by_chain` P and
    `free_energy_by_chain` F (chains, n), None where only means were kept.
    """

    llc_posterior: Estimate
    entropic: Estimate
    llc_total: Estimate
    free_energy: Estimate
    energy: Floats
    cosine: Cosine
    cosine_parts: Cosine
    coefficient: float
    coefficient_error: float
    base_weights: Floats
    n_beta: float
    localization: float
    step_size: float
    chains: tuple[int, ...]
    left_out: dict[int, str] = field(default_factory=dict)
    two_state: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    posterior_by_chain: Floats | None = None
    free_energy_by_chain: Floats | None = None
    sampler: str = "SGLD"

    def row(self, name: str) -> Estimate:
        """A response by its name, one of `NAMES`."""
        if name not in NAMES:
            raise PatterningError(f"{name!r} is no response of a solution: use one of {', '.join(NAMES)}")
        return getattr(self, name.replace("-", "_"))

    def along(self, s: Floats) -> dict[str, Estimate]:
        """Σ q_j s_j R_j of each response for interventions s (m, n): what ρ = 1 + α s changes by, per α; (m,) each.

        Errors are over chains, so that noise that samples share is in them. s need not be centred. Raises
        `PatterningError` where only means of chains were kept.
        """
        if self.posterior_by_chain is None or self.free_energy_by_chain is None:
            raise PatterningError("only means over chains were kept: the error of a sum over samples is not known")
        weights = (np.atleast_2d(s) * self.base_weights).T
        posterior = self.posterior_by_chain @ weights
        free_energy, energy = self.free_energy_by_chain @ weights, self.energy @ weights
        parts = (posterior, free_energy - energy, posterior + free_energy - energy, free_energy)
        return {name: over_chains(part) for name, part in zip(NAMES, parts, strict=True)}


def four_responses(
    response: SampledResponse,
    kernel: Kernel,
    *,
    observable: str | None = None,
    at_anchor: Floats | None = None,
    leave_out: Collection[int] = (),
    false_alarm: float = 0.01,
) -> FourResponses:
    """P, X, T and F of the solution around which `response` was sampled by `kernel`.

    `observable`: which row of χ is that of φ, L(w) - L(w*) over the same samples under their base weights, times nβ or
    not; found by its sums, unless stated. Chains in `leave_out` are not used. Each other chain that seems to hold two
    states is named in `FourResponses.two_state`, at a stated rate of false alarms (`two_state_chains`).

    Covariances have back what centring takes from correlated draws (`unbiased_covariances`): P and X nearly cancel in
    T, so that a P too small by 2 % can turn T around. A step size does the same: T is right where ελ/4 is small beside
    γ/λ, with λ = nβh + γ the curvatures. Errors are over chains, the independent units, and moderated
    (`moderated.py`); those of T are the scatter of each chain's P + X.

    The pathwise estimator keeps means alone. It needs the samples' losses at w* as `at_anchor` (n,), and its errors of
    X, F and T are upper bounds, sums of the errors of their parts; `responses_by_chain` does better where its chains
    are at hand. With its `phi="data"`, P is of L of all the data, and X of L of the probed samples. Raises
    `PatterningError` when `kernel` is another one, no observable is φ, or fewer than 2 chains are left.
    """
    chi = response.susceptibility
    if kernel.n_beta != chi.n_beta:
        raise PatterningError(f"the chains ran at n_beta {chi.n_beta:g}, not {kernel.n_beta:g}: pass their own kernel")
    if response.kernel is not None and response.kernel != kernel:
        raise PatterningError(f"the chains ran with {response.kernel}, not with {kernel}: pass their own kernel")
    if response.moments is None:
        check_means(response, observable)
        if leave_out:
            raise PatterningError("the pathwise estimator keeps no single chains: leave_out has nothing to act on")
        return _of_means(response, kernel, at_anchor, false_alarm)
    moments, q = response.moments, chi.base_weights
    name, scale = find_phi(moments, chi.observables, q, chi.n_beta, observable)
    kept = len(moments.count)
    numbers = [c for c in range(kept + len(response.excluded)) if c not in response.excluded]
    if unknown := sorted(set(leave_out) - set(numbers)):
        raise PatterningError(f"leave_out names chain {unknown[0]}, which is not among {numbers}")
    traces = _traces(response, name)
    flagged = _two_state(traces, numbers, false_alarm)
    used = [i for i, number in enumerate(numbers) if number not in leave_out]
    left_out = response.excluded | {c: flagged.get(c, "left out on request") for c in sorted(leave_out)}
    if leave_out and len(used) > 1:
        flagged = _two_state(
            {key: values[:, used] for key, values in traces.items()}, [numbers[i] for i in used], false_alarm
        )
    moments = moments.select(used)
    covariance = _covariances(moments, chi.observables.index(name)) * (chi.n_beta / scale)
    return responses_by_chain(
        -chi.n_beta * (covariance - (covariance @ q)[:, None]),
        moments.losses.sum(1) / moments.count.sum(1, keepdims=True),
        moments.at_anchor,
        q,
        kernel,
        chains=tuple(numbers[i] for i in used),
        left_out=left_out,
        two_state=flagged,
        notes=_notes(len(next(iter(traces.values())))),
    )


def responses_by_chain(
    posterior: Floats,
    rise: Floats,
    at_anchor: Floats,
    base_weights: Floats,
    kernel: Kernel,
    *,
    chains: Sequence[int] | None = None,
    left_out: dict[int, str] | None = None,
    two_state: dict[int, str] | None = None,
    notes: Sequence[str] = (),
) -> FourResponses:
    """The four responses from what each chain says: P, and the rise of losses ⟨ℓ_j⟩ - ℓ_j(w*), (chains, n) both.

    Of chains of the pathwise estimator, whose φ is L - L(w*): `posterior` is (nβ)² `Pathwise.chi`, and `rise` is
    `Pathwise.mean_losses` less `at_anchor`. Raises `PatterningError` for fewer than 2 chains and other shapes.
    """
    posterior, rise = as_floats("posterior", posterior, 2), as_floats("rise", rise, 2)
    at_anchor = as_floats("at_anchor", at_anchor, 1)
    if rise.shape != posterior.shape or at_anchor.shape != posterior.shape[1:]:
        raise PatterningError(
            f"P {posterior.shape}, rises {rise.shape} and losses at w* {at_anchor.shape} do not fit: (chains, n) "
            "twice, and (n,)"
        )
    count, q, n_beta = len(posterior), as_base_weights(base_weights, len(at_anchor)), kernel.n_beta
    if count < 2:
        raise PatterningError(f"{count} chain is left: an error needs at least 2")
    entropic, energy = n_beta * (rise - (rise @ q)[:, None]), n_beta * (at_anchor - at_anchor @ q)
    coefficient = n_beta * (rise @ q)
    return FourResponses(
        llc_posterior=over_chains(posterior),
        entropic=over_chains(entropic),
        llc_total=over_chains(posterior + entropic),
        free_energy=over_chains(entropic, energy),
        energy=energy,
        cosine=jackknife(lambda means: cosine(energy, energy + means[0], q), [entropic]),
        cosine_parts=jackknife(lambda means: cosine(energy, means[0], q), [entropic]),
        coefficient=float(coefficient.mean()),
        coefficient_error=float(coefficient.std(ddof=1) / np.sqrt(count)),
        base_weights=q,
        n_beta=n_beta,
        localization=kernel.localization,
        step_size=kernel.step_size,
        chains=tuple(range(count) if chains is None else chains),
        left_out=left_out or {},
        two_state=two_state or {},
        notes=tuple(notes),
        posterior_by_chain=posterior,
        free_energy_by_chain=entropic + energy,
        sampler=type(kernel).__name__,
    )


def _covariances(moments: Moments, row: int) -> Floats:
    """Cov(φ, ℓ_j) of each chain (chains, n), for the observable in this row."""
    only = slice(row, row + 1)
    single = replace(
        moments,
        phi=moments.phi[:, :, only],
        products=moments.products[:, :, only],
        phi_anchor=moments.phi_anchor[only],
    )
    share = moments.count / moments.count.sum(1, keepdims=True)
    return np.einsum("cb,cbn->cn", share, unbiased_covariances(single)[:, :, 0])


def _traces(response: SampledResponse, phi: str) -> dict[str, Floats]:
    """Traces (draws, chains) of φ and of the watched samples' losses."""
    watched = enumerate(response.sample_diagnostics)
    return {phi: response.traces[phi]} | {
        f"the loss of sample {j}": response.watched_traces[:, :, i] for i, j in watched
    }


def _two_state(traces: dict[str, Floats], numbers: Sequence[int], false_alarm: float) -> dict[int, str]:
    flagged = two_state_chains(traces, numbers=numbers, false_alarm=false_alarm)
    return {chain: str(evidence) for chain, evidence in flagged.items()}


def _notes(draws: int) -> list[str]:
    few = f"{draws} draws a chain are too few to tell whether one holds two states ({FEWEST_DRAWS} are needed)"
    return [few] if draws < FEWEST_DRAWS else []


def _of_means(response: SampledResponse, kernel: Kernel, at_anchor: Floats | None, false_alarm: float) -> FourResponses:
    """From χ of L - L(w*) and mean losses alone, as the pathwise estimator keeps them."""
    chi, n_beta = response.susceptibility, kernel.n_beta
    if at_anchor is None or np.shape(at_anchor) != chi.mean_losses.shape:
        raise PatterningError(
            f"the {response.estimator} estimator keeps no losses at w*: pass those of its {len(chi.mean_losses)} "
            "samples as at_anchor"
        )
    q, name = chi.base_weights, COMPONENT_LOSS
    trace = response.traces[name]
    start = as_floats("at_anchor", at_anchor, 1)
    rise, tolerance = float((chi.mean_losses - start) @ q), 1e-5 * float(np.abs(start) @ q) + 1e-9
    if not abs(rise - response.rise) <= tolerance + 1e-3 * abs(response.rise):
        raise PatterningError(
            f"at_anchor are not the losses at this w*: with them E[L] - L(w*) is {rise:.4g} nats, and the chains saw "
            f"{response.rise:.4g}"
        )
    energy = n_beta * (start - start @ q)
    place = chi.observables.index(name)
    posterior = Estimate(
        n_beta**2 * chi.row(name), n_beta**2 * chi.standard_error[place], np.full(len(q), float(chi.degrees_of_freedom))
    )
    chains = trace.shape[1]
    mean_error = float(trace.mean(0).std(ddof=1) / np.sqrt(chains))
    freedom = np.full(len(q), chains - 1.0)
    free_energy = Estimate(
        n_beta * (chi.mean_losses - chi.mean_losses @ q), n_beta * (chi.mean_losses_error + mean_error), freedom
    )
    entropic = Estimate(free_energy.values - energy, free_energy.standard_error, freedom)
    numbers = [c for c in range(chains + len(response.excluded)) if c not in response.excluded]
    unknown = float("nan")
    return FourResponses(
        llc_posterior=posterior,
        entropic=entropic,
        llc_total=Estimate(
            posterior.values + entropic.values,
            posterior.standard_error + entropic.standard_error,
            np.minimum(posterior.degrees_of_freedom, freedom),
        ),
        free_energy=free_energy,
        energy=energy,
        cosine=Cosine(cosine(energy, free_energy.values, q), unknown),
        cosine_parts=Cosine(cosine(energy, entropic.values, q), unknown),
        coefficient=n_beta * response.rise,
        coefficient_error=n_beta * mean_error,
        base_weights=q,
        n_beta=n_beta,
        localization=kernel.localization,
        step_size=kernel.step_size,
        chains=tuple(numbers),
        left_out=response.excluded,
        two_state=_two_state({name: trace}, numbers, false_alarm),
        notes=("errors of entropic, llc-total and free-energy are upper bounds", *_notes(len(trace))),
        sampler=type(kernel).__name__,
    )
