r"""Are chains long enough for φ to answer to weights? Told from curvature, as chains that start at w* cannot tell.

All chains start at w*, where a φ that is linear there has its mean already: its traces look settled, and R-hat is near
1, while its response to a push has only begun to grow. On a quadratic of curvature h the response reaches

.. math:: 1 - (1 - \epsilon\lambda/2)^t,\qquad \lambda = n\beta h + \gamma

of its value after t steps. So pathwise χ misses the mean of :math:`(1 - \epsilon\lambda/2)^t` over the draws, in each
direction that ∇φ has a part of. The covariance of draws is too small for two reasons: the chain has not spread to its
full width yet, and draws that follow each other are alike. Lanczos steps from ∇φ give the curvatures of these
directions, as a Gauss quadrature (Golub & Meurant 1994). The gradient of a single loss has a variance of about h in
each direction (as the Fisher information has it). What is missing is given as a share of χ for such gradients.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError
from patterning.core.rng import Stream, generator
from patterning.models.restricted import Restricted
from patterning.posterior.chains import ChainConfig
from patterning.posterior.curvature import Curvature, lanczos
from patterning.posterior.sgld import SGLD
from patterning.response.adjoint import ModelObservable, ModelReading
from patterning.response.capability import few_rows
from patterning.response.judged import NOT_QUITE
from patterning.response.sample import SampledResponse

MISSED, AIM = 0.05, 0.03
"""Shares of χ that chains may miss: without a warning, and under the settings that are advised."""
DOUBLINGS = 12
"""How often a setting is doubled to find the advised one."""
SHORT = "chains are short for"
STEPS = 8
"""Of the Lanczos iteration."""
ROWS = 64
"""Most rows on which curvature is taken."""


@dataclass(frozen=True)
class Settling:
    """By observable, the share of χ that chains miss; and a sentence for each of which they miss much."""

    shares: Mapping[str, float]
    lines: Mapping[str, str]


def settling_of(
    free: Restricted,
    kernel: object,
    chains: ChainConfig,
    observables: Mapping[str, ModelObservable],
    estimator: str,
) -> Settling:
    """What such chains miss of the χ of each observable, and settings that miss less.

    `estimator`: "pathwise", or that of the covariance of draws.
    """
    if not isinstance(kernel, SGLD):
        return Settling({}, {})
    missing = _of_pathwise if estimator == "pathwise" else _of_covariance
    flat = np.array([kernel.step_size * kernel.localization / 2])
    if (most := float(missing(flat, _times(chains))[0])) <= MISSED:  # even where the loss is flat
        return Settling(dict.fromkeys(observables, most), {})
    shares, lines = dict[str, float](), dict[str, str]()
    for name, function in observables.items():
        try:
            reading = ModelReading(name, free, function)
            gradient = reading(free.anchor[None])[2]
            if not gradient.any() and not _moves(free, reading):
                shares[name] = 0.0
                continue
            found = _curvatures(free, gradient) if float(gradient.norm()) > 0 else None
        except (RuntimeError, NotImplementedError, PatterningError):  # φ or the loss has no derivative
            found = None
        if found is None or not np.isfinite(found[0]).all():
            lines[name] = (
                f"chains may be short for {name}: where the loss is flat they miss about {min(most, 1):.0%} of its χ, "
                "which its ± leaves out, and no gradient at w* tells more; raise burn_in and draws, or γ"
            )
            continue
        of_size = _Missing(kernel, *found, missing)
        shares[name] = of_size(chains)
        if shares[name] > MISSED:
            lines[name] = (
                f"{SHORT} {name}: its χ is about {min(shares[name], 1):.0%} too small after so few steps, which its ± "
                f"leaves out, and R-hat may not see; {of_size.advice(chains, estimator)}"
            )
    return Settling(shares, lines)


def _moves(free: Restricted, reading: ModelReading) -> bool:
    """Whether φ has another value elsewhere: where the component does not enter it, χ is 0 at any length."""
    noise = torch.from_numpy(generator(0, Stream.NOISE).standard_normal(free.num_parameters)).to(free.anchor)
    values = [float(reading(free.anchor[None] + size * noise)[1]) for size in (0.0, 0.1, 1.0)]
    return len(set(values)) > 1


def add_warnings(response: SampledResponse, settling: Settling, others: Sequence[str]) -> SampledResponse:
    """The response with more warnings. What is computed of φ's chains replaces the guess from their R-hat."""
    known = []
    for line in response.warnings:
        name = next((name for name in settling.shares if line.startswith(f"{NOT_QUITE} {name} (")), None)
        if name is None:
            known.append(line)
        elif name not in settling.lines:
            known.append(
                f"chains differ on {name} (R-hat {response.diagnostics[name].r_hat:.2f}), though where the loss is "
                f"curved as at w* they miss about {settling.shares[name]:.0%} of its χ: compare with χ of twice the "
                "burn_in and draws"
            )
    return replace(response, warnings=(*known, *settling.lines.values(), *others))


