"""Linear networks at a smooth point of their solutions: λ is half the codimension, and the Laplace law has all else.

L = ½ ‖W_L … W_1 - W*‖² (the population loss of whitened inputs): a polynomial, without data noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from patterning.posterior.sgld import SGLD
from zoo.known import Floats, Known
from zoo.quadratic import Forms, QuadraticTask, quadratic_known, quadratic_task


def aoyagi_watanabe(inputs: int, outputs: int, hidden: int, rank: int) -> tuple[float, int]:
    """(λ, multiplicity) of reduced-rank regression at true rank r (Aoyagi & Watanabe, Neural Networks 18, 2005)."""
    m, n, h, r = inputs, outputs, hidden, rank
    if not 0 <= r <= min(m, n, h):
        raise ValueError("the true rank must fit through every layer")
    if m + h < n + r:
        return (h * m - h * r + n * r) / 2, 1
    if n + h < m + r:
        return (h * n - h * r + m * r) / 2, 1
    if m + n < h + r:
        return m * n / 2, 1
    odd = (m + n + h + r) % 2
    return (2 * (h + r) * (m + n) + 2 * m * n - (h + r) ** 2 - m**2 - n**2 + odd) / 8, 1 + odd


@dataclass(frozen=True)
class LinearNetwork:
    """Sample j is the input √n e_j, n = widths[0], so that L = ½ ‖product - W*‖²; `target` W* (out, in)."""

    widths: tuple[int, ...]
    target: Tensor

    @property
    def base_weights(self) -> Tensor:
        return torch.full((self.widths[0],), 1 / self.widths[0], dtype=torch.float64)

    @property
    def draws(self) -> Tensor:
        return torch.arange(self.widths[0])

    def init(self, seeds: Sequence[int]) -> Tensor:
        return torch.stack([anchor(self.widths, seed) for seed in seeds]).float()

    def product(self, flat: Tensor) -> Tensor:
        """W_L … W_1 of parameters (r, P): (r, out, in)."""
        shapes = [(b, a) for a, b in pairwise(self.widths)]
        parts = flat.split([a * b for a, b in shapes], 1)
        first, *rest = (part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True))
        for layer in rest:
            first = layer @ first
        return first

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        columns = ((self.product(flat) - self.target.to(flat)) ** 2).sum(1) * (self.widths[0] / 2)
        return columns.gather(1, index)

    def jacobian(self, flat: Tensor) -> Floats:
        """∂ product / ∂ w at one point (P,): (in, out, P)."""
        rows = torch.autograd.functional.jacobian(lambda w: self.product(w[None])[0], flat.double())
        return rows.movedim(1, 0).numpy()


def anchor(widths: tuple[int, ...], seed: int) -> Tensor:
    """Layers with all singular values 1, float64 (P,)."""
    rng = np.random.default_rng(seed)
    layers = []
    for a, b in pairwise(widths):
        tall, _ = np.linalg.qr(rng.standard_normal((max(a, b), min(a, b))))
        layers.append((tall if b >= a else tall.T).ravel())
    return torch.from_numpy(np.concatenate(layers))


def laplace_task(task: LinearNetwork, start: Tensor) -> QuadraticTask:
    """Its losses to second order around a solution `start` (P,), in w - start."""
    slopes, n = task.jacobian(start), task.widths[0]
    forms = Forms(n * np.einsum("jop,joq->jpq", slopes, slopes), np.zeros((n, len(start))), np.zeros(n))
    return quadratic_task(forms, [1] * n)


def linear_network(name: str, widths: tuple[int, ...], learning_coefficient: float, kernel: SGLD, seed: int) -> Known:
    """Realisable at its anchor. φ: nβ (L - L*) and nβ ℓ₀. The answers are those of the second-order expansion there.

    They are right to O(1/nβ) and O((γ/nβ)²): across the solutions the law is Gaussian as nβ → ∞, and along them, where
    only γ holds the chain, it does not matter where it is.
    """
    start = anchor(widths, seed).float()
    blank = LinearNetwork(widths, torch.zeros(widths[-1], widths[0]))
    task = LinearNetwork(widths, blank.product(start[None].double())[0])
    expanded, size = laplace_task(task, start), len(start)
    own = Forms(kernel.n_beta * expanded.forms.matrices[:1], np.zeros((1, size)), np.zeros(1))
    laplace = quadratic_known(name, expanded, np.zeros(size), kernel, own, ["nβ ℓ₀"])
    observables = laplace.observables | {"nβ ℓ₀": lambda _, losses: kernel.n_beta * losses[:, 0]}
    return replace(laplace, task=task, anchor=start, observables=observables, learning_coefficient=learning_coefficient)
