r"""Are chains long enough for φ to answer to weights? Told from curvature, as chains that start at w* cannot tell.

All chains start at w*, where a φ that is linear there has its mean already: its traces look settled, and R-hat is near
1, while its response to a push has only begun to grow. On a quadratic of curvature h the response reaches

.. math:: 1 - (1 - \epsilon\lambda/2)^t,\qquad \lambda = n\beta h + \gamma

of its value after t steps. So pathwise χ misses the mean of :math:`(1 - \epsilon\lambda/2)^t` over the draws, in each
direction that ∇φ has a part of. The covariance of draws is too small for two reasons: the chain has not spread to its
full width yet, and draws that follow each other are alike. Lanczos steps from ∇φ give the curvatures of these
directions, as a Gauss quadrature (Golub & Meurant 1994). The gradient of a single loss has a variance of about |h| in
each direction (where h > 0, as the Fisher information has it). What is missing is given as a share of χ for such
gradients.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError
from patterning.core.rng import Stream, generator
from patterning.models.restricted import Restricted
from patterning.posterior.chains import ChainConfig
from patterning.posterior.curvature import Curvature, lanczos
from patterning.posterior.diagnostics import MOST_R_HAT
from patterning.posterior.sgld import SGLD
from patterning.response.adjoint import ModelObservable, ModelReading
from patterning.response.capability import few_rows
from patterning.response.judged import APART, NOT_QUITE
from patterning.response.sample import SampledResponse

MISSED, AIM = 0.05, 0.03
"""Shares of χ that chains may miss: without a warning, and under the settings that are advised."""
DOUBLINGS = 12
"""How often a setting is doubled to find the advised one."""
SHORT = "chains are short for"
LARGEST = 2.0
"""An R-hat above this is that of chains which have not settled, whatever was computed."""
STEPS = 8
"""Of the Lanczos iteration."""
ROWS = 64
"""Most rows on which curvature is taken."""


@dataclass(frozen=True)
class Settling:
    """By observable, the share of χ that chains miss; and a sentence for each of which they miss much.

    `r_hats`: up to which R-hat settled chains of so many draws may be apart by chance.
    """

    shares: Mapping[str, float]
    lines: Mapping[str, str]
    r_hats: Mapping[str, float] = field(default_factory=dict)


def settling_of(
    free: Restricted,
    kernel: object,
    chains: ChainConfig,
    observables: Mapping[str, ModelObservable],
    response: SampledResponse,
) -> Settling:
    """What the chains of a response miss of the χ of each observable, and settings that miss less."""
    if not isinstance(kernel, SGLD):
        return Settling({}, {})
    missing = _of_pathwise if response.estimator == "pathwise" else _of_covariance
    flat = np.array([kernel.step_size * kernel.localization / 2])
    most = float(missing(flat, _times(chains))[0])  # where the loss is flat
    shares, lines, r_hats = dict[str, float](), dict[str, str](), dict[str, float]()
    for name, function in observables.items():
        found = _met_by(free, name, function)
        if found is None:
            if most <= MISSED:
                shares[name] = most
            else:
                lines[name] = (
                    f"chains may be short for {name}: where the loss is flat they miss about {min(most, 1):.0%} of its "
                    "χ, which its ± leaves out, and no gradient at w* tells more; raise burn_in and draws, or γ"
                )
            continue
        of_size = _Missing(kernel, *found, missing)
        shares[name], r_hats[name] = of_size(chains), of_size.r_hat(chains)
        if shares[name] > MISSED:
            lines[name] = (
                f"{SHORT} {name}: its χ is about {min(shares[name], 1):.0%} too small after so few steps, which its ± "
                f"leaves out, and R-hat may not see; {of_size.advice(chains, response.estimator)}"
            )
    return Settling(shares, lines, r_hats)


def _met_by(free: Restricted, name: str, function: ModelObservable) -> tuple[Floats, Floats] | None:
    """Curvatures that ∇φ meets, and their shares of it: none of a φ that nothing moves; None where not known."""
    try:
        reading = ModelReading(name, free, function)
        gradient = reading(free.anchor[None])[2]
        if not gradient.any():
            return None if _moves(free, reading) else (np.zeros(1), np.zeros(1))
        found = _curvatures(free, gradient)
    except (RuntimeError, NotImplementedError, PatterningError):  # φ or the loss has no derivative
        return None
    return found if np.isfinite(found[0]).all() else None


def _moves(free: Restricted, reading: ModelReading) -> bool:
    """Whether φ has another value elsewhere: where the component does not enter it, χ is 0 at any length."""
    noise = torch.from_numpy(generator(0, Stream.NOISE).standard_normal(free.num_parameters)).to(free.anchor)
    values = [float(reading(free.anchor[None] + size * noise)[1]) for size in (0.0, 0.1, 1.0)]
    return len(set(values)) > 1


def add_warnings(response: SampledResponse, settling: Settling, others: Sequence[str]) -> SampledResponse:
    """The response with more warnings. What is computed of φ's chains replaces the guess from their R-hat.

    Settled chains are far apart, too, where their draws span few of their correlation times. Where little of χ is
    missing and R-hat is no larger than such chains have by chance, it is no reason to refuse χ (`r_hat_limit`).
    """
    diagnostics = dict(response.diagnostics)
    for name, limit in settling.r_hats.items():
        if name not in settling.lines and MOST_R_HAT < diagnostics[name].r_hat <= limit:
            diagnostics[name] = replace(diagnostics[name], r_hat_limit=limit)
    known = []
    for line in response.warnings:
        kinds = (NOT_QUITE, APART)
        name = next((n for n in settling.shares if line.startswith(tuple(f"{kind} {n} (" for kind in kinds))), None)
        if name is None or (line.startswith(APART) and diagnostics[name].r_hat > diagnostics[name].r_hat_limit):
            known.append(line)
        elif name not in settling.lines:
            known.append(
                f"chains differ on {name} (R-hat {diagnostics[name].r_hat:.2f}), though where the loss is curved as at "
                f"w* they miss about {settling.shares[name]:.0%} of its χ: compare with χ of twice the burn_in and "
                "draws"
            )
    return replace(response, warnings=(*known, *settling.lines.values(), *others), diagnostics=diagnostics)


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

    def r_hat(self, chains: ChainConfig) -> float:
        """The R-hat of φ that chains exceed by chance in one case of forty, for chains that start at w*.

        The mean of half a chain scatters as the covariance of its draws says, in each direction; over the chains its
        variance has a χ² law (as Wilson and Hilferty approximate it).
        """
        held, _ = self._held
        rest = 1 - np.clip(self.kernel.step_size * held / 2, 0.0, 1.0)
        half, times = chains.draws // 2, _times(chains)
        between, within = 0.0, 0.0
        for part in (times[:half], times[half : 2 * half]):
            apart, together = np.abs(part[:, None] - part), part[:, None] + part
            for r, variance in zip(rest, self.shares / held, strict=True):
                own = variance * (r**apart - r**together)
                between += own.mean() / 2
                within += (own.diagonal().mean() - own.mean()) * half / max(half - 1, 1) / 2
        free = max(chains.chains - 1, 1)
        chance = (1 - 2 / (9 * free) + 1.96 * math.sqrt(2 / (9 * free))) ** 3
        return min(LARGEST, math.sqrt((half - 1) / half + chance * between / within)) if within > 0 else float("nan")

    @property
    def _held(self) -> tuple[Floats, Floats]:
        """λ, and what has to be added up of each direction."""
        held = np.maximum(self.kernel.n_beta * self.curvatures + self.kernel.localization, 1e-12)
        return held, self.shares * np.abs(self.curvatures) / held**2

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
