"""Known responses of a chain to the weight of a sample, and many pathwise estimates of them.

Not χ of the posterior: a chain with a finite step answers by its own law, nβ χ_j = d⟨L⟩/dh under the loss
L + h (ℓ_j - L), and the pathwise estimator differentiates the chain. The law is known in closed form on quadratics,
from its transition density on the line, and to first order in the step on the crossing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn

from patterning.core.batch import Batch
from patterning.core.flat import FlatTask
from patterning.core.task import Call, Task
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response.pathwise import Pathwise, pathwise_chains, summarise_pathwise
from zoo.known import Floats, Known, Sample
from zoo.linear_networks import LinearNetwork, laplace_task
from zoo.quadratic import QuadraticTask, discretised
from zoo.singular import Polynomials, crossing_law, line_chain

SMALL = 1e-4
"""By how much a weight is moved for a central difference of an exact law."""


class Weights(nn.Module):
    """A vector, and nothing else."""

    def __init__(self, anchor: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(anchor.clone())

    def forward(self) -> Tensor:
        """(P,)."""
        return self.weights


def as_module(task: FlatTask, anchor: Tensor) -> Task:
    """A task of parameter rows as a user would bring it: a module and a loss."""

    def losses(call: Call, batch: Batch) -> Tensor:
        return task.losses(call()[None], batch[None])[0]

    return Task(Weights(anchor), losses, torch.arange(len(task.base_weights)), task.base_weights)


def response(mean_loss: Callable[[Floats], float], q: Floats, n_beta: float) -> Floats:
    """χ_j of L (n,): `mean_loss` maps the weights (n,) that a chain is run with to ⟨L⟩ under q."""
    found = []
    for j in range(len(q)):
        step = SMALL * (np.eye(len(q))[j] - q)
        found.append((mean_loss(q + step) - mean_loss(q - step)) / (2 * SMALL) / n_beta)
    return np.array(found)


def known_response(known: Known) -> Floats:
    """χ_j of L (n,) for the chain that `known.kernel` runs, at its step size."""
    task, kernel, q = known.task, known.kernel, known.task.base_weights.numpy()
    assert isinstance(kernel, SGLD)
    anchor = known.anchor.double().numpy()
    if isinstance(task, LinearNetwork):
        task, anchor = laplace_task(task, known.anchor), np.zeros_like(anchor)
    if isinstance(task, QuadraticTask):
        loss = task.forms.mix(q)

        def mean_loss(weights: Floats) -> float:
            law = task.posterior(weights, kernel.n_beta, kernel.localization, anchor)
            return float(loss.means(discretised(law, kernel.step_size))[0])

        return response(mean_loss, q, kernel.n_beta)
    assert isinstance(task, Polynomials)
    coefficients = task.coefficients.numpy()
    law = line_chain if task.parameters == 1 else crossing_law

    def mean_feature(weights: Floats) -> float:
        found = law(kernel, weights @ coefficients)
        return float(found.mean(task.features(torch.from_numpy(found.points)).numpy() @ (q @ coefficients)))

    return response(mean_feature, q, kernel.n_beta)


@dataclass(frozen=True)
class Responses:
    """Estimates of χ of L at `column`, the sample where the truth is largest; `expansion`, the adjoint's median."""

    column: int
    truth: float
    chi: Sample
    expansion: float


def estimate_pathwise(known: Known, config: ChainConfig, copies: int) -> Responses:
    """`copies` estimates of `config.chains` chains (and their mirror images) each, all run side by side."""
    assert isinstance(known.kernel, SGLD)
    truth = known_response(known)
    task, many = as_module(known.task, known.anchor), config.chains * copies
    q = task.base_weights.numpy()
    free = Restricted(task, task.flatten(task.module), "full")
    chains = ChainConfig(
        **(vars(config) | {"chains": many, "matched": True})  # minibatches hold all the data: there is one
    )
    probe = Probe(free, torch.arange(len(q)), chains.replicas)
    (found,) = pathwise_chains(free, probe, q, known.kernel, chains).values()
    column = int(np.abs(truth).argmax())
    values, errors = [], []
    for first in range(0, many, config.chains):
        own = slice(first, first + config.chains)
        part = Pathwise(found.chi[own], found.phi[:, own], found.mean_losses[own], found.expansion[own], {})
        chi = summarise_pathwise({"L": part}, q, known.kernel.n_beta, np.zeros(len(q))).susceptibility
        values.append(chi.chi[0, column])
        errors.append(chi.standard_error[0, column])
    multiple = float(student.ppf(0.975, config.chains - 1))
    sample = Sample(np.array(values), np.array(errors), multiple)
    return Responses(column, float(truth[column]), sample, float(np.median(found.expansion)))
