"""Weights go to the rows that their ids name, keep cap and groups, and a file gives back what it was given."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset
from torch import nn

import patterning as pt
from patterning import edits
from patterning.core.errors import PatterningError, PatterningWarning
from patterning.intervention.aligned import aligned
from patterning.intervention.strength import capped, strong_enough
from patterning.intervention.weights import make_weights, swaps
from tests.faults.common import X, Y, classify, linear_task

N = 12
RHO = np.arange(1.0, N + 1)
ORDER = np.random.default_rng(0).permutation(N)


def task(ids: list[str] | None = None) -> pt.Task:
    found = pt.Task(nn.Linear(6, 3), classify, (X[:N], Y[:N]))
    if ids is not None:
        found.ids = np.array(ids)
    return found


def fitted(of: pt.Task, weights: pt.Weights) -> torch.Tensor:
    return of.flatten(pt.fit(of, weights, 0, steps=3, batch_size=6))


NAMES = [f"r{i}" for i in range(N)]


@pytest.mark.parametrize("ids", [None, NAMES])
def test_fit_gives_each_row_the_weight_of_its_id_in_whatever_order_they_lie(ids: list[str] | None) -> None:
    data, plain = task(ids), pt.Weights.of_rows(RHO, ids)
    mixed = pt.Weights.of_rows(RHO[ORDER], np.array(NAMES if ids else range(N))[ORDER])
    torch.testing.assert_close(fitted(data, mixed), fitted(data, plain), rtol=0, atol=0)
    np.testing.assert_array_equal(aligned(mixed, data).rho, plain.rho)
    assert not torch.equal(fitted(data, pt.Weights.of_rows(RHO[ORDER], ids)), fitted(data, plain))
    with pytest.raises(PatterningError, match="in another order, by their ids"):
        mixed.check(data)
    plain.check(data)


def test_weights_of_other_rows_are_refused_and_default_ids_go_by_place() -> None:
    with pytest.raises(PatterningError, match="they know no row 'r0'"):
        fitted(task(NAMES), pt.Weights.of_rows(RHO, [f"q{i}" for i in range(N)]))
    torch.testing.assert_close(
        fitted(task(NAMES), pt.Weights.of_rows(RHO)), fitted(task(), pt.Weights.of_rows(RHO)), rtol=0, atol=0
    )
    with pytest.raises(PatterningError, match=r"weights is list: it must be Weights"):
        fitted(task(), [1.0] * N)  # type: ignore[arg-type]


def test_the_weights_before_an_edit_are_found_by_their_ids() -> None:
    after = pt.Weights.of_rows([2.0, 1.0, 1.0], list("abc"))
    before = pt.Weights.of_rows([1.0, 1.0, 2.0], list("cba"))
    assert edits.effect_of(after, np.array([1.0, 3.0, 9.0]), before=before).value == pytest.approx(0, abs=1e-15)
    with pytest.raises(PatterningError, match="level is 95: it must be between 0 and 1"):
        edits.effect_of(after, np.ones(3), np.ones(3), level=95)


# A file


def test_no_flipped_byte_of_a_file_gives_other_weights(tmp_path: Path) -> None:
    path, rng = tmp_path / "rho.parquet", np.random.default_rng(1)
    weights = pt.Weights.of_rows(rng.exponential(size=40), base_weights=rng.exponential(size=40))
    weights.to_parquet(path)
    whole, refused, same = path.read_bytes(), 0, 0
    for place in range(4, len(whole) - 8, 7):
        bad = bytearray(whole)
        bad[place] ^= 0x10
        path.write_bytes(bad)
        try:
            found = pt.Weights.from_parquet(path)
        except PatterningError:
            refused += 1
            continue
        same += 1
        for name in ("rho", "base_weights", "ids", "free"):
            np.testing.assert_array_equal(getattr(found, name), getattr(weights, name))
    assert refused > 60
    assert same > 0  # bytes that no number is made of


def test_an_edited_column_is_refused_and_rows_in_another_order_are_the_same_weights(tmp_path: Path) -> None:
    path, weights = tmp_path / "rho.parquet", pt.Weights.of_rows(RHO, NAMES)
    weights.to_parquet(path)
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.take(ORDER), path)
    found = pt.Weights.from_parquet(path)
    np.testing.assert_array_equal(found.ids, np.array(NAMES)[ORDER])
    np.testing.assert_array_equal(found.of(NAMES), weights.rho)
    doubled = table.set_column(1, "rho", pyarrow.array(2 * weights.rho))
    pyarrow.parquet.write_table(doubled, path)
    with pytest.raises(PatterningError, match="is damaged: its numbers are not those that were written"):
        pt.Weights.from_parquet(path)


# Data sets that were shuffled before


def test_a_shuffled_frame_is_refused_and_a_frame_with_another_index_is_not() -> None:
    weights, frame = pt.Weights.of_rows(RHO), pd.DataFrame({"x": range(N)})
    shuffled = frame.sample(frac=1, random_state=0)
    for give in (weights.attach, weights.name_rows):
        with pytest.raises(PatterningError, match=r"was shuffled: its index holds .* in another order"):
            give(shuffled)
    np.testing.assert_allclose(weights.attach(shuffled.loc[weights.ids])["weight"], weights.rho)
    assert weights.name_rows(shuffled.reset_index(drop=True))["row_id"].tolist() == list(range(N))
    assert weights.attach(frame.set_index(frame.x + 5))["weight"].iloc[3] == pytest.approx(weights.rho[3])


def test_rows_that_were_named_and_then_shuffled_are_not_weighted_by_place() -> None:
    weights = pt.Weights.of_rows(RHO)
    named = weights.name_rows(Dataset.from_dict({"x": list(range(N))}))
    assert weights.attach(named)["weight"][3] == pytest.approx(weights.rho[3])
    with pytest.raises(PatterningError, match="its column row_id holds"):
        weights.attach(named.shuffle(seed=0))
    with pytest.raises(PatterningError, match='has a column "weight" already'):
        weights.attach(Dataset.from_dict({"weight": [1] * N}))


def test_items_of_a_named_data_set_are_read_one_by_one() -> None:
    weights = pt.Weights.of_rows(RHO)
    for wrapped in (weights.name_rows(list(range(N))), weights.attach(list(range(N)))):
        assert wrapped[np.int64(3)][0] == 3
        with pytest.raises(PatterningError, match="items are read one by one"):
            wrapped[0:2]


# Caps, groups, lists


@pytest.mark.parametrize(("strength", "cap"), [(2.0, 1.5), (5.0, 2.0), (5.0, 1.5)])
def test_a_cap_is_kept_where_most_weights_are_zero(strength: float, cap: float) -> None:
    s, q = np.array([9.0, 4.0, -1, -2, -3, -3, -2, -2]), np.full(8, 1 / 8)
    free = np.ones(8, dtype=bool)
    _, rho = strong_enough(s, q, free, strength, "clip", cap, None)
    assert (make_weights(s, q, policy="clip", alpha=strength) == 0).sum() >= 4
    assert q @ rho == pytest.approx(1, abs=1e-12)
    assert rho.max() == pytest.approx(cap, abs=1e-12)
    # two entries at the cap; the others share what is missing, which only those at 0 are left to take
    np.testing.assert_allclose(capped(np.array([4.0, 4.0, 0, 0, 0, 0, 0, 0]), q, free, cap)[2:], (8 - 2 * cap) / 6)


def test_under_a_cap_every_group_keeps_its_own_total() -> None:
    s, q, groups = np.array([8.0, 0, 0, 0, 1, -1, 1, -1]), np.full(8, 1 / 8), list("aaaabbbb")
    _, rho = strong_enough(s, q, np.ones(8, dtype=bool), 1.0, "clip", 1.8, None, groups)
    np.testing.assert_allclose([rho[:4].mean(), rho[4:].mean()], 1, atol=1e-12)
    assert rho.max() <= 1.8 + 1e-12
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    for within in (groups, labels.tolist(), torch.tensor(labels), pd.Series(groups)):
        np.testing.assert_array_equal(
            make_weights(s, q, policy="clip", alpha=0.5, within=within),
            make_weights(s, q, policy="clip", alpha=0.5, within=labels),
        )
        np.testing.assert_array_equal(swaps(s, q, alpha=3.0, within=within), swaps(s, q, alpha=3.0, within=labels))
    with pytest.raises(PatterningError, match="within holds NaN"):
        make_weights(s, q, policy="clip", alpha=0.5, within=[float("nan")] * 8)


def test_ragged_lists_and_evidence_that_is_none_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PatterningError, match="the weights is a list of lists of different lengths"):
        pt.Weights.of_rows([[1.0, 2.0], [1.0]])
    with pytest.raises(PatterningError, match="evidence is str: it must be what verify returned"):
        pt.Weights.of_rows(RHO).save_card(tmp_path, evidence="yes")


@pytest.mark.parametrize("rows", [pd.DataFrame({"x": [1, 2, 3]}), {"x": [1, 2, 3]}, "abc", {1, 2}])
def test_rows_are_dropped_from_a_list_of_rows_only(rows) -> None:
    for edit in (edits.drop, edits.duplicate):
        with pytest.raises(PatterningError, match=f"the rows are a {type(rows).__name__}: give a list"):
            edit(rows, [0])
    assert edits.drop(np.array([[1, 2], [3, 4]]), [0])[0].tolist() == [3, 4]


# Training and its mean


def test_fit_warns_where_training_has_run_away() -> None:
    with pytest.warns(PatterningWarning, match=r"training has run away.*lower the learning rate \(1e\+30"):
        pt.fit(linear_task(), None, 0, steps=20, batch_size=32, learning_rate=1e30)


def test_the_loss_of_rows_drawn_by_their_base_weights_is_unbiased_and_of_rows_drawn_evenly_is_not() -> None:
    q = np.array([1.0, 1.0, 2.0, 4.0]) / 8
    weights, losses = pt.Weights.of_rows([2.0, 1, 1, 0.25], base_weights=q), torch.tensor([1.0, 2, 3, 4])
    single = np.array([float(weights.loss(losses[[j]], [j])) for j in range(4)])
    assert q @ single == pytest.approx(float((q * weights.rho) @ losses.numpy()), rel=1e-6)
    assert abs(single.mean() - q @ single) > 0.1
