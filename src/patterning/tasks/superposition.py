r"""The toy model of superposition with one feature at a time: six features squeezed into two dimensions.

.. math:: f(x) = \mathrm{ReLU}(W^\top W x + b), \quad x = \mu e_i, \; \mu \sim U[0, 1], \qquad \ell(x) = |f(x) - x|^2

Elhage et al. (arXiv 2209.10652); with one feature at a time and its losses at k-gons: Chen et al. (arXiv 2310.06301).
Without a factor 1/2 the loss has their values: 0.0482 at the hexagon, 0.0618 at the pentagon with a dead sixth feature.

The 24 **samples** are groups: feature i with μ in one quarter of [0, 1]. A group's loss is its mean over μ, an
integral of piecewise quadratics that is taken exactly: there is no sampling of data and no quadrature. All base
weights are 1/24.

Parameters are flat rows (r, 18) float64, one row a replica: the first row of W, its second row, then b. Column i of W
is where feature i lies in the plane. Only elementwise arithmetic is used, so a replica alone or in a batch has the
same bits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patterning.core.errors import PatterningError

Floats = NDArray[np.float64]

FEATURES, QUARTERS = 6, 4
GROUPS = FEATURES * QUARTERS
PARAMETERS = 3 * FEATURES
LIVE = 0.6
"""A feature is live when its column of W is longer than this; the columns of a polygon have length 1.17 or 1.32."""

SOLUTIONS = ("hexagon", *(f"pentagon-{i + 1}" for i in range(FEATURES)))
"""The end states with a name. Features count from 1: `pentagon-3` is five live features, and the third one dead."""
OTHER = len(SOLUTIONS)
"""The end state of everything else."""

RATE = 0.3
"""Step of a descent without noise; the largest curvature of the loss at a solution is 2.0."""

_EDGES = np.arange(QUARTERS + 1) / QUARTERS
_DIAGONAL = np.arange(FEATURES)
_TINY = 1e-300
"""Stands for a product of columns that is exactly 0, so that the point where the ReLU switches is defined."""


@dataclass(frozen=True)
class Weighting:
    """Data weights as the gradient needs them: of each feature, the integrals ∫₀ᵗ density(μ) μⁿ dμ for n = 0, 1, 2.

    In quarter j such an integral is `offset[n][i, j] + density[i, j] tⁿ⁺¹/(n + 1)`; over the whole of [0, 1]
    `total[n][i]`.
    """

    density: Floats
    offset: tuple[Floats, Floats, Floats]
    total: tuple[Floats, Floats, Floats]


def weighting(rho: Floats) -> Weighting:
    """Of relative weights ρ (24,), feature by feature; normalised: the training loss is Σ ρ_j ℓ_j / Σ ρ_j.

    Raises `PatterningError` for weights that are not 24 finite, non-negative numbers with a positive sum.
    """
    if rho.shape != (GROUPS,) or not np.isfinite(rho).all() or (rho < 0).any() or not rho.sum() > 0:
        raise PatterningError(f"rho must hold {GROUPS} finite weights >= 0, not all 0; it has shape {rho.shape}: {rho}")
    density = rho.reshape(FEATURES, QUARTERS) * (QUARTERS / rho.sum())
    offsets, totals = [], []
    for n in range(3):
        powers = _EDGES ** (n + 1) / (n + 1)
        pieces = density * np.diff(powers)
        before = np.cumsum(pieces, axis=1) - pieces
        offsets.append(before - density * powers[:-1])
        totals.append(pieces.sum(axis=1))
    return Weighting(density, tuple(offsets), tuple(totals))


def loss_gradient(flat: Floats, weights: Weighting) -> Floats:
    """∇L_ρ, exact, (r, 18) at parameters `flat` (r, 18), in units of the loss.

    Output k for feature i is ReLU(g μ + b_k) with g = (WᵀW)_ki: it is on for μ above (g > 0) or below (g < 0) one point
    t. The boundary terms of the derivative vanish, because the integrand is continuous there.
    """
    first, second, bias = _columns(flat)
    g, t = _switch(first, second, bias)
    s0, s1, s2 = _active_integrals(g, t, weights)
    b = bias[:, None]
    by_product = g * s2 + b * s1  # half of ∂L/∂g_ki, (k, i, r)
    by_bias = g * s1 + b * s0
    by_product[_DIAGONAL, _DIAGONAL] -= s2[_DIAGONAL, _DIAGONAL]
    by_bias[_DIAGONAL, _DIAGONAL] -= s1[_DIAGONAL, _DIAGONAL]
    both = by_product + by_product.transpose(1, 0, 2)
    columns = np.concatenate([(both * first).sum(axis=1), (both * second).sum(axis=1), by_bias.sum(axis=1)])
    return np.ascontiguousarray((2 * columns).T)


def gradient_under(rho: Floats) -> Callable[[Floats], Floats]:
    """∇L_ρ as a function of parameters (r, 18)."""
    weights = weighting(rho)
    return lambda flat: loss_gradient(flat, weights)


def group_losses(flat: Floats) -> Floats:
    """Mean loss of each group, exact, (r, 24) at parameters `flat` (r, 18); group 4 i + j is quarter j of feature i."""
    first, second, bias = _columns(flat)
    g, t = _switch(first, second, bias)
    error = g.copy()
    error[_DIAGONAL, _DIAGONAL] -= 1  # where output i is on, its error is (g_ii - 1) μ + b_i
    losses = np.empty((FEATURES, QUARTERS, flat.shape[0]))
    for j in range(QUARTERS):
        low, high = _EDGES[j], _EDGES[j + 1]
        switch = np.clip(t, low, high)
        start, stop = np.where(g > 0, switch, low), np.where(g > 0, high, switch)
        width = stop - start
        middle = error * ((start + stop) / 2) + bias[:, None]
        integral = width * (middle * middle + (error * width) ** 2 / 12)
        missed = (high**3 - low**3 - stop**3 + start**3) / 3  # ∫ μ² where output i is off
        integral[_DIAGONAL, _DIAGONAL] += missed[_DIAGONAL, _DIAGONAL]
        losses[:, j] = integral.sum(axis=0) * QUARTERS
    return np.ascontiguousarray(losses.reshape(GROUPS, -1).T)


def mean_loss(flat: Floats) -> Floats:
    """L, the loss under base weights, (r,)."""
    return group_losses(flat).mean(axis=1)


def live_features(flat: Floats) -> NDArray[np.bool_]:
    """Which features are live, (r, 6): |W_i| > 0.6."""
    return np.hypot(flat[:, :FEATURES], flat[:, FEATURES : 2 * FEATURES]) > LIVE


def end_states(flat: Floats) -> NDArray[np.int64]:
    """The solution that each replica is, (r,): its place in `SOLUTIONS`, or `OTHER`."""
    live = live_features(flat)
    count = live.sum(axis=1)
    dead = np.argmin(live, axis=1)
    return np.select([count == FEATURES, count == FEATURES - 1], [0, 1 + dead], OTHER)


def find_minima() -> Floats:
    """The minimum of L at each of `SOLUTIONS`, (7, 18), by 5,000 steps of descent from regular polygons.

    The slowest direction shrinks by 0.6 % a step, which leaves nothing of it but rounding. Raises `PatterningError`
    for a descent that ends elsewhere.
    """
    gradient = gradient_under(np.ones(GROUPS))
    w = np.stack([_regular_polygon(k) for k in range(len(SOLUTIONS))])
    for _ in range(5000):
        w = w - RATE * gradient(w)
    slope = np.abs(gradient(w)).max()
    if slope > 1e-12 or (end_states(w) != np.arange(len(w))).any():
        raise PatterningError(f"the descents did not end at the seven solutions (gradient {slope:.1e})")
    return w


def _regular_polygon(solution: int) -> Floats:
    """A regular polygon of the live features of `SOLUTIONS[solution]`, near its minimum (18,)."""
    live = [i for i in range(FEATURES) if i != solution - 1]
    angles = 2 * np.pi * np.arange(len(live)) / len(live)
    flat = np.zeros(PARAMETERS)
    flat[live] = 1.2 * np.cos(angles)
    flat[[FEATURES + i for i in live]] = 1.2 * np.sin(angles)
    flat[[2 * FEATURES + i for i in live]] = -0.4
    return flat


def _columns(flat: Floats) -> tuple[Floats, Floats, Floats]:
    """The two rows of W and b, each (6, r): the replica axis last, where it is contiguous."""
    columns = np.ascontiguousarray(flat.T)
    return columns[:FEATURES], columns[FEATURES : 2 * FEATURES], columns[2 * FEATURES :]


def _switch(first: Floats, second: Floats, bias: Floats) -> tuple[Floats, Floats]:
    """g = WᵀW (k, i, r), and the point t in [0, 1] where output k of feature i switches, clipped to the interval."""
    g = first[:, None] * first + second[:, None] * second
    g[g == 0] = _TINY
    with np.errstate(over="ignore"):  # infinity is clipped
        t = -bias[:, None] / g
    np.maximum(t, 0, out=t)
    np.minimum(t, 1, out=t)
    return g, t


def _active_integrals(g: Floats, t: Floats, weights: Weighting) -> tuple[Floats, Floats, Floats]:
    """∫ density(μ) μⁿ dμ over the part of [0, 1] where the output is on, for n = 0, 1, 2; each (k, i, r)."""
    quarter = np.minimum((t * QUARTERS).astype(np.intp), QUARTERS - 1)
    cell = quarter + (QUARTERS * _DIAGONAL)[:, None]
    above = (g > 0).astype(np.float64)
    sign = 1 - 2 * above
    term = weights.density.take(cell, mode="clip")
    integrals = []
    for n in range(3):
        term *= t
        part = term * (1 / (n + 1))
        part += weights.offset[n].take(cell, mode="clip")  # the integral below the switch
        part -= above * weights.total[n][:, None]
        part *= sign  # above it: the whole less that
        integrals.append(part)
    return integrals[0], integrals[1], integrals[2]
