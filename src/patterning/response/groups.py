"""χ of groups: the q-weighted mean of the χ of their members, with less noise."""

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import as_floats
from patterning.core.errors import PatterningError, check_whole
from patterning.core.rng import Stream, generator

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def cluster_samples(profiles: Floats, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Group number (n,) of each sample by k-means (k-means++ start) on its `profile` (n, features).

    A profile is anything known of a sample without its label or class: its losses under many models, its activations.
    Raises `PatterningError` when there are fewer samples than groups.
    """
    profiles = as_floats("profiles", profiles, 2)
    check_whole("count", count, 1)
    if not np.isfinite(profiles).all():
        raise PatterningError("the profiles hold NaN or infinite entries: samples cannot be grouped by them")
    if len(profiles) < count:
        raise PatterningError(f"{len(profiles)} samples cannot make {count} groups")
    from scipy.cluster.vq import kmeans2  # slow to import

    _, labels = kmeans2(profiles, count, minit="++", rng=generator(seed, Stream.GROUPS))
    return labels.astype(np.int64)


def group_means(values: Floats, groups: NDArray[np.int64], base_weights: Floats) -> Floats:
    """Each sample's `values` (n,) replaced by the q-weighted mean of its group, (n,). `groups`: labels of any kind."""
    values, base_weights = as_floats("values", values, 1), as_floats("base_weights", base_weights, 1)
    if not len(values) == len(base_weights) == len(groups):
        sizes = f"{len(values)} values, {len(groups)} groups and {len(base_weights)} base weights"
        raise PatterningError(f"{sizes} do not fit")
    groups = np.unique(np.asarray(groups), return_inverse=True)[1]
    mass = np.bincount(groups, base_weights)
    return (np.bincount(groups, base_weights * values) / np.where(mass > 0, mass, 1.0))[groups]


def clustered_mean(values: Floats, label: Bools, rows: NDArray[np.int64]) -> dict[str, float]:
    """Mean of `values` (n,) where `label`, and its standard error with the samples of a row as one unit; their count.

    The ratio estimator's linearised error (Cochran 1977, §6): rows hold different numbers of labelled samples.
    """
    count = int(label.sum())
    if not count:
        return {"mean": float("nan"), "standard_error": float("nan"), "count": 0}
    mean = float(values[label].mean())
    influence = np.bincount(rows, np.where(label, values - mean, 0.0) / count)
    units = int((np.bincount(rows, label) > 0).sum())
    error = float(np.sqrt((influence**2).sum() * units / (units - 1))) if units > 1 else float("nan")
    return {"mean": mean, "standard_error": error, "count": count}
