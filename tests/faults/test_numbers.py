"""Public functions on numbers: masks, types and levels that would give a wrong number are refused."""

import numpy as np
import pytest
import torch

from patterning.core.errors import PatterningError
from patterning.core.rng import Stream, generator
from patterning.intervention.permute import permuted, permuted_within
from patterning.intervention.solve import solve
from patterning.intervention.weights import make_weights, summarise
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.training.weighted import TrainConfig, advance, init_state
from patterning.verification.controls import labelled, labelled_like, thinned
from patterning.verification.effects import paired_effect
from tests.faults.common import chi, linear_task

Q = np.full(12, 1 / 12)
RHO = np.linspace(0.1, 1.9, 12)
BITS = np.array([0, 1] * 6)


def test_permuted_weights_with_free_none_are_permuted() -> None:
    control = permuted(RHO, Q, None, 3)
    assert not np.array_equal(control, RHO)
    np.testing.assert_allclose(np.sort(control), np.sort(RHO))
    np.testing.assert_array_equal(control, permuted(RHO, Q, np.ones(12, dtype=bool), 3))
    assert permuted(np.arange(1, 5), np.full(4, 0.25), None, 0).dtype == np.float64


def test_unsigned_outcomes_do_not_wrap() -> None:
    for dtype in (np.uint8, np.int64, np.float32, bool):
        a, b = np.array([1, 2, 3, 4]), np.array([2, 4, 5, 9])
        if dtype is bool:
            a, b = np.array([0, 0, 1, 0]), np.array([1, 1, 1, 0])
        effect = paired_effect(a.astype(dtype), b.astype(dtype))
        assert effect.difference == pytest.approx((a - b).mean())
    assert paired_effect([1, 2, 3, 4], [2, 4, 5, 9]).difference == -2.5  # type: ignore[arg-type]
    assert paired_effect(torch.tensor([1, 2, 3]), torch.tensor([2, 4, 5])).difference == pytest.approx(-5 / 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call",
    [
        lambda mask: make_weights(RHO, Q, policy="clip", alpha=1.0, free=mask),
        lambda mask: summarise(RHO, Q, mask),
        lambda mask: permuted(RHO, Q, mask, 0),
        lambda mask: thinned(mask, Q, None, 0.1),
        lambda mask: thinned(np.arange(12) < 3, Q, mask, 0.1),
        lambda mask: labelled(mask, 2.0),
        lambda mask: labelled_like(RHO, mask, "more"),
        lambda mask: solve(RHO[None], Q, np.array([1.0]), 30.0, free=mask),
    ],
)
def test_integer_masks_are_refused(call) -> None:
    call(BITS.astype(bool))
    call(torch.from_numpy(BITS.astype(bool)))
    call(BITS.astype(bool).tolist())
    for mask in (BITS, BITS.astype(np.uint8), BITS.astype(float), np.flatnonzero(BITS)):
        with pytest.raises(PatterningError, match="it must be bool"):
            call(mask)


def test_integer_masks_are_refused_by_reliability() -> None:
    response = chi(linear_task()).by_component["full"].susceptibility
    with pytest.raises(PatterningError, match="must be bool"):
        response.reliability(np.ones(128, dtype=np.int64))  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [95, -1, 0, 1, True, float("nan"), "0.95"])
def test_levels_outside_of_0_and_1_are_refused(level) -> None:
    with pytest.raises(PatterningError, match=r"level is .*between 0 and 1"):
        paired_effect(np.arange(4.0), np.zeros(4), level=level)
    with pytest.raises(PatterningError, match=r"level is .*between 0 and 1"):
        chi(linear_task()).half_width(level)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ChainConfig(4, 8, -3, 2, 16), "burn_in is -3"),
        (lambda: ChainConfig(4, 8, 4, 2, 16, seed=0.5), "seed is 0.5: it must be a whole number"),  # type: ignore[arg-type]
        (lambda: ChainConfig(True, 8, 4, 2, 16), "chains is True"),
        (lambda: ChainConfig(4, 8.0, 4, 2, 16), "draws is 8.0"),  # type: ignore[arg-type]
        (lambda: ChainConfig(4, 8, 4, 2, 16, seed=-1), "seed is -1"),
        (lambda: generator(1.5, Stream.NOISE), "seed is 1.5"),  # type: ignore[arg-type]
        (lambda: generator(2**63, Stream.NOISE), "at most"),
        (lambda: SGLD(30, True, 1e-3), "localization is True"),
        (lambda: SGLD("30", 100, 1e-3), "n_beta is '30'"),  # type: ignore[arg-type]
        (lambda: TrainConfig(10, learning_rate=float("inf")), "learning_rate is inf"),
        (lambda: TrainConfig(10, learning_rate=-1e-3), "learning_rate is -0.001"),
        (lambda: TrainConfig(10, weight_decay=float("nan")), "weight_decay is nan"),
        (lambda: TrainConfig(10.5), "steps is 10.5"),  # type: ignore[arg-type]
        (lambda: TrainConfig(10, batch_size=0), "batch_size is 0"),
        (lambda: make_weights(RHO, Q, policy="clip", alpha=float("inf")), "alpha is inf"),
        (lambda: make_weights(RHO, Q[:5], policy="clip", alpha=1.0), "base_weights must be 12"),
        (lambda: thinned(BITS > 0, Q, None, -1.0), "keep is -1"),
        (lambda: solve(RHO[None], Q, np.array([np.nan]), 30.0), "target holds NaN"),
        (lambda: solve(RHO[None], Q, np.array([1.0]), float("nan")), "n_beta is nan"),
        (lambda: solve(RHO[None], -Q, np.array([1.0]), 30.0), "base_weights must be"),
        (lambda: permuted_within(RHO, np.linspace(0, 1, 12), 0), "whole numbers"),
        (lambda: paired_effect(np.array(["a", "b", "c"]), np.zeros(3)), "must be real numbers"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_mean_nothing_are_refused(call, message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        call()


def test_numpy_integers_are_whole_numbers() -> None:
    assert ChainConfig(np.int64(4), 8, 4, 2, 16, seed=np.uint8(3)).seed == 3  # type: ignore[arg-type]


def test_negative_weights_do_not_train() -> None:
    task = linear_task()
    config, state = TrainConfig(3, batch_size=16), init_state(task, [0])
    with pytest.raises(PatterningError, match="2 of 128 weights are negative"):
        advance(task, config, state, [0], torch.cat([-torch.ones(2), torch.ones(126)]), 3)
