"""Tasks whose losses are quadratic in w: every localized posterior is a Gaussian, every moment has a closed form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patterning.posterior.chains import Kernel
from zoo.known import Floats, Known


@dataclass(frozen=True)
class Gaussian:
    """N(mean, covariance) over w, shapes (P,) and (P, P)."""

    mean: Floats
    covariance: Floats

    def sample(self, rng: np.random.Generator, *shape: int) -> Floats:
        """Exact independent draws, (*shape, P)."""
        factor = np.linalg.cholesky(self.covariance)
        return self.mean + rng.standard_normal((*shape, len(self.mean))) @ factor.T


@dataclass(frozen=True)
class Forms:
    """m functions f_j(w) = ½ wᵀ A_j w + b_jᵀ w + c_j; shapes (m, P, P), (m, P), (m,), every A_j symmetric."""

    matrices: Floats
    vectors: Floats
    constants: Floats

    def values(self, w: Floats) -> Floats:
        """f_j at points (..., P): (..., m)."""
        quadratic = np.einsum("...p,jpq,...q->...j", w, self.matrices, w, optimize=True)
        return quadratic / 2 + w @ self.vectors.T + self.constants

    def mix(self, weights: Floats) -> "Forms":
        """Weighted sums of the functions, one for each row of `weights` (m', m)."""
        w = np.atleast_2d(weights)
        return Forms(np.einsum("gj,jpq->gpq", w, self.matrices), w @ self.vectors, w @ self.constants)

    def means(self, law: Gaussian) -> Floats:
        """E f_j (m,): ½ tr(A S) + ½ mᵀ A m + bᵀ m + c."""
        return np.einsum("jpq,qp->j", self.matrices, law.covariance) / 2 + self.values(law.mean)

    def covariance(self, other: "Forms", law: Gaussian) -> Floats:
        """Cov(f_i, g_j) (m, m'): ½ tr(A_i S A_j S) + (A_i m + b_i)ᵀ S (A_j m + b_j), by Isserlis' theorem."""
        a, b = self.matrices @ law.covariance, other.matrices @ law.covariance
        slopes = self.matrices @ law.mean + self.vectors
        other_slopes = other.matrices @ law.mean + other.vectors
        return np.einsum("ipq,jqp->ij", a, b) / 2 + slopes @ law.covariance @ other_slopes.T


@dataclass(frozen=True)
class QuadraticTask:
    """Samples with losses `forms`; base weights are the shares of `draws`."""

    forms: Forms
    base_weights: Tensor
    draws: Tensor

    def init(self, seeds: Sequence[int]) -> Tensor:
        rows = [np.random.default_rng(seed).standard_normal(self.forms.vectors.shape[1]) for seed in seeds]
        return torch.from_numpy(np.stack(rows).astype(np.float32))

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        matrices, vectors, constants = (
            torch.from_numpy(part).to(flat.dtype)[index]
            for part in (self.forms.matrices, self.forms.vectors, self.forms.constants)
        )  # (r, b, P, P), (r, b, P), (r, b)
        bent = (matrices @ flat[:, None, :, None])[..., 0]
        return ((bent / 2 + vectors) * flat[:, None]).sum(-1) + constants

    def posterior(self, q: Floats, n_beta: float, localization: float, anchor: Floats) -> Gaussian:
        """The exact localized posterior under sample weights q, exp{-nβ Σ q_j ℓ_j - γ/2 |w - w*|²}."""
        mean_loss = self.forms.mix(q)
        precision = n_beta * mean_loss.matrices[0] + localization * np.eye(len(anchor))
        covariance = np.linalg.inv(precision)
        return Gaussian(covariance @ (localization * anchor - n_beta * mean_loss.vectors[0]), covariance)


def quadratic_task(forms: Forms, multiplicity: Sequence[int]) -> QuadraticTask:
    """Sample j occurs `multiplicity[j]` times among the draws."""
    counts = np.asarray(multiplicity)
    draws = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    return QuadraticTask(forms, torch.from_numpy(counts / counts.sum()), draws)


def linear_regression(seed: int, samples: int, parameters: int) -> tuple[QuadraticTask, Floats, Floats]:
    """ℓ_j = ½ (x_jᵀ w - y_j)² with unequal multiplicities 1..4: the task, x (n, P) and y (n,)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, parameters))
    y = x @ rng.standard_normal(parameters) + rng.standard_normal(samples)
    forms = Forms(x[:, :, None] * x[:, None, :], -y[:, None] * x, y**2 / 2)
    return quadratic_task(forms, list(rng.integers(1, 5, size=samples))), x, y


def random_forms(seed: int, count: int, parameters: int) -> Forms:
    """Observables with indefinite curvature and a slope."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((count, parameters, parameters))
    return Forms(a + a.transpose(0, 2, 1), rng.standard_normal((count, parameters)), rng.standard_normal(count))


@dataclass(frozen=True)
class Bowl:
    """Four equal samples with loss ½ Σ_i h_i (w_i - centre_i)² + floor: no minibatch noise, independent coordinates."""

    curvature: Tensor
    centre: Tensor
    floor: float = 0.0

    @property
    def base_weights(self) -> Tensor:
        return torch.full((4,), 0.25, dtype=torch.float64)

    @property
    def draws(self) -> Tensor:
        return torch.arange(4)

    def init(self, seeds: Sequence[int]) -> Tensor:
        return self.centre.expand(len(seeds), -1).clone()

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        value = (self.curvature * (flat - self.centre) ** 2).sum(1) / 2 + self.floor
        return value[:, None].expand(index.shape)


def discretised(law: Gaussian, step_size: float | Floats) -> Gaussian:
    """The stationary law of the chain (gradients without noise) whose ε → 0 limit is `law`: S (1 - ε S⁻¹/4)⁻¹.

    `step_size` may be one for each coordinate (P,).
    """
    precision = np.linalg.inv(law.covariance)
    covariance = np.linalg.inv(precision - precision @ (np.atleast_1d(step_size)[:, None] / 4 * precision))
    return Gaussian(law.mean, covariance.astype(np.float64))


def susceptibilities(task: QuadraticTask, phi: Forms, law: Gaussian) -> Floats:
    """χ_j(φ) (k, n) of quadratics φ = ½wᵀAw + bᵀw + c under N(m, S), with ΔA_j = A_j - Ā, Δb_j = b_j - b̄ of the losses:

    -½ tr(A S ΔA_j S) - (A m + b)ᵀ S (ΔA_j m + Δb_j).
    """
    covariance = phi.covariance(task.forms, law)
    return (covariance @ task.base_weights.numpy())[:, None] - covariance


def quadratic_known(
    name: str,
    task: QuadraticTask,
    anchor: Floats,
    kernel: Kernel,
    phi: Forms,
    labels: Sequence[str],
    step_size: float | Floats | None = None,
) -> Known:
    """φ: nβ (L - L(w*)), and the quadratics `phi` under their `labels`.

    `step_size`: what the kernel's steps come to, where that is not its own ε.
    """
    q = task.base_weights.numpy()
    loss = task.forms.mix(q)
    start = float(loss.values(anchor)[0])
    n_beta = kernel.n_beta
    own = Forms(n_beta * loss.matrices, n_beta * loss.vectors, n_beta * (loss.constants - start))
    every = Forms(*(np.concatenate([a, b]) for a, b in zip(vars(own).values(), vars(phi).values(), strict=True)))

    def llc(_: Tensor, losses: Tensor) -> Tensor:
        return n_beta * (losses @ task.base_weights - start)

    def quadratic(number: int) -> Callable[[Tensor, Tensor], Tensor]:
        one = Forms(*(part[number : number + 1] for part in vars(phi).values()))
        return lambda w, _: torch.from_numpy(one.values(w.numpy())[:, 0])

    law = task.posterior(q, n_beta, kernel.localization, anchor)
    chain = discretised(law, kernel.step_size if step_size is None else step_size)
    return Known(
        name=name,
        task=task,
        anchor=torch.from_numpy(anchor.astype(np.float32)),
        kernel=kernel,
        observables={"nβ(L-L*)": llc} | {label: quadratic(i) for i, label in enumerate(labels)},
        means=every.means(chain),
        chi=susceptibilities(task, every, chain),
        means_without_step=every.means(law),
        chi_without_step=susceptibilities(task, every, law),
        learning_coefficient=float(np.linalg.matrix_rank(loss.matrices[0])) / 2,
    )


def chain_variance(total_curvature: Floats | float, step_size: Floats | float) -> Floats | float:
    """Stationary variance of the discretised chain on curvature λ: 1 / (λ (1 - ελ/4))."""
    return 1 / (total_curvature * (1 - step_size * total_curvature / 4))
