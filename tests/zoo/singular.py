"""Two singular minima where quadrature knows the localized posterior: w⁴ on the line, (w₁ w₂)²/2 in the plane.

λ = 1/4 (multiplicity 1) and λ = 1/2 (multiplicity 2). Sample losses are spread around L, so that χ has a known answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import k0e, k1e
from torch import Tensor

from patterning.posterior.sgld import SGLD
from zoo.known import Floats, Known


@dataclass(frozen=True)
class Polynomials:
    """ℓ_j(w) = Σ_m c_jm f_m(w), equal base weights; `coefficients` (n, m), `features` w (r, P) → (r, m)."""

    coefficients: Tensor
    features: Callable[[Tensor], Tensor]
    parameters: int

    @property
    def base_weights(self) -> Tensor:
        return torch.full((len(self.coefficients),), 1 / len(self.coefficients), dtype=torch.float64)

    @property
    def draws(self) -> Tensor:
        return torch.arange(len(self.coefficients))

    def init(self, seeds: Sequence[int]) -> Tensor:
        return torch.zeros(len(seeds), self.parameters)

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        return (self.coefficients.to(flat.dtype)[index] * self.features(flat)[:, None]).sum(-1)


@dataclass(frozen=True)
class Grid:
    """A law on points (N, P), probabilities (N,)."""

    points: Floats
    probability: Floats

    def mean(self, values: Floats) -> Floats:
        """E of values (N, ...)."""
        return np.tensordot(self.probability, values, 1)

    def covariance(self, a: Floats, b: Floats) -> Floats:
        """Cov of values (N, k) and (N, n): (k, n)."""
        return ((a - self.mean(a)) * self.probability[:, None]).T @ (b - self.mean(b))

    def tilted(self, log_factor: Floats) -> "Grid":
        """The law with its density times exp(log_factor) (N,)."""
        p = self.probability * np.exp(log_factor)
        return Grid(self.points, p / p.sum())


def quartic_posterior(n_beta: float, localization: float, points: int = 2001) -> Grid:
    """exp{-nβ w⁴ - γ w²/2} by the trapezoid rule, which is exact to rounding for so smooth a density."""
    reach = min((40 / n_beta) ** 0.25, (80 / localization) ** 0.5)  # e⁻⁴⁰ there
    w = np.linspace(-reach, reach, points)
    p = np.exp(-n_beta * w**4 - localization * w**2 / 2)
    return Grid(w[:, None], p / p.sum())


def quartic_chain(kernel: SGLD) -> Grid:
    """`line_chain` on w⁴."""
    return line_chain(kernel, np.array([1.0, 0, 0]))


def line_chain(kernel: SGLD, coefficients: Floats) -> Grid:
    """The stationary law of the discretised chain on c₀ w⁴ + c₁ w² + c₂ w: the fixed point of its transition density.

    For c near (1, 0, 0), which sets the grid. Strictly there is none: beyond |w| ~ (ε nβ)^-½ a step overshoots. No
    chain of practical length gets there.
    """
    reach = 1.1 * quartic_posterior(kernel.n_beta, kernel.localization).points[-1, 0]
    w = np.linspace(-reach, reach, 2 * int(3 * reach / kernel.step_size**0.5) + 1)  # √ε is three cells: spectral
    slope = coefficients @ np.stack([4 * w**3, 2 * w, np.ones_like(w)])
    drifted = w - kernel.step_size / 2 * (kernel.n_beta * slope + kernel.localization * w)
    transition = np.exp(-((w - drifted[:, None]) ** 2) / (2 * kernel.step_size))
    transition /= transition.sum(1, keepdims=True)
    for _ in range(20):  # 2²⁰ steps
        transition = transition @ transition
    return Grid(w[:, None], transition[len(w) // 2] / transition[len(w) // 2].sum())


def step_correction(step_size: float, slope_squared: Floats, laplacian: Floats) -> Floats:
    """log p_ε - log p to first order in ε, for w ← w - (ε/2) ∇U + √ε ξ: ε (|∇U|²/8 - ΔU/4).

    From the expansion of one step's generator to second order; on a quadratic: of 1 / (λ (1 - ελ/4)).
    """
    return step_size * (slope_squared / 8 - laplacian / 4)


def crossing_law(kernel: SGLD, coefficients: Floats) -> Grid:
    """The chain's law on c₀ (w₁w₂)²/2 + c₁ w₁w₂, to first order in its step size."""
    return crossing_posterior(kernel.n_beta, kernel.localization, kernel.step_size, coefficients=coefficients)


