"""Fluctuation against response: nβ Σ q s χ, from chains on the data as they are, against Δ⟨φ⟩ on re-weighted data.

All chains see the same noise and minibatches. Prints slope ± standard error over random
directions s of the weights of the rows, for a Gaussian model (truth: 1) and a small trained language model.

    python benchmarks/fluctuation.py
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from patterning.core.task import Task
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior.chains import ChainConfig, run_chains
from patterning.posterior.sgld import SGLD
from patterning.response.components import Estimator, component_response
from patterning.training.weighted import TrainConfig, advance, init_state, uniform_weights

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reweighted:
    """A clamped task whose rows weigh ρ_j (n,): the loss of row j is multiplied."""

    task: Restricted
    rho: Tensor

    @property
    def base_weights(self) -> Tensor:
        """q: minibatches are drawn as without ρ."""
        return self.task.base_weights

    @property
    def draws(self) -> Tensor:
        """Those of the task."""
        return self.task.draws

    def init(self, seeds: Sequence[int]) -> Tensor:
        """Those of the task."""
        return self.task.init(seeds)

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        """ρ_j ℓ_j."""
        return self.task.losses(flat, index) * self.rho[index].to(flat.dtype)


def mean_phi(task: Restricted, probe: Probe, rho: Floats, kernel: SGLD, chains: ChainConfig) -> Floats:
    """⟨φ⟩ of each chain (chains,) under weights ρ; φ is the mean loss of all rows at weights 1."""
    total = torch.zeros(chains.chains, dtype=torch.float64)

    def on_draw(_draw: int, flat: Tensor) -> None:
        with torch.no_grad():
            total.add_(probe(flat).double().mean(1) / chains.draws)

    run_chains(Reweighted(task, torch.from_numpy(rho)), task.anchor, kernel, chains, on_draw)
    return total.numpy()


def compare(
    task: Task, component: str, kernel: SGLD, chains: ChainConfig, *, estimator: Estimator, directions: int,
    alpha: float, seed: int = 0,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Predicted and measured dφ/dα (directions,) for directions s of the rows' weights, at q = 1/n.

    s is random, plus χ of other chains by the pathwise estimator, both of unit size: where the gradient of φ is small,
    a random direction alone moves it by less than the noise.
    """
    n, anchor = len(task.base_weights), task.flatten(task.module)

    def row(config: ChainConfig, how: Estimator) -> Floats:
        found = component_response(task, anchor, [component], kernel, config, estimator=how)
        return found.chi()[0].reshape(n, -1).mean(1)

    chi, other = row(chains, estimator), row(replace(chains, seed=chains.seed + 1), "pathwise")
    rng = np.random.default_rng(seed)
    s = rng.standard_normal((directions, n)) + (other - other.mean()) / other.std()
    s -= s.mean(1, keepdims=True)
    predicted = kernel.n_beta * s @ chi / n
    free = Restricted(task, anchor, component)
    probe = Probe(free, torch.arange(n), chains.chains)
    ends = [[mean_phi(free, probe, 1 + sign * alpha * row, kernel, chains).mean() for row in s] for sign in (1.0, -1.0)]
    return predicted, (np.array(ends[0]) - np.array(ends[1])) / (2 * alpha)


def slope(predicted: Floats, measured: Floats) -> tuple[float, float, float]:
    """Slope of measured on predicted through 0, its standard error over directions, and the correlation."""
    value = float(predicted @ measured / (predicted @ predicted))
    residual = measured - value * predicted
    error = float(np.sqrt((predicted**2 * residual**2).sum()) / (predicted @ predicted))
    return value, error, float(np.corrcoef(predicted, measured)[0, 1])


class Linear(nn.Module):
    """w·x."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dimension))

    def forward(self, x: Tensor) -> Tensor:
        """(b, d) → (b,)."""
        return x @ self.weight


def squared_error(call, batch) -> Tensor:
    """(w·x - y)² / 2."""
    return (call(batch[0]) - batch[1]) ** 2 / 2


def gaussian_task(n: int = 12, dimension: int = 3, seed: int = 0) -> Task:
    """Linear regression near its least-squares solution: every localized posterior is Gaussian.

    Near, not at: at the minimum the loss answers in second order only, and the comparison would be one of noise.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, dimension))
    y = x @ rng.standard_normal(dimension) + rng.standard_normal(n)
    module = Linear(dimension)
    module.weight.data = torch.from_numpy(np.linalg.lstsq(x, y, rcond=None)[0] + 0.5).float()
    return Task(module, squared_error, (torch.from_numpy(x), torch.from_numpy(y)))


def language_task(steps: int = 600) -> Task:
    """A language model of 2 layers and width 16, trained on 64 rows of 16 random tokens until it half knows them."""
    tokens = torch.randint(16, (64, 16), generator=torch.Generator().manual_seed(0))
    config = LanguageConfig(16, 16, 2, 2, 16)
    task = Task(LanguageModel(config), next_token_losses, tokens)
    training = TrainConfig(steps=steps, batch_size=32, learning_rate=3e-3)
    flat = advance(task, training, init_state(task, [0]), [0], uniform_weights(task), steps).flat
    return Task(task.load(LanguageModel(config), flat[0]), next_token_losses, tokens)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| model | component | estimator | slope ± se | correlation |\n|---|---|---|---|---|")
    chains = ChainConfig(64, 200, 100, 4, 12, matched=True)
    kernel = SGLD(n_beta=50.0, localization=20.0, step_size=1e-3)
    for estimator in ("covariance", "pathwise"):
        found = slope(*compare(gaussian_task(), "full", kernel, chains, estimator=estimator, directions=8, alpha=0.05))
        print(f"| Gaussian | full | {estimator} | {found[0]:.3f} ± {found[1]:.3f} | {found[2]:.3f} |", flush=True)
    task = language_task()
    chains = ChainConfig(8, 60, 40, 2, 64, matched=True)  # every row once a step: the same gradients on both sides
    kernel = SGLD(n_beta=30.0, localization=300.0, step_size=1e-3)
    for component in ("l0h1", "l1 mlp"):
        for estimator in ("covariance", "pathwise"):
            pair = compare(task, component, kernel, chains, estimator=estimator, directions=8, alpha=0.1)
            found = slope(*pair)
            cells = f"{component} | {estimator} | {found[0]:.3f} ± {found[1]:.3f} | {found[2]:.3f}"
            print(f"| 2 layers, width 16 | {cells} |", flush=True)


if __name__ == "__main__":
    main()
