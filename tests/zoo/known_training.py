"""A training that weights on the data move by a known amount, for the tests of `verify`."""

import numpy as np

import patterning as pt

N = 40
X = np.linspace(-1, 1, N)


def noise(seed: int) -> float:
    """What a seed does to every arm alike."""
    return 3.0 * float(np.random.default_rng(seed).standard_normal())


def train(weights: pt.Weights, seed: int) -> dict[str, float]:
    """Outcomes that weights move by a known amount: `tilt` by Σ q (ρ - 1) x, `uneven` by the variance of ρ."""
    own = np.random.default_rng([seed, int(1e6 * weights.rho[0])]).standard_normal(4)
    pull = float(weights.base_weights @ ((weights.rho - 1) * X))
    return {
        "tilt": noise(seed) + pull + 0.02 * own[0],
        "uneven": noise(seed) + float(weights.rho.var()) + 0.01 * own[1],
        "nothing": noise(seed) + own[2],
        "grew": pull + 0.01 * own[3] > 0.1,
    }


def along(strength: float) -> pt.Weights:
    return pt.Weights.of_rows(1 + strength * X)
