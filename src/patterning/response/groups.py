"""χ of groups: the q-weighted mean of the χ of their members, with less noise."""

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from patterning.core.errors import PatterningError
from patterning.core.rng import Stream, generator

Floats = NDArray[np.float64]


def cluster_samples(profiles: Floats, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Group number (n,) of each sample by k-means (k-means++ start) on its `profile` (n, features).

    A profile is anything known of a sample without its label or class: its losses under many models, its activations.
    Raises `PatterningError` when there are fewer samples than groups.
    """
    if len(profiles) < count:
        raise PatterningError(f"{len(profiles)} samples cannot make {count} groups")
    _, labels = kmeans2(profiles, count, minit="++", rng=generator(seed, Stream.GROUPS))
    return labels.astype(np.int64)


def group_means(values: Floats, groups: NDArray[np.int64], base_weights: Floats) -> Floats:
    """Each sample's `values` (n,) replaced by the q-weighted mean of its group, (n,)."""
    mass = np.bincount(groups, base_weights)
    return (np.bincount(groups, base_weights * values) / np.where(mass > 0, mass, 1.0))[groups]
