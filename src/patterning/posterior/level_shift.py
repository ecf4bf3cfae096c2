"""Are some values of a series at another level? Likelihood ratio tests against stationary autoregressions, AR(1).

Divisions of a chain in two levels are compared by the likelihood of a Gaussian AR(1) around them: all stretches, and
all values above a threshold. Divisions of chains in two groups likewise. The p-value of the best one is bounded by
Bonferroni over all divisions with as many switches (or groups with as many chains), so that it holds however that one
was found.

Losses of one solution are skewed, as a Gamma law is, and the cube root of such a law is close to normal (Wilson &
Hilferty, PNAS 17, 1931): skewed traces are tested in a root of their distance to their least value.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

MOST_MEANS, MOST_DRAWS = 64, 128
"""Longer traces are reduced to so many means of consecutive draws, and to so many single draws, or less."""

COEFFICIENTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98, 0.99)
"""Autoregressive coefficients a among which the likelihood is maximised."""

CHOICE_OF_COEFFICIENT = 4.0
"""Factor on p-values for that choice: without it AR(1) traces exceed the bound up to 3 times."""

LEAST_SKEWNESS = 0.5
"""Traces less skewed than this are tested as they are."""


def tame(values: Floats) -> Floats:
    """A trace (draws, chains) as it is, or a root of its distance to the end of its short side: the least skewed.

    Skewness is that within chains.
    """
    skew = _skewness(values)
    if abs(skew) <= LEAST_SKEWNESS:
        return values
    distance = values - values.min() if skew > 0 else values.max() - values
    return min((values, np.sqrt(distance), np.cbrt(distance)), key=lambda trace: abs(_skewness(trace)))


def _skewness(values: Floats) -> float:
    centred = values - values.mean(0)
    size = float((centred**2).mean())
    return float((centred**3).mean()) / size**1.5 if size > 0 else 0.0


def reductions(trace: Floats) -> list[tuple[Floats, int]]:
    """A trace (draws, …) as means of consecutive draws, and as every so-manieth draw, where that is not the same.

    With each how many draws a value stands for. Means see a stretch at another level better, single draws see states
    that alternate faster.
    """
    result = []
    for most in (MOST_MEANS, MOST_DRAWS):
        block = math.ceil(len(trace) / most)
        count = len(trace) // block
        parts = trace[: count * block].reshape(count, block, *trace.shape[1:])
        result.append((parts.mean(1) if most == MOST_MEANS else parts[:, block // 2], block))
    return result[:1] if len(trace) <= MOST_MEANS else result


def switch(values: Floats) -> tuple[float, Flags]:
    """The best division of one chain's values (m,) in two levels: a bound on its p-value, and the second level's.

    Single stretches are tried only where there are few values. Bonferroni counts all divisions with as many switches
    k as the best, and weighs k by 1 / k (k + 1).
    """
    m = len(values)
    if _constant(values):
        return 1.0, np.zeros(m, dtype=bool)
    paths = _thresholds(values)
    if m <= MOST_MEANS:
        paths = np.concatenate([_stretches(m), paths])
    if not len(paths):
        return 1.0, np.zeros(m, dtype=bool)
    ratio = ratios(values / values.std(), paths)
    switches = np.abs(np.diff(paths, axis=1)).sum(1).astype(np.int64)
    order = np.lexsort((-ratio, switches))
    best = order[np.unique(switches[order], return_index=True)[1]]  # of each number of switches
    k = switches[best]
    log_choices = gammaln(m) - gammaln(k + 1) - gammaln(m - k) + np.log(k * (k + 1.0))
    p = _bounded(ratio[best], m, log_choices)
    return float(p.min()), paths[best[p.argmin()]] > 0


@lru_cache(maxsize=8)
def _stretches(m: int) -> Floats:
    """Every stretch of `m` values, as rows (d, m) of 0 and 1."""
    first, last = np.triu_indices(m + 1, 1)
    place = np.arange(m)
    return _balanced((place >= first[:, None]) & (place < last[:, None]))


def _thresholds(values: Floats) -> Floats:
    """Values (m,), or their running medians, above each of them, as rows (d, m) of 0 and 1."""
    from scipy.ndimage import median_filter  # slow to import

    lines = [values, *(median_filter(values, size, mode="nearest") for size in (3, 5))]
    return _balanced(np.concatenate([line > line[:, None] for line in lines]))


def _balanced(paths: Flags) -> Floats:
    """Those of the divisions (d, m) both of whose levels hold a sixteenth of the values, and four, at least."""
    m, count = paths.shape[1], paths.sum(1)
    least = max(4, m // 16)
    return paths[(count >= least) & (m - count >= least)].astype(np.float64)


def ratios(values: Floats, paths: Floats) -> Floats:
    """Doubled log likelihood ratios (d,) of Gaussian AR(1) around two levels, divided as in `paths` (d, m), to one.

    Whitened values y_t - a y_{t-1} step by r_t = s_t - a s_{t-1} where the mean steps by s: all sums over r are sums
    over s.
    """
    m, without, within = len(values), math.inf, np.full(len(paths), math.inf)
    whites, levels = [], []
    for a in COEFFICIENTS:
        scale = math.sqrt(1 - a**2)  # the first value has the stationary variance
        level = np.append(scale, np.full(m - 1, 1 - a))
        level /= math.sqrt(level @ level)
        white = np.append(scale * values[0], values[1:] - a * values[:-1])
        whites.append(white - level * (level @ white))
        levels.append(level)
    along, common = (paths @ np.stack([_back(u, a) for u, a in zip(part, COEFFICIENTS, strict=True)], axis=1)
                     for part in (whites, levels))  # fmt: skip
    total, pairs = paths.sum(1), (paths[:, 1:] * paths[:, :-1]).sum(1)
    for i, a in enumerate(COEFFICIENTS):
        size = total - a**2 * paths[:, 0] + a**2 * (total - paths[:, -1]) - 2 * a * pairs - common[:, i] ** 2
        gain = along[:, i] ** 2 / np.maximum(size, 1e-12)
        left, determinant = float(whites[i] @ whites[i]), math.log(1 - a**2)
        without = min(without, m * math.log(max(left, 1e-300)) - determinant)
        within = np.minimum(within, m * np.log(np.maximum(left - gain, 1e-12 * left + 1e-300)) - determinant)
    return without - within


def _back(white: Floats, a: float) -> Floats:
    """v (m,) with Σ v s = Σ white r, for whitened steps r of s."""
    back = white - a * np.append(white[1:], 0)
    back[0] = math.sqrt(1 - a**2) * white[0] - a * white[1]
    return back


def _bounded(ratio: Floats, count: int, log_choices: Floats) -> Floats:
    """Bound on p-values of doubled log likelihood ratios between normal models of `count` values."""
    from scipy.stats import f as fisher

    statistic = np.expm1(np.minimum(ratio / count, 700.0)) * (count - 3)
    log_tail = fisher.logsf(statistic, 1, count - 3)
    return np.exp(np.minimum(math.log(CHOICE_OF_COEFFICIENT) + log_choices + log_tail, 0.0))


def apart(values: Floats) -> tuple[float, Flags]:
    """The best division of chains, values (m, chains), in two groups of other means: p-value, and the smaller group.

    The chains share their coefficient a; groups are runs of chains in order of their means, and Bonferroni counts all
    groups of that size.
    """
    m, chains = values.shape
    if chains < 2 or _constant(values):
        return 1.0, np.zeros(chains, dtype=bool)
    order, size = np.argsort(values.mean(0)), np.arange(1, chains)
    without, within = math.inf, np.full(chains - 1, math.inf)
    for a in COEFFICIENTS:
        level = np.append(math.sqrt(1 - a**2), np.full(m - 1, 1 - a))
        white = np.concatenate([level[:1, None] * values[:1], values[1:] - a * values[:-1]])[:, order]
        means = level @ white / (level @ level)  # of each chain, by generalised least squares
        left = float(((white - level[:, None] * means.mean()) ** 2).sum())
        below = np.cumsum(means - means.mean())[:-1]
        gain = (level @ level) * below**2 * chains / (size * (chains - size))
        determinant = chains * math.log(1 - a**2)
        without = min(without, values.size * math.log(max(left, 1e-300)) - determinant)
        within = np.minimum(within, values.size * np.log(np.maximum(left - gain, 1e-300)) - determinant)
    log_groups = gammaln(chains + 1) - gammaln(size + 1) - gammaln(chains - size + 1) + math.log(chains)
    p = _bounded(without - within, values.size, log_groups)
    best = int(np.argmin(p))
    lower = np.isin(np.arange(chains), order[: best + 1])
    return float(p[best]), lower if 2 * (best + 1) <= chains else ~lower


def _constant(values: Floats) -> bool:
    return not np.ptp(values) > 1e-12 * np.abs(values).max()
