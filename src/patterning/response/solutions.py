r"""Which of several solutions training ends in, from a table of their free energies.

Noisy training that moves between solutions ends in solution B with probability ∝ exp(-F_B). To first order in the
weights

.. math:: F_B(\rho) = F_B(1) + n\beta \sum_j q_j (\rho_j / \bar\rho - 1)\, E_B[\ell_j], \; \bar\rho = \sum_j q_j \rho_j

where E_B is the mean over the localized posterior around B. E_B[ℓ_j] is the loss at the minimum w_B (the energy) and
what the posterior adds to it (the entropic part). The derivative of F is exact; see `docs/concepts.md`, *free-energy
gap*.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import as_floats, check_level
from patterning.core.errors import PatterningError, check_whole
from patterning.core.plain import Document
from patterning.core.rng import Stream, generator
from patterning.response.base_weights import as_base_weights

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def gap_direction(mean_losses: Floats, shares: Floats, target: int, base_weights: Floats) -> Floats:
    """The free-energy gap s (n,) for solution `target`: data that lowers its free energy against its rivals'.

    `mean_losses` (B, n) are E_B[ℓ_j] in nats, `shares` (B,) the shares under base weights. s_j is the mean of E_B[ℓ_j]
    over the rivals, weighted by their shares, less E_target[ℓ_j]; then centred under q and scaled to max |s| = 1. With
    these weights it is the gradient of log(share of the target), up to its length.

    Raises `PatterningError` where the target has no rival, or where all solutions have the same losses.
    """
    mean_losses, shares = as_floats("mean losses", mean_losses, 2), as_floats("shares", shares, 1)
    base_weights = as_base_weights(base_weights, mean_losses.shape[1])
    check_whole("target", target, 0, len(mean_losses) - 1)
    if len(shares) != len(mean_losses) or not (np.isfinite(shares).all() and (shares >= 0).all()):
        raise PatterningError(f"shares must be {len(mean_losses)} finite numbers >= 0, one for each solution")
    if not np.isfinite(mean_losses).all():
        raise PatterningError("mean losses hold NaN or infinite entries: a chain diverged")
    rivals = shares.copy()
    rivals[target] = 0
    if not rivals.sum() > 0:
        raise PatterningError("the target has no rival with a positive share: there is nothing to steer away from")
    s = (rivals[:, None] * mean_losses).sum(axis=0) / rivals.sum() - mean_losses[target]
    s = s - (base_weights * s).sum()
    largest = np.abs(s).max()
    if not largest > 1e-12:
        raise PatterningError(
            "the target and its rivals have the same losses on every sample: no weights tell them apart"
        )
    return s / largest


def gap_parts(at_minimum: Floats, mean_losses: Floats, shares: Floats, target: int, base_weights: Floats) -> Document:
    """The gap `s` (n,), its `energy` and `entropic` parts (n,), each scaled to max 1, and the `cosines` of the three.

    The energy part is the gap of the losses `at_minimum` (B, n), the entropic part that of what the chains add to them.
    """
    gap = gap_direction(mean_losses, shares, target, base_weights)
    energy = gap_direction(at_minimum, shares, target, base_weights)
    entropic = gap_direction(mean_losses - at_minimum, shares, target, base_weights)
    pairs = {"gap_energy": (gap, energy), "gap_entropic": (gap, entropic), "energy_entropic": (energy, entropic)}
    cosines = {name: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for name, (a, b) in pairs.items()}
    return {"s": gap, "energy": energy, "entropic": entropic, "cosines": cosines}


def predict_shares(shares: Floats, mean_losses: Floats, rho: Floats, base_weights: Floats, n_beta: float) -> Floats:
    """Shares (..., B) of the solutions under relative weights `rho` (n,), from `shares` (..., B) under base weights.

    `mean_losses` (..., B, n). First order in ρ; exact in the softmax over solutions.
    """
    rho = as_floats("the weights", rho, 1)
    base_weights = as_base_weights(base_weights, len(rho))
    if not (np.isfinite(rho).all() and (rho >= 0).all() and base_weights @ rho > 0):
        raise PatterningError("the weights must be finite and >= 0, not all 0")
    change = rho / (base_weights @ rho) - 1
    log_share = np.log(shares) - n_beta * (mean_losses @ (base_weights * change))
    weight = np.exp(log_share - log_share.max(axis=-1, keepdims=True))
    return weight / weight.sum(axis=-1, keepdims=True)


def prediction_intervals(
    pilot_classes: Sequence[Ints],
    counts: Ints,
    chain_means: Sequence[Floats],
    rhos: Floats,
    base_weights: Floats,
    n_beta: float,
    *,
    level: float = 0.95,
    resamples: int = 1000,
) -> tuple[Floats, Floats]:
    """Limits (arms, B) of `predict_shares` for each row of `rhos`, by what its inputs do not know.

    Bootstrap over the chains of each solution (`chain_means[B]` is (chains, n)) and over pilot runs: solutions are
    alike by symmetry within each of `pilot_classes`, and `counts` (B,) pilot runs ended in each. Deterministic.
    """
    check_level(level)
    rng = generator(0, Stream.BOOTSTRAP)
    means = np.empty((resamples, len(chain_means), rhos.shape[1]))
    for b, chains in enumerate(chain_means):
        means[:, b] = chains[rng.integers(0, len(chains), size=(resamples, len(chains)))].mean(axis=1)
    drawn = rng.multinomial(int(counts.sum()), counts / counts.sum(), size=resamples)
    shares = symmetric_shares(pilot_classes, drawn)
    low, high = np.empty((len(rhos), len(counts))), np.empty((len(rhos), len(counts)))
    for i, rho in enumerate(rhos):
        predicted = predict_shares(shares, means, rho, base_weights, n_beta)
        low[i], high[i] = np.quantile(predicted, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def symmetric_shares(classes: Sequence[Ints], counts: Ints) -> Floats:
    """Shares (..., B) from `counts` (..., B) of runs, where the solutions of one class have equal shares by symmetry.

    Each class gets half a run more, so that a class that was never reached has a small share and not none. Raises
    `PatterningError` unless each solution is in one class.
    """
    named = sorted(int(member) for members in classes for member in members)
    if named != list(range(counts.shape[-1])):
        raise PatterningError(
            f"the classes hold solutions {named}: each of the {counts.shape[-1]} must be in one of them"
        )
    shares = np.empty(counts.shape)
    for members in classes:
        total = counts[..., members].sum(axis=-1, keepdims=True) + 0.5
        shares[..., members] = total / len(members)
    return shares / shares.sum(axis=-1, keepdims=True)
