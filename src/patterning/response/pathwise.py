r"""χ by differentiating ⟨φ⟩ through the sampling chain itself: the adjoint of SGLD (estimator `pathwise`).

Re-weighting the data by h (ℓ_i - L) moves every step of a chain by -(ε/2) nβ h ∇(ℓ_i - L)(w_k). Back through the steps,

.. math:: \lambda_k = \big(I - \tfrac{\epsilon}{2}(n\beta H_B(w_k) + \gamma)\big)^T \lambda_{k+1}
          + \tfrac{1}{D}\nabla\phi(w_k)\,[k\ \text{is a draw}]
.. math:: \chi_i = \frac{1}{n\beta}\frac{d\langle\phi\rangle}{dh}
          = -\tfrac{\epsilon}{2}\sum_k \lambda_{k+1}\cdot\nabla(\ell_i - L)(w_k)

It is the response of the chain as it is run, step-size effects included, with exact Hessian-vector products and forward
derivatives. It has little variance while steps contract (γ above the most negative nβ curvature), and blows up
otherwise: that is recorded as `expansion`.

φ is the mean loss of the probed samples, or of other rows, or any differentiable function of the model, read at every
draw; or, with `DATA`, L of all the data. That is read off the chain's own minibatches: w_k is independent of the
minibatch B_k that moves it on, so ∇L_B(w_k), which the way back computes in any case, is unbiased for ∇L(w_k). Its
noise is cut by the control variate of SVRG (Johnson & Zhang 2013),

.. math:: \nabla\phi(w_k) \approx \nabla L_{B_k}(w_k) - \nabla L_{B_k}(w^*) + \nabla L(w^*)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.progress import portion, report_progress
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior import sgld
from patterning.posterior.chains import ChainConfig, StepNumbers
from patterning.posterior.diagnostics import diagnose
from patterning.response.adjoint import (
    Floats,
    ProbeLoss,
    Reading,
    anchor_gradient,
    curvature,
    forward,
    mean_gradient,
    parts_of_the_way,
    stand_in,
)
from patterning.response.moderated import moderate
from patterning.response.sample import COMPONENT_LOSS, SampledResponse
from patterning.response.susceptibility import Susceptibility

FORTH = 0.2
"""About the share of the time that the chains take, before the way back."""
DATA = "data"
"""In place of a `Reading`: φ is L of all the data, read off the minibatches."""


@dataclass(frozen=True)
class Pathwise:
    """`chi` (chains, n) by chain; `phi` (draws, chains); `mean_losses` (chains, n) over the draws.

    Of antithetic chains `chi` and `mean_losses` are means of a chain and its mirror image; `phi` is that of the chain.
    `expansion` (chains,): the largest ‖λ_k‖ in units of λ at zero curvature: at most 1 where the loss is
    convex, and huge where steps do not contract and χ is noise. `diverged`: chain number → why.
    """

    chi: Floats
    phi: Floats
    mean_losses: Floats
    expansion: Floats
    diverged: dict[int, str]


def join_pathwise(parts: Sequence[Pathwise]) -> Pathwise:
    """The chains of several calls."""
    return Pathwise(
        chi=np.concatenate([part.chi for part in parts]),
        phi=np.concatenate([part.phi for part in parts], axis=1),
        mean_losses=np.concatenate([part.mean_losses for part in parts]),
        expansion=np.concatenate([part.expansion for part in parts]),
        diverged={chain: why for part in parts for chain, why in part.diverged.items()},
    )


def pathwise_chains(
    free: Restricted,
    probe: Probe,
    weights: Floats,
    kernel: sgld.SGLD,
    chains: ChainConfig,
    readings: Mapping[str, Reading | str] | None = None,
    *,
    loss_band: float = math.inf,
    first_chain: int = 0,
) -> dict[str, Pathwise]:
    """Run the chains, keep their positions, and go back through them once for each φ in `readings` (name → φ).

    Without `readings`, φ is the mean loss of the probed samples. χ has a column for each of the probe's samples, of
    `weights` q (n,). With `DATA` the mean over every step after burn-in is differentiated, and `Pathwise.phi` and
    `mean_losses` show the probes, where their derivative is taken.
    Derivatives of the probe are taken once for a few steps, at one of them, drawn at random: χ of a chain is unbiased
    for the chain's derivative. What the choice of a step does at w* is known, and taken out. Memory: steps × chains ×
    P_C floats. Raises `PatterningError` when fewer than 2 chains stay in `loss_band`.
    """
    numbers = StepNumbers(free.base_weights, chains, first_chain, free.anchor)
    with portion(0.0, FORTH):
        positions, diverged = forward(free, kernel, chains, numbers, loss_band, first_chain)
    if len(diverged) == chains.chains:
        nothing = np.zeros((chains.chains, len(weights)))
        empty = Pathwise(nothing, np.zeros((chains.draws, chains.chains)), nothing, nothing[:, 0], diverged)
        return dict.fromkeys(readings or [COMPONENT_LOSS], empty)
    q = torch.from_numpy(weights).to(free.anchor.device)
    phis: Mapping[str, Reading | str] = {COMPONENT_LOSS: ProbeLoss(probe, q)} if readings is None else readings
    back = _WayBack(free, probe, q, kernel, chains, numbers)
    result, share = {}, (1 - FORTH) / len(phis)
    for i, (name, reading) in enumerate(phis.items()):
        with portion(FORTH + i * share, FORTH + (i + 1) * share):
            result[name] = back.run(positions, reading, first_chain, diverged)
    return result


@dataclass(frozen=True)
class _WayBack:
    """What the way back through the chains needs, whatever φ is."""

    free: Restricted
    probe: Probe
    q: Tensor
    kernel: sgld.SGLD
    chains: ChainConfig
    numbers: StepNumbers

    def run(self, positions: Tensor, reading: Reading | str, first_chain: int, diverged: dict[int, str]) -> Pathwise:
        """χ of one φ from the positions (steps + 1, r, P_C)."""
        own, probe = self.chains.chains, self.probe
        chi, means, expansion, phi = self.gather(positions, reading, first_chain)
        start = float(probe.at_anchor.double() @ self.q) if isinstance(reading, str) else reading.at_anchor
        by_chain, mean_losses = (part.unflatten(0, (-1, own)).mean(0).cpu().numpy() for part in (chi, means))
        spread = expansion.double().unflatten(0, (-1, own)).amax(0).cpu().numpy()
        for chain in range(own):
            if not np.isfinite(by_chain[chain]).all():
                diverged = diverged | {first_chain + chain: f"chain {first_chain + chain}: its adjoint overflowed"}
        return Pathwise(
            chi=by_chain,
            phi=phi[:, :own].cpu().numpy() - start,
            mean_losses=mean_losses,
            expansion=spread,
            diverged=diverged,
        )

    def gather(
        self, positions: Tensor, reading: Reading | str, first_chain: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """χ and mean losses of each replica (r, n), its expansion (r,), and φ at the draws (draws, r).

        The host reads nothing back on the way.
        """
        free, probe, kernel, chains, q = self.free, self.probe, self.kernel, self.chains, self.q
        steps, half, every = len(positions) - 1, kernel.step_size / 2, chains.steps_between_draws
        adjoint = torch.zeros_like(positions[0])
        owed = torch.zeros_like(adjoint)  # Σ λ less what stood for it
        chi = torch.zeros(len(adjoint), len(q), dtype=torch.float64, device=adjoint.device)
        sums, seen = torch.zeros_like(chi), list[Tensor]()
        centre = mean_gradient(free) if isinstance(reading, str) else None
        bound, expansion = torch.zeros_like(adjoint[:, 0]), torch.zeros_like(adjoint[:, 0])
        summed, read_with_phi = 0, isinstance(reading, ProbeLoss) and reading.same
        parts = list(parts_of_the_way(chains, kernel, steps, first_chain))
        phases = torch.from_numpy(np.stack([phase for _, phase in parts])).to(adjoint.device)
        for (piece, _), phase in zip(parts, phases, strict=True):
            adjoints = []
            for k in piece:
                if not isinstance(reading, str) and k > chains.burn_in and (k - chains.burn_in) % every == 0:
                    values, phi, slope = reading(positions[k])
                    adjoint, bound = adjoint + slope / chains.draws, bound + slope.norm(dim=1) / chains.draws
                    seen.append(phi)
                    if values is not None:
                        sums, summed = sums + values, summed + 1
                adjoints.append(adjoint)
                owed += adjoint
                read = (bound > 0).all()  # φ has been, in every replica
                expansion = torch.where(read, torch.maximum(expansion, adjoint.norm(dim=1) / bound), expansion)
                index = self.numbers.rows(k - 1)
                gradient, curved = curvature(free, positions[k - 1], index, adjoint)
                adjoint = adjoint - half * (kernel.n_beta * curved + kernel.localization * adjoint)
                bound = bound * (1 - half * kernel.localization)
                if centre is not None and k > chains.burn_in:  # φ at w_{k-1}
                    slope = (gradient - anchor_gradient(free, index, chains) + centre) / (steps - chains.burn_in)
                    adjoint, bound = adjoint + slope, bound + slope.norm(dim=1)
            at, along = stand_in(positions[piece[-1] - 1 : piece[0]].flip(0), torch.stack(adjoints), phase)
            losses, tangent = (part.detach().double() for part in probe.along(at, along))
            chi -= half * (tangent - (tangent * q).sum(1, keepdim=True))
            owed -= along
            last = piece[-1]
            report_progress(1 - (last - 1) / steps)
            if not read_with_phi and last > chains.burn_in and (last - 1 - chains.burn_in) % every == 0:
                sums, summed = sums + losses, summed + 1
                if centre is not None:
                    seen.append((losses * q).sum(1))
        tangent = probe.along(free.init(range(len(owed))), owed)[1].detach().double()
        chi -= half * (tangent - (tangent * q).sum(1, keepdim=True))
        return chi, sums / summed, expansion, torch.stack(seen[::-1])


def summarise_pathwise(
    parts: Mapping[str, Pathwise], weights: Floats, n_beta: float, at_anchor: Floats
) -> SampledResponse:
    """χ of every φ (name → its chains) with moderated errors over chains, the independent units.

    `weights` q and `at_anchor` ℓ(w*), (n,), are those of the samples that χ has columns for. Diverged
    chains are left out by name. The parts hold the chains in order, from number 0. Raises `PatterningError`
    when fewer than 2 are left.
    """
    count = len(next(iter(parts.values())).chi)
    diverged = {chain: why for part in parts.values() for chain, why in part.diverged.items()}
    kept = [c for c in range(count) if c not in diverged]
    if len(kept) < 2:
        raise PatterningError(
            f"{len(diverged)} of {count} chains diverged and χ needs 2 ({'; '.join(list(diverged.values())[:3])})"
        )
    chi = np.stack([part.chi[kept] for part in parts.values()])  # (k, chains, n)
    means = next(iter(parts.values())).mean_losses[kept]
    moderated = [moderate(row.var(0, ddof=1), len(kept) - 1, np.abs(row.mean(0))) for row in chi]
    response = Susceptibility(
        observables=tuple(parts),
        n_beta=n_beta,
        base_weights=weights,
        chi=chi.mean(1),
        standard_error=np.sqrt(np.stack([variance for variance, _ in moderated]) / len(kept)),
        degrees_of_freedom=min(freedom for _, freedom in moderated),
        halves=np.stack([chi[:, 0::2].mean(1), chi[:, 1::2].mean(1)]),
        mean_losses=means.mean(0),
        mean_losses_error=means.std(0, ddof=1) / math.sqrt(len(kept)),
        by_chain=chi.transpose(1, 0, 2),
    )
    traces = {name: part.phi[:, kept] for name, part in parts.items()}
    expansion = max(float(part.expansion[kept].max()) for part in parts.values())
    return SampledResponse(
        susceptibility=response,
        traces=traces,
        diagnostics={name: diagnose(values) for name, values in traces.items()},
        sample_diagnostics={},
        watched_traces=np.zeros((*next(iter(traces.values())).shape, 0)),
        excluded=diverged,
        rise=float((response.mean_losses - at_anchor) @ weights),
        estimator="pathwise",
        note=f"adjoint expansion {expansion:.2g}",
        expansion=expansion,
    )
