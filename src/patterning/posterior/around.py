"""Mean losses around several solutions of one task, and which chains may be believed: those that stayed there.

A chain that escapes to another solution mixes two sets of losses. It is noticed by descents without noise from some of
its draws, and is left out by name before any mean is taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patterning.core.errors import PatterningError
from patterning.core.plain import Document
from patterning.posterior.diagnostics import diagnose, split_r_hat
from patterning.posterior.langevin import Gradient, descend, walk
from patterning.posterior.sgld import SGLD

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHECK_EVERY = 10
"""Every so many draws a descent without noise tells which solution a chain is at."""


@dataclass(frozen=True)
class Landscape:
    """What a sampler must know of a task: ∇L (r, P), losses of samples (r, n), and the solution of each row (r,).

    `names` are the solutions' names; a state of `len(names)` is none of them. `rate` and `steps` are of descents.
    """

    gradient: Gradient
    losses: Callable[[Floats], Floats]
    states: Callable[[Floats], Ints]
    names: Sequence[str]
    rate: float
    steps: int


@dataclass(frozen=True)
class Schedule:
    """Length of the chains: draws are taken every `steps_between_draws` steps after `burn_in`."""

    steps: int
    burn_in: int
    steps_between_draws: int


@dataclass(frozen=True)
class Around:
    """A solution: losses at its minimum (n,), mean losses of each chain that stayed (chains, n), and diagnostics.

    `llc` is λ̂ = nβ (E[L] - L(w*)) with its standard error over chains; `r_hat` and `ess` are of the mean loss L,
    `worst_r_hat` is the largest over single losses; `excluded` says why each chain that is missing was left out.
    """

    name: str
    at_minimum: Floats
    chain_means: Floats
    llc: float
    llc_error: float
    r_hat: float
    worst_r_hat: float
    ess: float
    excluded: tuple[str, ...]

    @property
    def mean_losses(self) -> Floats:
        """E_B[ℓ_j], (n,)."""
        return self.chain_means.mean(axis=0)

    @property
    def mean_losses_error(self) -> Floats:
        """Standard error of `mean_losses` over chains, (n,)."""
        return self.chain_means.std(axis=0, ddof=1) / np.sqrt(len(self.chain_means))

    def summary(self) -> Document:
        """Everything but the single chains, for a file."""
        names = ("name", "at_minimum", "llc", "llc_error", "r_hat", "worst_r_hat", "ess", "excluded")
        fields = {name: getattr(self, name) for name in (*names, "mean_losses", "mean_losses_error")}
        return fields | {"loss": self.at_minimum.mean(), "chains": len(self.chain_means)}


def sample_around(
    landscape: Landscape, minima: Floats, kernel: SGLD, schedule: Schedule, seed: int, chains: Sequence[int]
) -> tuple[Floats, Ints]:
    """The numbered `chains` around `minima` (B, P): losses (draws, B, chains, n) and states (checks, B, chains).

    A chain's noise depends on (seed, solution, chain number) alone, so chains may be computed in any company.
    """
    anchors = np.repeat(minima, len(chains), axis=0)
    rows = [(seed, len(minima) * chain + solution) for solution in range(len(minima)) for chain in chains]
    losses, checked = [], []

    def visit(step: int, position: Floats) -> None:
        since = step - schedule.burn_in
        if since > 0 and since % schedule.steps_between_draws == 0:
            losses.append(landscape.losses(position))
            if len(losses) % CHECK_EVERY == 0:
                checked.append(position)

    walk(landscape.gradient, anchors, anchors, kernel, rows, schedule.steps, visit)
    ends = descend(landscape.gradient, np.concatenate(checked), landscape.rate, landscape.steps)
    shape = (len(minima), len(chains))
    return np.stack(losses).reshape(len(losses), *shape, -1), landscape.states(ends).reshape(len(checked), *shape)


def judge_chains(
    landscape: Landscape,
    home: int,
    minimum: Floats,
    losses: Floats,
    states: Ints,
    n_beta: float,
    *,
    force: bool = False,
) -> Around:
    """Diagnose the chains around solution `home` at `minimum` (P,): losses (draws, chains, n), states (checks, chains).

    Raises `PatterningError` where fewer than half of the chains (or fewer than 4) stayed, or, unless `force`, where
    those that stayed do not agree (R-hat above 1.1).
    """
    name = landscape.names[home]
    overflowed = ~np.isfinite(losses).all(axis=(0, 2))
    left = (states != home).any(axis=0) & ~overflowed
    stayed = ~overflowed & ~left
    excluded = [f"{name}, chain {c}: overflowed" for c in np.flatnonzero(overflowed)]
    excluded += [f"{name}, chain {c}: {_elsewhere(landscape, states[:, c], home)}" for c in np.flatnonzero(left)]
    if stayed.sum() < max(4, len(stayed) / 2):
        raise PatterningError(
            f"only {stayed.sum()} of {len(stayed)} chains stayed at their solution ({excluded[0]}): "
            "raise the localization, or lower the step size"
        )
    kept = losses[:, stayed]
    of_mean = diagnose(kept.mean(axis=2))
    worst = max(of_mean.r_hat, *(split_r_hat(kept[:, :, j]) for j in range(kept.shape[2])))
    if worst > 1.1 and not force:
        raise PatterningError(f"the chains around the {name} do not agree (R-hat {worst:.2f}): sample more steps")
    chain_means, at_minimum = kept.mean(axis=0), landscape.losses(minimum[None])[0]
    rise = n_beta * (chain_means.mean(axis=1) - at_minimum.mean())
    error = float(rise.std(ddof=1) / np.sqrt(len(rise)))
    return Around(
        name, at_minimum, chain_means, float(rise.mean()), error, of_mean.r_hat, worst, of_mean.ess, tuple(excluded)
    )


def _elsewhere(landscape: Landscape, states: Ints, home: int) -> str:
    away = (*landscape.names, "another state")[int(states[states != home][0])]
    return f"at the {away} at {(states != home).sum()} of {len(states)} checks"
