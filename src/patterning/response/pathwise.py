r"""χ by differentiating ⟨φ⟩ through the sampling chain itself: the adjoint of SGLD (SPEC §4, estimator `pathwise`).

Re-weighting the data by h (ℓ_i - L) moves every step of a chain by -(ε/2) nβ h ∇(ℓ_i - L)(w_k). Back through the steps,

.. math:: \lambda_k = \big(I - \tfrac{\epsilon}{2}(n\beta H_B(w_k) + \gamma)\big)^T \lambda_{k+1}
          + \tfrac{1}{D}\nabla\phi(w_k)\,[k\ \text{is a draw}]
.. math:: \chi_i = \frac{1}{n\beta}\frac{d\langle\phi\rangle}{dh}
          = -\tfrac{\epsilon}{2}\sum_k \lambda_{k+1}\cdot\nabla(\ell_i - L)(w_k)

It is the response of the chain as it is run, step-size effects included, with exact Hessian-vector products and forward
derivatives. It has little variance while steps contract (γ above the most negative nβ curvature), and blows up
otherwise: that is recorded as `expansion`.

φ is the loss of the probed samples, read at every draw; or, with `phi="data"`, L of all the data (SPEC §3). That is
read off the chain's own minibatches: w_k is independent of the minibatch B_k that moves it on, so ∇L_B(w_k), which$
hand, is unbiased. Its noise is cut by the control variate of SVRG (Johnson & Zhang 2013),

.. math:: \nabla\phi(w_k) \approx \nabla L_{B_k}(w_k) - \nabla L_{B_k}(w^*) + \nabla L(w^*)
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.errors import PatterningError
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior import sgld
from patterning.posterior.chains import ChainConfig, gaussian, loss_and_gradient, minibatches, pieces
from patterning.posterior.diagnostics import diagnose
from patterning.response.moderated import moderate
from patterning.response.sample import SampledResponse
from patterning.response.susceptibility import Susceptibility
from patterning.rng import Stream, generator

Floats = NDArray[np.float64]
PhiOf = Literal["probes", "data"]
"""Whose mean loss φ of a component is: the probed samples', or that of all the task's rows."""

MOST_PULL = 0.65
"""Most that the localization alone may take off λ, (ε/2) γ a step, over the steps that one derivative of the probe
stands for: at twice as much the noise of χ grew by half or more (docs/results/response.md)."""


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
    *,
    phi: PhiOf = "probes",
    loss_band: float = math.inf,
    first_chain: int = 0,
) -> Pathwise:
    """Run the chains, keep their positions, and go back through them. Memory: steps × chains × P_C floats.

    φ is the mean loss of the probed samples under `weights` q (n,), less its value at w*; or that of all the data
    (`phi`): then the mean over every step after burn-in is differentiated, and `Pathwise.phi` and `mean_losses` still
    show the probes, where their derivative is taken.
    Derivatives of the probe are taken once for a few steps, at one of them, drawn at random: χ of a chain is unbiased
    for the chain's derivative. What the choice of a step does at w* is known, and taken out.
    """
    q = torch.from_numpy(weights).to(free.anchor.device)
    cumulative = np.cumsum(free.base_weights.numpy())
    positions, diverged = _forward(free, kernel, chains, cumulative, loss_band, first_chain)
    steps, half, every, own = len(positions) - 1, kernel.step_size / 2, chains.steps_between_draws, chains.chains
    adjoint, owed = torch.zeros_like(positions[0]), torch.zeros_like(positions[0])  # `owed`: Σ λ less what stood for it
    chi = torch.zeros(len(adjoint), len(weights), dtype=torch.float64, device=adjoint.device)
    sums, seen = torch.zeros_like(chi), list[Tensor]()
    centre = mean_gradient(free) if phi == "data" else None
    bound, expansion = torch.zeros_like(adjoint[:, 0]), torch.zeros_like(adjoint[:, 0])
    for piece, phase in _pieces(chains, kernel, steps, first_chain):
        adjoints = []
        for k in piece:
            drawn = k > chains.burn_in and (k - chains.burn_in) % every == 0
            if centre is None and drawn:
                values, mean, slope = probe.slope(positions[k], q)
                adjoint, bound = adjoint + slope / chains.draws, bound + slope.norm(dim=1) / chains.draws
                seen.append(mean)
                sums += values
            adjoints.append(adjoint)
            owed += adjoint
            if bool((bound > 0).all()):  # φ has been read
                expansion = torch.maximum(expansion, adjoint.norm(dim=1) / bound)
            index = minibatches(cumulative, chains, first_chain, k - 1).to(adjoint.device)
            gradient, curved = _curvature(free, positions[k - 1], index, adjoint)
            adjoint = adjoint - half * (kernel.n_beta * curved + kernel.localization * adjoint)
            bound = bound * (1 - half * kernel.localization)
            if centre is not None and k > chains.burn_in:  # φ at w_{k-1}
                slope = (gradient - _anchor_gradient(free, index, chains) + centre) / (steps - chains.burn_in)
                adjoint, bound = adjoint + slope, bound + slope.norm(dim=1)
        at, along = _stand_in(positions[piece[-1] - 1 : piece[0]].flip(0), torch.stack(adjoints), phase)
        values, tangent = (part.detach().double() for part in probe.along(at, along))
        chi -= half * (tangent - (tangent * q).sum(1, keepdim=True))
        owed -= along
        last = piece[-1]
        if centre is not None and last > chains.burn_in and (last - 1 - chains.burn_in) % every == 0:
            seen.append((values * q).sum(1))
            sums += values
    tangent = probe.along(free.init(range(len(owed))), owed)[1].detach().double()
    chi -= half * (tangent - (tangent * q).sum(1, keepdim=True))
    start = float(probe.at_anchor.double() @ q)
    by_chain, means = (part.unflatten(0, (-1, own)).mean(0).cpu().numpy() for part in (chi, sums / len(seen)))
    return Pathwise(
        chi=by_chain,
        phi=torch.stack(seen[::-1])[:, :own].cpu().numpy() - start,
        mean_losses=means,
        expansion=expansion.double().unflatten(0, (-1, own)).amax(0).cpu().numpy(),
        diverged=diverged,
    )


def _pieces(chains: ChainConfig, kernel: sgld.SGLD, steps: int, first_chain: int) -> Iterator[tuple[range, Floats]]:
    """The steps k from the last to the first, in pieces that share a derivative, and a number (chains,) in [0, 1) each.

    No piece spans a draw. The numbers say at which step of the piece a chain takes the derivative: uniform, evenly
    spread over the pieces (a golden-ratio sequence from a random start), independent between chains.
    """
    few, every = steps_at_once(kernel, chains.steps_between_draws), chains.steps_between_draws
    start = [generator(chains.seed, Stream.PHASE, first_chain + c).random() for c in range(chains.chains)]
    last, number = steps, 0
    while last > 0:
        ends = last - ((last - 1 - chains.burn_in) % every)  # the first step after the draw before
        first = max(ends, last - few + 1, 1)
        yield range(last, first - 1, -1), (np.array(start) + number * (math.sqrt(5) - 1) / 2) % 1
        last, number = first - 1, number + 1


def _stand_in(positions: Tensor, adjoints: Tensor, phase: Floats) -> tuple[Tensor, Tensor]:
    """One of the steps of a piece for each replica: its position, and λ over its chance to be chosen, both (r, P_C).

    `positions`, `adjoints` (steps, r, P_C). A step is chosen in proportion to the size of its λ; a mirror image takes
    the step of its chain, `phase` (chains,).
    """
    size = adjoints.norm(dim=2).unflatten(1, (-1, len(phase))).sum(1)  # (steps, chains)
    size = torch.where(size.sum(0) > 0, size, torch.ones_like(size))
    share = size / size.sum(0)
    chosen = (share.cumsum(0) <= torch.from_numpy(phase).to(share)).sum(0).clamp(max=len(share) - 1)
    chance = share.gather(0, chosen[None])[0]
    times = positions.shape[1] // len(phase)
    chosen, replica = chosen.repeat(times), torch.arange(positions.shape[1], device=chosen.device)
    return positions[chosen, replica], adjoints[chosen, replica] / chance.repeat(times)[:, None]


def steps_at_once(kernel: sgld.SGLD, every: int) -> int:
    """For how many steps one derivative of the probe stands, of the `every` from draw to draw."""
    return math.ceil(every / math.ceil(every * kernel.step_size / 2 * kernel.localization / MOST_PULL))


def _forward(
    free: Restricted, kernel: sgld.SGLD, chains: ChainConfig, cumulative: Floats, loss_band: float, first_chain: int
) -> tuple[Tensor, dict[int, str]]:
    """Every position (steps + 1, replicas, P_C) of the chains, and those that diverged: chain number → why."""
    steps, device = chains.burn_in + chains.draws * chains.steps_between_draws, free.anchor.device
    positions = torch.empty(steps + 1, chains.replicas, free.num_parameters, device=device, dtype=free.anchor.dtype)
    state = sgld.init(free.anchor, chains.replicas)
    positions[0] = state.position
    losses = torch.empty(steps, chains.replicas, device=device)
    for step in range(steps):
        index = minibatches(cumulative, chains, first_chain, step).to(device)
        losses[step], gradient = loss_and_gradient(free, state.position, index)
        noise = gaussian(state.position[: chains.chains], chains.seed, first_chain, step)
        state = sgld.update(state, gradient, torch.cat([noise, -noise]) if chains.antithetic else noise, kernel)
        positions[step + 1] = state.position
    diverged = {}
    for r in range(chains.replicas):
        worst, chain = float(losses[chains.burn_in :, r].mean()), first_chain + r % chains.chains
        if not (math.isfinite(worst) and worst <= loss_band and bool(positions[-1, r].isfinite().all())):
            name = f"chain {chain}" if r < chains.chains else f"mirror image of chain {chain}"
            diverged.setdefault(chain, f"{name}: mean minibatch loss {worst:.4g} over its draws")
    return positions, diverged


def _anchor_gradient(free: Restricted, index: Tensor, chains: ChainConfig) -> Tensor:
    """∇L_B(w*) of rows `index` (r, b), (r, P_C), or (1, P_C) where all chains have the same rows."""
    rows = index[:1] if chains.matched else index
    return loss_and_gradient(free, free.anchor.expand(len(rows), -1), rows)[1]


def mean_gradient(free: Restricted) -> Tensor:
    """∇L(w*) (P_C,) over all the data in the free coordinates."""
    q, total = free.base_weights.to(free.anchor), torch.zeros_like(free.anchor)
    flat = free.anchor[None].detach().requires_grad_()
    for part in torch.arange(len(q), device=q.device).split(free.cut(1)):
        total += torch.autograd.grad((free.losses(flat, part[None])[0] * q[part]).sum(), flat)[0][0]
    return total


def _curvature(free: Restricted, at: Tensor, index: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the mean loss of rows `index` (r, b) at `at`, and H_B λ, its curvature along `vector`: (r, P_C)."""
    slope, bend = torch.zeros_like(at), torch.zeros_like(at)
    for replicas, part in pieces(free, index):
        flat = at[replicas].detach().requires_grad_()
        loss = free.losses(flat, part).sum() / index.shape[1]
        (gradient,) = torch.autograd.grad(loss, flat, create_graph=True)
        slope[replicas] += gradient.detach()
        bend[replicas] += torch.autograd.grad(gradient, flat, vector[replicas])[0]
    return slope, bend


