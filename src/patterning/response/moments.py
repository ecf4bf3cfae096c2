"""Streaming sums of draws: memory does not grow with their number, and batch sums give every entry its error bar."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.errors import PatterningError

Floats = NDArray[np.float64]


@dataclass
class Moments:
    """Sums over draws of φ (k observables), ℓ (n samples) and φℓ, kept for each chain and batch of draws.

    Values are taken relative to w*, so float64 loses nothing to a large mean. Shapes: `count` (c, b), `phi` (c, b, k),
    `losses` (c, b, n), `products` (c, b, k, n), `at_anchor` (n,), `phi_anchor` (k,).
    """

    count: Floats
    phi: Floats
    losses: Floats
    products: Floats
    at_anchor: Floats
    phi_anchor: Floats

    @classmethod
    def empty(cls, chains: int, batches: int, at_anchor: Floats, phi_anchor: Floats) -> "Moments":
        """Nothing summed yet; `at_anchor` ℓ(w*) (n,) and `phi_anchor` φ(w*) (k,) are the origin."""
        k, n = len(phi_anchor), len(at_anchor)
        return cls(
            count=np.zeros((chains, batches)),
            phi=np.zeros((chains, batches, k)),
            losses=np.zeros((chains, batches, n)),
            products=np.zeros((chains, batches, k, n)),
            at_anchor=at_anchor.astype(np.float64),
            phi_anchor=phi_anchor.astype(np.float64),
        )

    def add(self, batch: int, phi: NDArray[np.floating], losses: NDArray[np.floating]) -> None:
        """One draw of every chain: `phi` (c, k), `losses` (c, n)."""
        x = phi.astype(np.float64) - self.phi_anchor
        y = losses.astype(np.float64) - self.at_anchor
        self.count[:, batch] += 1
        self.phi[:, batch] += x
        self.losses[:, batch] += y
        self.products[:, batch] += x[:, :, None] * y[:, None, :]

    def select(self, chains: list[int]) -> "Moments":
        """These chains only."""
        return Moments(
            self.count[chains],
            self.phi[chains],
            self.losses[chains],
            self.products[chains],
            self.at_anchor,
            self.phi_anchor,
        )

    def as_arrays(self) -> dict[str, NDArray[np.float64]]:
        """For storing."""
        return dict(vars(self))


class Tally:
    """`Moments` in the making, on the device that the draws are on: nothing is read back until all are there.

    `draws` in `batches`; origins `at_anchor` ℓ(w*) (n,) and `phi_anchor` φ(w*) (k,), float64. `traces` holds φ
    (draws, c, k) and the losses of the samples `watched` (draws, c, watched).
    """

    def __init__(
        self, chains: int, draws: int, batches: int, at_anchor: Tensor, phi_anchor: Tensor, watched: Tensor
    ) -> None:
        self._at_anchor, self._phi_anchor, self._watched = at_anchor, phi_anchor, watched
        k, n = len(phi_anchor), len(at_anchor)
        self._draws, self._count = draws, np.zeros((chains, batches))
        self._phi, self._losses = at_anchor.new_zeros(chains, batches, k), at_anchor.new_zeros(chains, batches, n)
        self._products = at_anchor.new_zeros(chains, batches, k, n)
        self._first_bad = torch.full((chains,), draws, device=at_anchor.device)
        self._traces = at_anchor.new_empty(draws, chains, k), at_anchor.new_empty(draws, chains, len(watched))

    def add(self, draw: int, phi: Tensor, losses: Tensor) -> None:
        """One draw of every chain: `phi` (c, k), `losses` (c, n), float64.

        A chain where one of these is NaN or infinite is noted, and counts as w*, which keeps the sums defined.
        """
        good = phi.isfinite().all(1) & losses.isfinite().all(1)
        self._first_bad = torch.where(good, self._first_bad, self._first_bad.clamp(max=draw))
        phi = torch.where(good[:, None], phi, self._phi_anchor)
        losses = torch.where(good[:, None], losses, self._at_anchor)
        self._traces[0][draw], self._traces[1][draw] = phi, losses.index_select(1, self._watched)
        batch = draw * self._count.shape[1] // self._draws
        x, y = phi - self._phi_anchor, losses - self._at_anchor
        self._count[:, batch] += 1
        self._phi[:, batch] += x
        self._losses[:, batch] += y
        self._products[:, batch] += x[:, :, None] * y[:, None, :]

    def undefined(self) -> dict[int, int]:
        """Chains that had something undefined: number → the first such draw."""
        return {c: draw for c, draw in enumerate(self._first_bad.tolist()) if draw < self._draws}

    def traces(self) -> tuple[Floats, Floats]:
        """φ, and the losses of the watched samples, at every draw."""
        phi, losses = (trace.cpu().numpy() for trace in self._traces)
        return phi, losses

    def moments(self) -> Moments:
        """The sums."""
        sums = self._phi, self._losses, self._products, self._at_anchor, self._phi_anchor
        return Moments(self._count, *(part.cpu().numpy() for part in sums))


def join(parts: list[Moments]) -> Moments:
    """The chains of several parts, which must stand around the same w*."""
    first = parts[0]
    if any(not np.array_equal(part.at_anchor, first.at_anchor) for part in parts):
        raise PatterningError("these chains stand around different checkpoints and cannot be joined")

    def all_chains(name: str) -> Floats:
        return np.concatenate([getattr(part, name) for part in parts])

    return Moments(
        count=all_chains("count"),
        phi=all_chains("phi"),
        losses=all_chains("losses"),
        products=all_chains("products"),
        at_anchor=first.at_anchor,
        phi_anchor=first.phi_anchor,
    )


def batch_covariances(moments: Moments) -> Floats:
    """Contributions to Cov(φ, ℓ), centred within each chain: (c, b, k, n); their weighted mean is the covariance.

    mean over a batch of (φ - φ̄_c)(ℓ - ℓ̄_c), from sums alone, with the within-chain factor D / (D - 1).
    """
    count = moments.count[:, :, None]
    draws = moments.count.sum(1)[:, None]  # (c, 1)
    phi_mean, loss_mean = moments.phi.sum(1) / draws, moments.losses.sum(1) / draws  # (c, k), (c, n)
    phi_batch, loss_batch = moments.phi / count, moments.losses / count  # (c, b, k), (c, b, n)
    centred = (
        moments.products / count[..., None]
        - phi_mean[:, None, :, None] * loss_batch[:, :, None, :]
        - phi_batch[..., None] * loss_mean[:, None, None, :]
        + (phi_mean[:, :, None] * loss_mean[:, None, :])[:, None]
    )
    return centred * (draws / (draws - 1))[:, :, None, None]


def unbiased_covariances(moments: Moments) -> Floats:
    """Contributions to Cov(φ, ℓ) without what centring takes from correlated draws: (c, b, k, n).

    Centred chains lack Cov(φ̄_c, ℓ̄_c), a share (autocorrelation time / draws) of the covariance. The batch means of the
    same chain know it: Σ_b (φ̄_b - φ̄_c)(ℓ̄_b - ℓ̄_c) / b(b - 1). An offset between chains still does not count.
    Raises `PatterningError` with one batch a chain.
    """
    count, batches = moments.count[:, :, None], moments.count.shape[1]
    if batches < 2:
        raise PatterningError("one batch a chain says nothing about the covariance of its means: use at least 2")
    draws = moments.count.sum(1)[:, None, None]
    phi = moments.phi / count - moments.phi.sum(1, keepdims=True) / draws  # (c, b, k)
    losses = moments.losses / count - moments.losses.sum(1, keepdims=True) / draws  # (c, b, n)
    of_means = phi[..., None] * losses[:, :, None, :] / (batches - 1)
    return batch_covariances(moments) * (1 - 1 / draws[..., None]) + of_means
