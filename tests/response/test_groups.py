"""Means of groups of samples, with rows as the unit of error."""

import numpy as np
import pytest

from patterning.response.groups import clustered_mean


def test_clustered_mean_matches_independent_rows() -> None:
    rng = np.random.default_rng(0)
    values, rows = rng.normal(size=4000), np.arange(4000)
    found = clustered_mean(values, np.ones(4000, dtype=bool), rows)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["standard_error"] == pytest.approx(values.std(ddof=1) / 4000**0.5)
    # four equal values a row carry the information of one
    repeated = clustered_mean(np.repeat(values[:1000], 4), np.ones(4000, dtype=bool), np.repeat(np.arange(1000), 4))
    assert repeated["standard_error"] == pytest.approx(values[:1000].std(ddof=1) / 1000**0.5)


def test_a_group_of_one_row_has_no_error() -> None:
    label = np.array([True, True, False])
    found = clustered_mean(np.array([1.0, 3.0, 9.0]), label, np.array([0, 0, 1]))
    assert (found["mean"], found["count"]) == (2.0, 2)
    assert np.isnan(found["standard_error"])
    assert clustered_mean(np.ones(3), label & False, np.arange(3))["count"] == 0
