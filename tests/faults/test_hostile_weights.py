"""Directions, weights, their files and their controls, with uneven base weights, rows of tokens and hostile input."""

import json
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from patterning.core.errors import PatterningError, PatterningWarning
from patterning.core.samples import Data, Samples
from patterning.intervention.data_weights import Weights
from patterning.intervention.direction import Direction, Rows, find_direction
from patterning.intervention.permute import moved, permuted, permuted_within
from patterning.intervention.solve import solve
from patterning.intervention.weights import make_weights, summarise
from patterning.verification.controls import compressibility, labelled_like, random_direction_like, thinned

RNG = np.random.default_rng(0)
Q = np.arange(1.0, 41)
Q /= Q.sum()
RHO = RNG.exponential(size=40)
RHO /= Q @ RHO

# Controls under uneven base weights


def test_permuted_weights_keep_the_total_and_their_values_up_to_one_factor() -> None:
    for seed in range(20):
        dealt = permuted(RHO, Q, None, seed)
        assert Q @ dealt == pytest.approx(1, abs=1e-12)
        ratios = np.sort(dealt) / np.sort(RHO)
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)
    found = Weights.of_rows(RHO, base_weights=Q).permuted(3)
    assert found.facts["rescaled"] == pytest.approx(np.sort(found.rho)[0] / np.sort(RHO)[0])
    assert "rescaled" not in Weights.of_rows(RHO).permuted(3).facts


def test_permuted_within_strata_keeps_their_totals_and_frozen_samples_stay_at_one() -> None:
    strata, free = np.arange(40) % 3, np.arange(40) < 30
    rho = np.where(free, RHO, 1.0)
    rho[free] *= Q[free].sum() / (Q * rho)[free].sum()
    weights = Weights(rho, np.arange(40), Q, free)
    dealt = weights.permuted(1, within=strata)
    np.testing.assert_array_equal(dealt.rho[~free], 1.0)
    for stratum in range(3):
        own = free & (strata == stratum)
        assert (Q * dealt.rho)[own].sum() == pytest.approx((Q * rho)[own].sum(), rel=1e-12)
    assert Q @ dealt.rho == pytest.approx(1, abs=1e-12)


