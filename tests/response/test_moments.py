"""Streaming sums against two passes over the stored draws."""

import numpy as np
import pytest

from patterning.core.errors import PatterningError
from patterning.response.moments import Moments, batch_covariances, join

CHAINS, OBSERVABLES, SAMPLES = 3, 2, 5
BATCH_OF_DRAW = np.repeat([0, 1, 2, 3], [4, 4, 4, 2])  # the last batch is short


def fill(phi: np.ndarray, losses: np.ndarray, phi_anchor: np.ndarray, at_anchor: np.ndarray) -> Moments:
    """All draws, phi (draws, c, k) and losses (draws, c, n)."""
    moments = Moments.empty(phi.shape[1], 4, at_anchor, phi_anchor)
    for batch, x, y in zip(BATCH_OF_DRAW, phi, losses, strict=True):
        moments.add(int(batch), x, y)
    return moments


def draws(seed: int, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((len(BATCH_OF_DRAW), CHAINS, 1))
    phi = offset + shared + rng.standard_normal((len(BATCH_OF_DRAW), CHAINS, OBSERVABLES))
    losses = -offset + shared * np.arange(SAMPLES) + rng.standard_normal((len(BATCH_OF_DRAW), CHAINS, SAMPLES))
    return phi, losses, offset + rng.standard_normal(OBSERVABLES), -offset + rng.standard_normal(SAMPLES)


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_batch_covariances_are_those_of_two_passes(offset: float) -> None:
    phi, losses, phi_anchor, at_anchor = draws(0, offset)
    found = batch_covariances(fill(phi, losses, phi_anchor, at_anchor))
    assert found.shape == (CHAINS, 4, OBSERVABLES, SAMPLES)
    total = len(BATCH_OF_DRAW)
    for c in range(CHAINS):
        x, y = phi[:, c] - phi[:, c].mean(0), losses[:, c] - losses[:, c].mean(0)
        products = x[:, :, None] * y[:, None, :] * total / (total - 1)
        for batch in range(4):
            np.testing.assert_allclose(found[c, batch], products[np.equal(BATCH_OF_DRAW, batch)].mean(0), atol=1e-10)
        # their mean, weighted by length, is numpy's covariance
        wanted = np.cov(phi[:, c].T, losses[:, c].T)[:OBSERVABLES, OBSERVABLES:]
        weight = np.bincount(BATCH_OF_DRAW) / total
        np.testing.assert_allclose(np.einsum("b,bkn->kn", weight, found[c]), wanted, atol=1e-10)


def test_sums_are_relative_to_the_anchor() -> None:
    phi, losses, phi_anchor, at_anchor = draws(1)
    moments = fill(phi, losses, phi_anchor, at_anchor)
    assert (moments.count == [4, 4, 4, 2]).all()
    np.testing.assert_allclose(moments.phi.sum(1), (phi - phi_anchor).sum(0), atol=1e-10)
    np.testing.assert_allclose(moments.losses.sum(1), (losses - at_anchor).sum(0), atol=1e-10)
    np.testing.assert_allclose(
        moments.products.sum(1),
        np.einsum("dck,dcn->ckn", phi - phi_anchor, losses - at_anchor),
        atol=1e-10,
    )


def test_float32_draws_are_summed_in_float64() -> None:
    phi, losses, phi_anchor, at_anchor = draws(2)
    single = fill(phi.astype(np.float32), losses.astype(np.float32), phi_anchor, at_anchor)
    widened = fill(phi.astype(np.float32).astype(float), losses.astype(np.float32).astype(float), phi_anchor, at_anchor)
    np.testing.assert_array_equal(single.products, widened.products)
    assert single.products.dtype == np.float64


def test_select_and_join_are_as_if_the_chains_had_been_added_so() -> None:
    phi, losses, phi_anchor, at_anchor = draws(3)
    whole = fill(phi, losses, phi_anchor, at_anchor)
    for chains in ([0, 2], [1], [2, 1, 0]):
        wanted = fill(phi[:, chains], losses[:, chains], phi_anchor, at_anchor)
        for name, array in whole.select(chains).as_arrays().items():
            np.testing.assert_array_equal(array, wanted.as_arrays()[name])
    rejoined = join([whole.select([0]), whole.select([1, 2])])
    for name, array in rejoined.as_arrays().items():
        np.testing.assert_array_equal(array, whole.as_arrays()[name])


def test_arrays_bring_the_moments_back() -> None:
    whole = fill(*draws(4))
    again = Moments(**whole.as_arrays())
    np.testing.assert_array_equal(batch_covariances(again), batch_covariances(whole))


def test_chains_around_different_checkpoints_are_not_joined() -> None:
    phi, losses, phi_anchor, at_anchor = draws(5)
    with pytest.raises(PatterningError, match="different checkpoints"):
        join([fill(phi, losses, phi_anchor, at_anchor), fill(phi, losses, phi_anchor, at_anchor + 1)])