def crossing_posterior(
    n_beta: float,
    localization: float,
    step_size: float = 0.0,
    points: int = 1601,
    coefficients: Floats | tuple[float, float] = (1.0, 0.0),
) -> Grid:
    """exp{-nβ L - γ|w|²/2}, L = c₀ (w₁w₂)²/2 + c₁ w₁w₂, on a grid; with a step size, the chain's law to first order."""
    reach = (50 / localization) ** 0.5  # e⁻²⁵ there
    line = np.linspace(-reach, reach, points)
    a, b = (axis.ravel() for axis in np.meshgrid(line, line))
    c, d = coefficients
    p = np.exp(-n_beta * (c * (a * b) ** 2 / 2 + d * a * b) - localization * (a**2 + b**2) / 2)
    keep = p > 1e-14
    a, b, p = a[keep], b[keep], p[keep]
    pull = n_beta * (c * a * b + d)  # nβ dL / d(w₁w₂)
    slopes = (pull * b + localization * a, pull * a + localization * b)
    laplacian = n_beta * c * (a**2 + b**2) + 2 * localization
    grid = Grid(np.stack([a, b], 1), p / p.sum())
    return grid.tilted(step_correction(step_size, slopes[0] ** 2 + slopes[1] ** 2, laplacian))


def crossing_llc(n_beta: float, localization: float) -> float:
    """⟨nβ L⟩ in closed form: ½ + z (1 - K₁(z)/K₀(z)) with z = γ²/(4nβ).

    w₂ given w₁ is a Gaussian of precision nβ w₁² + γ; over w₁ the partition function is √(2π/nβ) e^z K₀(z), and
    ⟨nβ L⟩ = -nβ ∂ log Z/∂nβ. It nears ½ as 1/log: that is the multiplicity 2.
    """
    z = localization**2 / (4 * n_beta)
    return float(0.5 + z * (1 - k1e(z) / k0e(z)))


def _known(
    name: str, task: Polynomials, kernel: SGLD, laws: tuple[Grid, Grid], limit: float, others: dict[str, int]
) -> Known:
    """φ: nβ L, and features by number; `laws` the chain's and the posterior's."""

    def llc(_: Tensor, losses: Tensor) -> Tensor:
        return kernel.n_beta * losses.mean(1)

    def feature(number: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda w, _: task.features(w)[:, number]

    observables = {"nβ(L-L*)": llc} | {label: feature(number) for label, number in others.items()}
    answers = []
    for law in laws:
        w = torch.from_numpy(law.points)
        losses = task.losses(w, torch.arange(len(task.coefficients)).expand(len(w), -1))
        phi = torch.stack([value(w, losses) for value in observables.values()], 1).numpy()
        covariance = law.covariance(phi, losses.numpy())
        answers.append((law.mean(phi), covariance.mean(1, keepdims=True) - covariance))
    (means, chi), (means_limit, chi_limit) = answers
    anchor = torch.zeros(task.parameters)
    return Known(name, task, anchor, kernel, observables, means, chi, means_limit, chi_limit, limit)


def quartic(kernel: SGLD) -> Known:
    """L = w⁴; the samples add ± (w⁴/2 + w²/10) and ± w/20."""
    coefficients = torch.tensor([[1.5, 0.1, 0], [0.5, -0.1, 0], [1, 0, 0.05], [1, 0, -0.05]], dtype=torch.float64)
    task = Polynomials(coefficients, lambda w: torch.cat([w**4, w**2, w], 1), 1)
    laws = quartic_chain(kernel), quartic_posterior(kernel.n_beta, kernel.localization)
    return _known("quartic w⁴", task, kernel, laws, 0.25, {"w": 2})


def crossing(kernel: SGLD) -> Known:
    """L = (w₁w₂)²/2; the samples add ± L/2 and ± w₁w₂/20."""
    coefficients = torch.tensor([[1.5, 0], [0.5, 0], [1, 0.05], [1, -0.05]], dtype=torch.float64)
    task = Polynomials(coefficients, lambda w: torch.stack([w.prod(1) ** 2 / 2, w.prod(1)], 1), 2)
    laws = tuple(crossing_posterior(kernel.n_beta, kernel.localization, step) for step in (kernel.step_size, 0.0))
    return _known("crossing (w₁w₂)²/2", task, kernel, (laws[0], laws[1]), 0.5, {"w₁w₂": 1})
