"""Many independent estimates of a known answer at the price of a few chains: bias, and coverage of the intervals.

Copies of one problem side by side in w, their losses added, are independent chains of the ordinary sampler: neither the
gradient nor the noise of a copy knows of the others. This needs minibatches without noise (`batch_size` a multiple of
the draws in the data), since the copies share them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from patterning.core.flat import FlatTask
from patterning.posterior.chains import ChainConfig, Kernel, run_chains
from patterning.posterior.diagnostics import diagnose
from patterning.response.moments import Moments
from patterning.response.susceptibility import susceptibility

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Known:
    """A problem with its answers.

    `observables` name → φ: (w (r, P), ℓ (r, n)) → (r,). `means` ⟨φ⟩ (k,) and `chi` (k, n) are those of the chain that
    is run, step size included; `means_without_step`, `chi_without_step` those of the posterior, ε → 0.
    `learning_coefficient` is λ, what the first observable's mean nears as nβ → ∞ and γ/nβ → 0.
    """

    name: str
    task: FlatTask
    anchor: Tensor
    kernel: Kernel
    observables: dict[str, Callable[[Tensor, Tensor], Tensor]]
    means: Floats
    chi: Floats
    means_without_step: Floats
    chi_without_step: Floats
    learning_coefficient: float


@dataclass(frozen=True)
class Copies:
    """`count` copies of `task` beside each other: parameters (r, count P), losses added over copies."""

    task: FlatTask
    count: int

    @property
    def base_weights(self) -> Tensor:
        return self.task.base_weights

    @property
    def draws(self) -> Tensor:
        return self.task.draws

    def init(self, seeds: Sequence[int]) -> Tensor:
        return self.task.init(seeds).repeat(1, self.count)

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        rows = flat.reshape(len(flat) * self.count, -1)
        each = self.task.losses(rows, index.repeat_interleave(self.count, 0))
        return each.view(len(flat), self.count, -1).sum(1)


@dataclass(frozen=True)
class Sample:
    """Many estimates of one number: `values` (s,) and the stated `errors` (s,), their intervals ± `multiple` errors."""

    values: Floats
    errors: Floats
    multiple: float

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """Of `mean`, from the scatter of the values, not from what they say of themselves."""
        return float(self.values.std(ddof=1) / len(self.values) ** 0.5)

    def bias_z(self, truth: float) -> float:
        """Bias in its own standard errors."""
        return (self.mean - truth) / self.standard_error

    def covered(self, truth: float) -> int:
        """How many intervals contain the truth."""
        return int((np.abs(self.values - truth) <= self.multiple * self.errors).sum())


@dataclass(frozen=True)
class Estimates:
    """What as many users would have got: ⟨φ⟩ by observable; χ at `column` by observable, centred and `unbiased`.

    `column` (k,): the sample of largest |χ| according to the truth. `independent` (k,): φ's worth of a chain in draws.
    """

    column: list[int]
    means: list[Sample]
    chi: list[Sample]
    unbiased: list[Sample]
    independent: list[float]


def estimate(known: Known, config: ChainConfig, copies: int, batches: int = 4) -> Estimates:
    """`copies` estimates, each from `config.chains` chains: the numbers that `sample_response` would return for it."""
    task, q = known.task, known.task.base_weights.numpy()
    if config.batch_size % len(task.draws):
        raise ValueError("minibatches with noise would tie the copies together")
    rows, names = config.chains * copies, list(known.observables)
    every = torch.arange(len(q))

    def read(flat: Tensor) -> tuple[Floats, Floats]:
        losses = task.losses(flat, every.expand(len(flat), -1)).double()
        phi = torch.stack([value(flat.double(), losses) for value in known.observables.values()], 1)
        return phi.numpy(), losses.numpy()

    phi_anchor, at_anchor = read(known.anchor[None])
    moments = Moments.empty(rows, batches, at_anchor[0], phi_anchor[0])
    trace = np.empty((config.draws, rows, len(names)))

    def on_draw(draw: int, position: Tensor) -> None:
        phi, losses = read(position.reshape(rows, -1))
        trace[draw] = phi
        moments.add(draw * batches // config.draws, phi, losses)

    ran = run_chains(Copies(task, copies), known.anchor.repeat(copies), known.kernel, config, on_draw)
    if ran.diverged:
        raise ValueError(f"{known.name}: {ran.diverged}")
    groups = [list(range(copy, rows, copies)) for copy in range(copies)]
    parts = [moments.select(group) for group in groups]
    n_beta, multiple = known.kernel.n_beta, float(student.ppf(0.975, config.chains * batches - 1))
    column = [int(j) for j in np.abs(known.chi).argmax(1)]
    chi = []
    for unbiased in (False, True):
        found = [susceptibility(part, names, q, n_beta, unbiased=unbiased) for part in parts]
        chi.append(
            [
                Sample(
                    np.array([x.chi[i, j] for x in found]), np.array([x.standard_error[i, j] for x in found]), multiple
                )
                for i, j in enumerate(column)
            ]
        )
    means, independent = [], []
    for i in range(len(names)):
        read_off = [diagnose(trace[:, group, i]) for group in groups]
        means.append(Sample(np.array([d.mean for d in read_off]), np.array([d.standard_error for d in read_off]), 1.96))
        independent.append(float(np.mean([d.ess for d in read_off])) / config.chains)
    return Estimates(column, means, chi[0], chi[1], independent)