def test_samples_without_base_weight_take_no_part() -> None:
    q = np.where(np.arange(40) < 5, 0.0, Q)
    dealt = permuted(RHO, q, None, 0)
    np.testing.assert_array_equal(dealt[:5], RHO[:5])
    assert q @ dealt == pytest.approx(q @ RHO)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: permuted(np.ones(8), np.ones(8), None, 0), "8 free weights are all equal"),
        (lambda: permuted(RHO, Q, np.arange(40) == 3, 0), "1 free weights are all equal"),
        (lambda: permuted(RHO, Q, np.zeros(40, bool), 0), "no free sample has a base weight"),
        (lambda: permuted(RHO * np.nan, Q, None, 0), "NaN or infinite"),
        (lambda: permuted(RHO, -Q, None, 0), "base_weights must be"),
        (lambda: permuted_within(RHO, np.arange(40), 0), "within each stratum all weights are equal"),
        (lambda: permuted_within(np.arange(40) % 4 + 1.0, np.arange(40) % 4, 0), "within each stratum all weights"),
        (lambda: Weights.of_rows(RHO).permuted(0, within=np.arange(20)), r"labels \(20,\) for weights \(40,\)"),
        (
            lambda: Weights.of_rows(RHO).permuted(0, within=np.full(40, np.nan)),
            r"within have no label \(NaN or None\) in 40 rows",
        ),
    ],
)
def test_a_control_that_is_the_treatment_is_refused(call, message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        call()


def test_a_control_that_is_nearly_the_treatment_is_said() -> None:
    strata = np.where(np.arange(40) < 2, 0, np.arange(40))  # two samples may change places
    with pytest.warns(PatterningWarning, match=r"moves \d% of the weight .* nearly the treatment"):
        permuted_within(RHO, strata, 1)
    three = np.array([1.0, 2, 3])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        same = sum(np.array_equal(permuted(three, np.ones(3), None, seed), three) for seed in range(60))
    assert len(caught) == same > 0  # one deal in six moves nothing
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(200):
            permuted(RHO, Q, None, seed)


def test_what_is_moved_is_a_share_of_the_mean_over_all_permutations() -> None:
    rho, q = np.array([3.0, 1, 0.5, 2]), np.array([0.1, 0.2, 0.3, 0.4])
    rng = np.random.default_rng(0)
    shares = [moved(rho, rng.permutation(rho), q) for _ in range(4000)]
    assert np.mean(shares) == pytest.approx(1, abs=0.03)
    assert moved(rho, rho, q) == 0


# Directions over rows of tokens

ROWS, T, CHAINS = 6, 4, 8
SAMPLES = Samples(
    np.repeat(np.arange(ROWS), T), np.tile(np.arange(T), ROWS), np.full(ROWS * T, 1 / (ROWS * T)), np.arange(ROWS * T)
)


def direction(by_token: float = 1.0, free=None) -> Direction:
    """Of χ with a part that is one number a row and a part that differs between the tokens of a row."""
    rng = np.random.default_rng(1)
    rows = np.repeat(rng.standard_normal(ROWS), T)
    tokens = np.tile(rng.standard_normal(T), ROWS) * by_token
    truth = rows + tokens - (rows + tokens).mean()
    chains = (truth + 0.01 * rng.standard_normal((CHAINS, 1, ROWS * T))).astype(float)
    given = Rows(("phi",), chains.mean(0), chains, np.full((1, ROWS * T), 1e-3), (0.99,))
    data = Data(ROWS, T, np.arange(ROWS), "", np.full((ROWS, T), 1 / (ROWS * T)))
    return find_direction(given, SAMPLES, data, 10.0, {"phi": 1.0}, (), free=free)


def response_to(weights: Weights, along: Direction) -> float:
    """d⟨φ⟩ = nβ Σ q (ρ - 1) χ, from all chains."""
    rho = np.repeat(weights.rho, T) if weights.rho.ndim == 1 else weights.rho.ravel()
    chi = np.mean([chain for fold in along.folds for chain in fold.response], axis=0)[0]
    return float((chi * SAMPLES.weight) @ (rho - 1))


@pytest.mark.parametrize("free", [None, np.tile([True, True, False, False], ROWS)])
def test_facts_of_weights_by_row_are_those_of_the_rows(free) -> None:
    found = direction()
    strength = 0.2
    by_token, by_row = (found.weights(strength, free=free, per=per) for per in ("sample", "row"))
    assert by_row.rho.shape == (ROWS,)
    for weights in (by_token, by_row):
        expected = weights.facts["predicted_per_strength"]["phi"]
        assert expected["value"] * strength == pytest.approx(response_to(weights, found), rel=0.02)
        assert weights.facts["effective_sample_size"] == pytest.approx(weights.summary().effective_sample_size)
        assert expected["low"] < expected["value"] < expected["high"]
    token, row = (w.facts["predicted_per_strength"]["phi"]["value"] for w in (by_token, by_row))
    assert row != pytest.approx(token, rel=0.05)
    assert by_row.facts["per"] == "row"


def test_rows_that_carry_no_signal_promise_no_change() -> None:
    """Tokens differ, rows do not: averaged over rows, nothing is left."""
    rng = np.random.default_rng(2)
    chi = np.tile([1.0, -1, 2, -2], ROWS)
    chains = chi + 1e-3 * rng.standard_normal((CHAINS, 1, ROWS * T))
    given = Rows(("phi",), chains.mean(0), chains, np.full((1, ROWS * T), 1e-4), (0.99,))
    data = Data(ROWS, T, np.arange(ROWS), "", np.full((ROWS, T), 1 / (ROWS * T)))
    found = find_direction(given, SAMPLES, data, 10.0, {"phi": 1.0}, ())
    assert found.predicted["phi"].value > 10
    by_row = found.weights(0.2, per="row").facts["predicted_per_strength"]["phi"]
    assert abs(by_row["value"]) < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": float("nan")}, "strength is nan"),
        ({"strength": float("inf")}, "strength is inf"),
        ({"strength": -1}, "strength is -1"),
        ({"strength": "2"}, "strength is '2'"),
        ({"strength": True}, "strength is True"),
        ({"policy": "clipped"}, "policy 'clipped' is not one of clip, tilt, rank, rank-tilt"),
        ({"cap": 1}, "cap is 1: it must be above 1"),
        ({"cap": "3"}, "cap is '3'"),
        ({"cap": float("nan")}, "cap is nan"),
        ({"min_ess": 1.5}, "min_ess is 1.5"),
        ({"min_ess": 0}, "min_ess is 0"),
        ({"min_ess": "half"}, "min_ess is 'half'"),
        ({"free": np.array([0, 3, 5])}, "it must be bool"),
        ({"free": np.zeros(ROWS * T, bool)}, "no free sample has a base weight"),
        ({"per": "token"}, "per is 'token'"),
    ],
)
def test_weights_of_a_direction_refuse_what_means_nothing(options, message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        direction().weights(**{"strength": 0.2, **options})


def asked(wanted, hold=(), **options) -> Direction:
    rows = Rows(("a", "b"), np.eye(2), np.stack([np.eye(2)] * 4), np.full((2, 2), 1e-3), (0.9, 0.9))
    samples = Samples(np.arange(2), np.zeros(2, int), np.full(2, 0.5), np.arange(2))
    return find_direction(rows, samples, None, 1.0, wanted, hold, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: asked({"c": 1}), "χ has no row 'c': it has a, b"),
        (lambda: asked({"a": 1}, "bb"), "χ has no row 'bb': it has a, b"),
        (lambda: asked({"a": 1}, ["a"]), "asked for and held"),
        (lambda: asked("a"), "give a change for each row"),
        (lambda: asked({"a": "up"}), "must be a number"),
        (lambda: asked({"a": float("nan")}), "must be finite"),
        (lambda: asked({"a": 0}), "not 0 for some row"),
        (lambda: asked({"a": 1}, min_reliability="high"), "min_reliability is 'high'"),
        (lambda: direction().needed("loss", 1.0), "χ has no row 'loss': it has phi"),
    ],
)
def test_unknown_rows_are_named_with_the_known_ones(call, message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        call()


def test_a_row_without_a_number_is_refused_in_words() -> None:
    rows = Rows(("a",), np.array([[np.nan, 1.0]]), np.ones((4, 1, 2)), np.zeros((1, 2)), (0.9,))
    samples = Samples(np.arange(2), np.zeros(2, int), np.full(2, 0.5), np.arange(2))
    assert "NaN" in str(find_direction(rows, samples, None, 1.0, {"a": 1}, ()).refused)
    rows = Rows(("a",), np.eye(2)[:1], np.ones((4, 1, 2)), np.zeros((1, 2)), (float("nan"),))
    assert "reliability of χ is not known (a)" in str(find_direction(rows, samples, None, 1.0, {"a": 1}, ()).refused)


# Weights and their files


def test_base_weights_of_solve_count_by_their_ratios() -> None:
    chi, target = RNG.standard_normal((2, 40)), np.array([1.0, 0.0])
    one, other = (solve(chi, q, target, 10.0) for q in (Q, 40 * Q))
    np.testing.assert_allclose(one.s, other.s)
    assert 10 * (chi * Q) @ one.s == pytest.approx([1, 0], abs=1e-9)
    integers = solve((100 * chi).astype(np.int16), np.arange(1, 41, dtype=np.uint8), target.astype(np.uint8), 10)
    np.testing.assert_allclose(integers.s, solve((100 * chi).astype(np.int16).astype(float), Q, target, 10.0).s)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_weights(RHO, Q, policy="clip", alpha=True), "alpha is True"),
        (lambda: make_weights(RHO, Q, policy="clip", alpha=1.0, free=np.zeros(40, bool)), "no free sample"),
        (lambda: make_weights(RHO * np.nan, Q, policy="clip", alpha=1.0), "NaN"),
        (lambda: summarise(RHO, Q, np.zeros(40, bool)), "no free sample has any weight"),
        (lambda: summarise(-RHO, Q), "negative, NaN or infinite"),
        (lambda: labelled_like(RHO, np.arange(40) < 9, "fewer"), "toward is 'fewer'"),  # type: ignore[arg-type]
        (lambda: labelled_like(RHO * np.nan, np.arange(40) < 9, "more"), "must be finite"),
        (lambda: thinned(np.arange(40) < 9, Q, None, "half"), "keep is 'half'"),  # type: ignore[arg-type]
        (lambda: thinned(np.arange(40) < 9, np.where(np.arange(40) < 9, Q, 0), None, 0.0), "nothing would be left"),
        (lambda: random_direction_like(RHO * np.nan, 0), "NaN"),
        (lambda: random_direction_like(RHO, 0, np.full((40, 2), np.nan)), "profiles hold NaN"),
        (lambda: compressibility(["text"]), "text 0 is str: it must be bytes"),  # type: ignore[list-item]
        (lambda: Weights.of_rows([1.0, 2.0], ids=["a", "a"]), "'a' is the id of row 0 and of row 1"),
        (lambda: Weights.of_rows([1, 2j]), "must be real numbers"),
        (lambda: Weights.of_rows(RHO).check_data("", 39), "of 40 rows, and the data has 39"),
    ],
)
def test_weights_refuse_what_means_nothing(call, message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        call()


def test_weights_take_tensors_with_a_graph_and_whole_numbers() -> None:
    rho = torch.arange(1.0, 5).requires_grad_()
    for given in (rho, rho.detach().to(torch.uint8), [1, 2, 3, 4], np.arange(1, 5, dtype=np.uint8)):
        np.testing.assert_allclose(Weights.of_rows(given).rho, np.arange(1, 5) / 2.5)


def test_files_that_hold_no_weights_say_why(tmp_path: Path) -> None:
    good = tmp_path / "good.parquet"
    weights = Weights.of_rows(RHO, base_weights=Q)
    weights.facts.update({"value": np.float32(1.5), "many": np.arange(2)})  # type: ignore[attr-defined]
    weights.to_parquet(good)
    assert Weights.from_parquet(good).facts == {"value": 1.5, "many": [0, 1]}
    whole = good.read_bytes()
    for end in (0, 3, len(whole) // 2, len(whole) - 4):
        (tmp_path / "cut.parquet").write_bytes(whole[:end])
        with pytest.raises(PatterningError, match="cannot be read as parquet"):
            Weights.from_parquet(tmp_path / "cut.parquet")
    with pytest.raises(PatterningError, match="it does not exist"):
        Weights.from_parquet(tmp_path / "missing.parquet")
    other = tmp_path / "other.parquet"
    table = pyarrow.table({"rho": [1.0, 2.0]})
    about = {"format": 1, "data": "", "facts": {}}
    for metadata, message in (
        (None, "lacks the metadata that to_parquet writes"),
        ({"patterning": "[1]"}, "lacks the metadata"),
        ({"patterning": json.dumps({"format": 1})}, "lacks the metadata"),
        ({"patterning": json.dumps(about | {"format": 9})}, "format 9: this version reads formats 1 and 2"),
        ({"patterning": json.dumps(about)}, "is damaged"),
    ):
        pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), other)
        with pytest.raises(PatterningError, match=message):
            Weights.from_parquet(other)
    with pytest.raises(PatterningError, match="nowhere"):
        weights.to_parquet(tmp_path / "nowhere" / "rho.parquet")


def test_strength_is_lowered_for_the_effective_sample_size_and_reported() -> None:
    sizes = [direction().weights(5.0, "tilt", min_ess=share).facts["strength"] for share in (0.5, 0.7, 0.9)]
    assert all(a > b for a, b in pairwise(sizes))


def test_losses_and_masks_of_another_kind_are_refused() -> None:
    weights, losses = Weights.of_rows(np.ones((3, 3))), torch.ones(3, 3)
    with pytest.raises(PatterningError, match=r"the mask \(3,\) is not of the shape"):
        weights.loss(losses, [0, 1, 2], torch.tensor([1, 0, 1]))  # would be read by column
    with pytest.raises(PatterningError, match="must be floating point"):
        weights.loss(losses.long(), [0, 1, 2], torch.ones(3, 3))
