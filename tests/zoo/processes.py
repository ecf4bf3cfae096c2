"""Random processes with known autocorrelation."""

import math

import numpy as np
from scipy.signal import lfilter


def autoregression(a: float, draws: int, chains: int, seed: int = 0) -> np.ndarray:
    """AR(1) with unit stationary variance, started there: (draws, chains); autocorrelation time (1+a)/(1-a)."""
    noise = np.random.default_rng(seed).standard_normal((draws, chains)) * math.sqrt(1 - a**2)
    noise[0] /= math.sqrt(1 - a**2)
    return lfilter([1], [1, -a], noise, axis=0)
