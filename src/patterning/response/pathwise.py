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
from collections.abc import Callable, Mapping, Sequence
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
from patterning.response.adjoint import Floats, ProbeLoss, Reading, positions_of
from patterning.response.blocks import Blocks
from patterning.response.moderated import moderate
from patterning.response.sample import COMPONENT_LOSS, SampledResponse
from patterning.response.susceptibility import Susceptibility
from patterning.response.way_back import WayBack

FORTH = 0.2
"""About the share of the time that the chains take, before the way back."""
ROUNDING = 1e-5
"""Of χ of single chains, in float32: what less is left of after a chain and its mirror image are averaged."""
SEEN = 3
"""Chains, and times of each, whose positions are shown to `on_way`."""


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


def seen_of(positions: Tensor | Blocks, steps: int) -> Tensor:
    """Some of the positions where chains were (k, P_C): those of `SEEN` chains at as many times."""
    times = torch.linspace(0, steps, SEEN + 1).round().long().tolist()[1:]
    return torch.cat([positions[time][:SEEN] for time in times])


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
    on_way: Callable[[Tensor], None] | None = None,
) -> dict[str, Pathwise]:
    """Run the chains, keep their positions, and go back through them once for each φ in `readings` (name → φ).

    Without `readings`, φ is the mean loss of the probed samples. χ has a column for each of the probe's samples, of
    `weights` q (n,). With `DATA` the mean over every step after burn-in is differentiated, and `Pathwise.phi` and
    `mean_losses` show the probes, where their derivative is taken.
    Derivatives of the probe are taken once for a few steps, at one of them, drawn at random: χ of a chain is unbiased
    for the chain's derivative. What the choice of a step does at w* is known, and taken out. `on_way` hears some of the
    positions (k, P_C) where chains were, before the way back, unless one has left. Memory: steps × chains × P_C
    floats. Raises `PatterningError` when fewer than 2 chains stay in `loss_band`.
    """
    numbers = StepNumbers(free.base_weights, chains, first_chain, free.anchor)
    with portion(0.0, FORTH):
        positions, diverged = positions_of(free, kernel, chains, numbers, loss_band, first_chain)
    if len(diverged) == chains.chains:
        nothing = np.zeros((chains.chains, len(weights)))
        empty = Pathwise(nothing, np.zeros((chains.draws, chains.chains)), nothing, nothing[:, 0], diverged)
        return dict.fromkeys(readings or [COMPONENT_LOSS], empty)
    if on_way is not None and not diverged:
        on_way(seen_of(positions, chains.steps))
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
        chi, means, expansion, phi = self.gather(positions, reading, first_chain)
        start = float(self.probe.at_anchor.double() @ self.q) if isinstance(reading, str) else reading.at_anchor
        return pathwise_of(chi, means, expansion, phi - start, first_chain, self.chains.chains, diverged)

    def gather(
        self, positions: Tensor, reading: Reading | str, first_chain: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """χ and mean losses of each replica (r, n), its expansion (r,), and φ at the draws (draws, r)."""
        probe, q, half = self.probe, self.q, self.kernel.step_size / 2
        way = WayBack(self.free, self.kernel, self.chains, self.numbers, positions, reading, first_chain)
        chi = torch.zeros(positions.shape[1], len(q), dtype=torch.float64, device=positions.device)
        sums, phi = torch.zeros_like(chi), list[Tensor]()
        for derivative in way:
            losses, tangent = (part.detach().double() for part in probe.along(derivative.at, derivative.along))
            chi -= half * (tangent - (tangent * q).sum(1, keepdim=True))
            if derivative.at_draw:
                sums += losses
                phi.append((losses * q).sum(1))
            report_progress(1 - derivative.left)
        seen = phi if isinstance(reading, str) else way.phi
        means = (sums if way.losses is None else way.losses) / self.chains.draws
        return chi, means, way.expansion, torch.stack(seen[::-1])


def pathwise_of(
    chi: Tensor, means: Tensor, expansion: Tensor, phi: Tensor, first_chain: int, chains: int, diverged: dict[int, str]
) -> Pathwise:
    """From χ and mean losses of every replica (r, n), its expansion (r,), and φ - φ(w*) at the draws (draws, r).

    χ of a chain and of its mirror image may be opposite, as for the loss of a parameter at the minimum of a quadratic.
    What their rounding leaves is 0: all chains round alike, so that no error over chains would show it.
    """
    by_chain, mean_losses = (part.unflatten(0, (-1, chains)).mean(0).cpu().numpy() for part in (chi, means))
    if (by_chain**2).mean() <= ROUNDING**2 * float(chi.square().mean()):
        by_chain = np.zeros_like(by_chain)
    spread = expansion.double().unflatten(0, (-1, chains)).amax(0).cpu().numpy()
    for chain in range(chains):
        if not np.isfinite(by_chain[chain]).all():
            diverged = diverged | {first_chain + chain: f"chain {first_chain + chain}: its adjoint overflowed"}
    return Pathwise(by_chain, phi[:, :chains].cpu().numpy(), mean_losses, spread, diverged)


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
