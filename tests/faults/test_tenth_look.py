"""What an eleventh round of trying found: weights, training, commands, pages, folders and Hugging Face models."""

import numpy as np
import pytest

from patterning import PatterningError, Weights

pandas = pytest.importorskip("pandas")


def test_labels_of_any_kind_keep_their_totals_when_weights_are_dealt_out_within_them() -> None:
    rho = np.random.default_rng(0).permutation(np.linspace(0.0, 2.0, 40))
    labels = [("a", 1), 2, "b", ("c",)] * 10
    dealt = Weights.of_rows(rho).permuted(0, within=labels).rho
    by_number = Weights.of_rows(rho).permuted(0, within=np.arange(40) % 4).rho
    np.testing.assert_array_equal(dealt, by_number)
    assert not np.array_equal(dealt, rho)


@pytest.mark.parametrize("missing", [None, float("nan"), pandas.NA])
def test_a_row_without_a_label_is_named(missing: object) -> None:
    labels = np.array(["a", "b"] * 20, dtype=object)
    labels[7] = missing
    with pytest.raises(PatterningError, match=r"within have no label \(NaN or None\) in 1 rows, the first is row 7"):
        Weights.of_rows(np.linspace(0.5, 1.5, 40)).permuted(0, within=labels)


def test_a_series_of_weights_is_read_by_its_index() -> None:
    groups = ["web", "code", "web", "books"]
    named = {"web": 1.0, "code": 2.0, "books": 0.5}
    of_series = Weights.of_groups(groups, pandas.Series(named))
    np.testing.assert_array_equal(of_series.rho, Weights.of_groups(groups, named).rho)
    with pytest.raises(PatterningError, match="rho_by_group is a list: give a dict, label"):
        Weights.of_groups(groups, [1.0, 2.0, 0.5])  # type: ignore[arg-type]
