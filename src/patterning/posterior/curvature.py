"""Curvature of a mean loss along a direction: by its second derivative, or by differences of its gradient.

Some losses have no usable second derivative: a function whose gradient cannot be differentiated, one that hides a part
of it, or a piecewise linear one, whose curvature lies in its kinks. There the change of the gradient over a short step
says what a chain of such steps meets, and the result says that it was made so.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError

DISAGREEMENT = 0.3
"""Where the second derivative misses more than this share of the gradient's change, differences are used."""
STEP = 0.02
"""Root mean square of a step over the coordinates, as a share of that of the parameters."""
NOTE = "curvature by differences of the gradient: the loss has no usable second derivative"


@dataclass(frozen=True)
class Curvature:
    """Products of the Hessian of a mean loss at `flat` (1, P) with directions.

    `losses`: parts of the mean loss, as functions of `flat` whose sum it is. `by_differences`: how products are made.
    """

    losses: tuple[Callable[[Tensor], Tensor], ...]
    flat: Tensor
    by_differences: bool = False

    @classmethod
    def of(cls, losses: Iterable[Callable[[Tensor], Tensor]], flat: Tensor, direction: Tensor) -> "Curvature":
        """By second derivatives where these say how the gradient changes along `direction`, else by differences.

        A smooth loss may bend within a step, so that shorter ones are tried before the second derivative is given up.
        Raises `PatterningError` where the loss has no finite gradient at `flat`.
        """
        exact = cls(tuple(losses), flat.detach().clone())
        rough = cls(exact.losses, exact.flat, by_differences=True)
        if not bool(exact.gradient(exact.flat).isfinite().all()):
            raise PatterningError("the gradient of L at w* is NaN or infinite: it is no checkpoint to sample around")
        try:
            product = exact.times(direction)
        except PatterningError:
            raise
        except Exception:  # whatever a function without a second derivative raises
            return rough
        if not bool(product.isfinite().all()):
            return rough
        agrees = any(exact.agrees(product, direction, share) for share in (1.0, 1 / 4, 1 / 16))
        return exact if agrees else rough

    def agrees(self, product: Tensor, direction: Tensor, share: float) -> bool:
        """Whether a product is the change of the gradient, as far as rounding and the loss's bending let one tell."""
        change, rounding = self._change(direction, share)
        size = max(float(change.norm()), float(product.norm()))
        return float((change - product).norm()) <= DISAGREEMENT * size + rounding

    def gradient(self, flat: Tensor) -> Tensor:
        """∇L (1, P); raises `PatterningError` where there is none."""
        at = flat.detach().clone().requires_grad_()
        total = torch.zeros_like(flat)
        for loss in self.losses:
            try:
                total += torch.autograd.grad(loss(at), at)[0]
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise PatterningError(f"the loss has no gradient in the parameters ({reason})") from error
        return total

    def times(self, direction: Tensor) -> Tensor:
        """H v (1, P)."""
        if self.by_differences:
            return self._change(direction, 0.25)[0]
        if len(self.losses) == 1:
            return _product(*self._graph, direction, again=True)
        total = torch.zeros_like(self.flat)
        for loss in self.losses:  # a graph at a time: those of all parts may not fit
            total += _product(*_graph_of(loss, self.flat), direction, again=False)
        return total

    @cached_property
    def _graph(self) -> tuple[Tensor, Tensor]:
        """Of the one part, for all products; it is let go with this object."""
        return _graph_of(self.losses[0], self.flat)

    def _change(self, direction: Tensor, share: float) -> tuple[Tensor, float]:
        """The gradient's change along a direction per unit of it, by a central difference, and its rounding error."""
        size = float(self.flat.square().mean().sqrt())
        length = share * STEP * (size if size > 0 else 1.0) * math.sqrt(self.flat.numel())
        step = length / float(direction.norm())
        ahead, behind = (self.gradient(self.flat + sign * step * direction) for sign in (1, -1))
        rounding = 8 * torch.finfo(self.flat.dtype).eps * float(ahead.norm() + behind.norm()) / (2 * step)
        return (ahead - behind) / (2 * step), rounding


def _graph_of(loss: Callable[[Tensor], Tensor], flat: Tensor) -> tuple[Tensor, Tensor]:
    """A leaf at `flat` and the gradient of a loss there, which can be differentiated again."""
    at = flat.clone().requires_grad_()
    return at, torch.autograd.grad(loss(at), at, create_graph=True)[0]


def _product(at: Tensor, gradient: Tensor, direction: Tensor, *, again: bool) -> Tensor:
    """The derivative of a gradient along a direction; `again`: its graph stays for another."""
    if not gradient.requires_grad:  # a linear loss has a constant gradient
        return torch.zeros_like(at)
    (product,) = torch.autograd.grad(gradient, at, direction, retain_graph=again, materialize_grads=True)
    return product


def lanczos(times: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Floats, Floats]:
    """Nodes and weights (k,) of the Gauss quadrature of vᵀ f(H) v, v the unit vector `start` (1, P); k <= `steps`.

    `times` multiplies by H. The largest node is a lower bound of the largest eigenvalue that v has a part of.
    """
    basis, diagonal, beside = [start], list[float](), list[float]()
    for _ in range(steps):
        product = times(basis[-1])
        diagonal.append(float((product * basis[-1]).sum()))
        if not math.isfinite(diagonal[-1]):
            return np.array([math.nan]), np.ones(1)
        for vector in basis:  # few vectors: made orthogonal to all of them, against rounding
            product = product - (product * vector).sum() * vector
        size = float(product.norm())
        if not size > 1e-6 * abs(diagonal[0]) or len(diagonal) == steps:
            break
        beside.append(size)
        basis.append(product / size)
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    return values, vectors[0] ** 2