Missed = Callable[[Floats, Floats], Floats]
"""(pulls ελ/2 (k,), steps (D,) of the draws) → the share of a response that is missing (k,)."""


def _times(chains: ChainConfig) -> Floats:
    return chains.burn_in + chains.steps_between_draws * np.arange(1.0, chains.draws + 1)


def _of_pathwise(pulls: Floats, times: Floats) -> Floats:
    return ((1 - pulls)[:, None] ** times).mean(1)


def _of_covariance(pulls: Floats, times: Floats) -> Floats:
    """From the covariance C of a chain's states at the draws, centred on their mean, in units of that at rest."""
    rest, found, draws = 1 - pulls, [], len(times)
    apart, together = np.abs(times[:, None] - times), times[:, None] + times
    for r in rest:
        own = r**apart - r**together
        found.append(1 - (own.diagonal().mean() - own.mean()) * draws / max(draws - 1, 1))
    return np.array(found)


@dataclass(frozen=True)
class _Missing:
    """The share of χ that chains miss, from `curvatures` h (k,) that ∇φ meets, with their `shares` (k,) of it."""

    kernel: SGLD
    curvatures: Floats
    shares: Floats
    missing: Missed

    def __call__(self, chains: ChainConfig) -> float:
        """What is missing of χ, as a share of it: root mean squares over the gradients of single losses."""
        held, weight = self._held
        if not weight.sum() > 0:
            return 0.0
        lost = self.missing(np.clip(self.kernel.step_size * held / 2, 0.0, 1.0), _times(chains))
        return math.sqrt(float(weight @ lost**2 / weight.sum()))

    @property
    def _held(self) -> tuple[Floats, Floats]:
        """λ, and what has to be added up of each direction."""
        held = np.maximum(self.kernel.n_beta * self.curvatures + self.kernel.localization, 1e-12)
        return held, self.shares * np.maximum(self.curvatures, 0.0) / held**2

    def advice(self, chains: ChainConfig, estimator: str) -> str:
        """Settings under which little is missing."""
        longer = chains
        for _ in range(DOUBLINGS):
            if self(longer) <= AIM:
                break
            if estimator == "pathwise":
                longer = replace(longer, burn_in=max(10, 2 * longer.burn_in))
            else:
                longer = replace(longer, steps_between_draws=2 * longer.steps_between_draws)
        else:
            return "raise step_size, or γ"
        if estimator == "pathwise":
            return f"burn_in={longer.burn_in} leaves {self(longer):.0%}"
        return f"steps_between_draws={longer.steps_between_draws} leaves {self(longer):.0%}, or as many more draws"


def _curvatures(free: Restricted, gradient: Tensor) -> tuple[Floats, Floats]:
    rows, along = few_rows(free, ROWS), gradient / gradient.norm()
    parts = [lambda at, part=part: free.losses(at, part[None]).sum() / len(rows) for part in rows.split(free.cut(1))]
    return lanczos(Curvature.of(parts, free.anchor[None], along).times, along, STEPS)