def summarise_pathwise(found: Pathwise, name: str, weights: Floats, n_beta: float) -> SampledResponse:
    """χ with moderated errors over chains, the independent units; diverged chains are left out by name.

    `found` holds the chains in order, from number 0. Raises `PatterningError` when fewer than 2 are left.
    """
    kept = [c for c in range(len(found.chi)) if c not in found.diverged]
    if len(kept) < 2:
        raise PatterningError(
            f"{len(found.diverged)} of {len(found.chi)} chains diverged and χ needs 2 "
            f"({'; '.join(found.diverged.values())}): lower step_size or raise localization"
        )
    chi, means = found.chi[kept], found.mean_losses[kept]
    variance, freedom = moderate(chi.var(0, ddof=1), len(kept) - 1, np.abs(chi.mean(0)))
    response = Susceptibility(
        observables=(name,),
        n_beta=n_beta,
        base_weights=weights,
        chi=chi.mean(0)[None],
        standard_error=np.sqrt(variance / len(kept))[None],
        degrees_of_freedom=freedom,
        halves=np.stack([chi[0::2].mean(0)[None], chi[1::2].mean(0)[None]]),
        mean_losses=means.mean(0),
        mean_losses_error=means.std(0, ddof=1) / math.sqrt(len(kept)),
    )
    phi = found.phi[:, kept]
    return SampledResponse(
        susceptibility=response,
        traces={name: phi},
        diagnostics={name: diagnose(phi)},
        sample_diagnostics={},
        watched_traces=np.zeros((*phi.shape, 0)),
        excluded=found.diverged,
        rise=float(phi.mean()),
        estimator="pathwise",
        note=f"adjoint expansion {found.expansion[kept].max():.2g}",
    )
