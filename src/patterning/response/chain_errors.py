"""Means over chains with their errors: chains are the independent units, whatever happens within them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from patterning.core.arrays import check_level
from patterning.response.moderated import moderate

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """`values` (n,) with their Monte Carlo `standard_error` (n,) of so many `degrees_of_freedom` (n,)."""

    values: Floats
    standard_error: Floats
    degrees_of_freedom: Floats

    def half_width(self, level: float = 0.95) -> Floats:
        """`values` ± this (n,) is an interval for each entry: Student's t times the standard error."""
        check_level(level)
        return stdtrit(self.degrees_of_freedom, (1 + level) / 2) * self.standard_error


@dataclass(frozen=True)
class Cosine:
    """Σ q a b / √(Σ q a² Σ q b²) of two responses, with its jackknife standard error over chains.

    Noise in a response makes it smaller.
    """

    value: float
    standard_error: float


def over_chains(by_chain: Floats, offset: Floats | float = 0.0) -> Estimate:
    """Mean of chains (chains, n) plus a known `offset`, with moderated standard errors over chains."""
    count, values = len(by_chain), by_chain.mean(0)
    variance, freedom = moderate(by_chain.var(0, ddof=1), count - 1, np.abs(values))
    return Estimate(values + offset, np.sqrt(variance / count), np.full(len(values), float(freedom)))


def weighted(values: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Σ weight · values (n,)."""
    return np.tensordot(np.array(weights), np.stack(values), 1)


def weighted_sum(parts: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Weighted sum of independent estimates; degrees of freedom by Welch and Satterthwaite."""
    variances = [(weight * part.standard_error) ** 2 for part, weight in zip(parts, weights, strict=True)]
    total = np.sum(variances, axis=0)
    spent = np.sum([v**2 / part.degrees_of_freedom for part, v in zip(parts, variances, strict=True)], axis=0)
    freedom = np.full(len(total), np.inf)
    np.divide(total**2, spent, out=freedom, where=spent > 0)
    return Estimate(weighted([part.values for part in parts], weights), np.sqrt(total), freedom)


def cosine(a: Floats, b: Floats, base_weights: Floats) -> float:
    """Σ q a b / √(Σ q a² Σ q b²) of a, b (n,); NaN where one of them is 0."""
    norm = np.sqrt((base_weights @ a**2) * (base_weights @ b**2))
    return float(base_weights @ (a * b) / norm) if norm > 0 else float("nan")


def jackknife(statistic: Callable[[list[Floats]], float], groups: Sequence[Floats]) -> Cosine:
    """A function of the mean vectors of groups of chains (chains, n), with its delete-one-chain jackknife error."""
    means, variance = [group.mean(0) for group in groups], 0.0
    for i, group in enumerate(groups):
        count = len(group)
        without = [(count * means[i] - chain) / (count - 1) for chain in group]
        values = np.array([statistic([*means[:i], mean, *means[i + 1 :]]) for mean in without])
        variance += (count - 1) / count * float(((values - values.mean()) ** 2).sum())
    return Cosine(statistic(means), float(np.sqrt(variance)))
