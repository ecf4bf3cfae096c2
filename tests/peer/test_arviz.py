"""A stored χ opens in ArviZ as it is: chains and draws of φ, and the diagnostics that ArviZ makes of them.

Needs ArviZ (pip install 'arviz>=0.23'), which no extra brings; skipped without it.
"""

from pathlib import Path

import numpy as np
import pytest
import xarray
from zoo.gaussian_task import KERNEL, OBSERVABLES, known

import patterning as pt

pytestmark = pytest.mark.filterwarnings("ignore")  # ArviZ's own


def test_a_stored_response_opens_in_arviz(tmp_path: Path) -> None:
    az = pytest.importorskip("arviz")
    problem = known()
    chi = pt.measure(
        problem.task, OBSERVABLES, sampler=KERNEL, batch_size=problem.batch_size, estimator="covariance", chains=4,
        draws=40, burn_in=20, steps_between_draws=4, budget=1, progress=False,
    )  # fmt: skip
    chi.save(tmp_path / "chi.zarr")
    tree = xarray.open_datatree(tmp_path / "chi.zarr", engine="zarr")
    data = az.InferenceData.from_datatree(tree) if hasattr(az, "InferenceData") else tree
    phi = data["posterior"]["phi"]
    assert phi.sizes["chain"] == 4
    assert phi.sizes["draw"] == 40
    r_hat, ess = (function(data, var_names="phi", method=method) for function, method in
                  ((az.rhat, "split"), (az.ess, "mean")))  # fmt: skip
    for name in chi.names:
        mine = chi.r_hat[name]
        theirs = float(r_hat["phi"].sel(observable=name).values.item())
        assert mine == pytest.approx(theirs, rel=1e-3)  # split R-hat, as Gelman et al. define it
        own = float(chi.data["ess"].sel(observable=name).values.item())
        assert own == pytest.approx(float(ess["phi"].sel(observable=name).values.item()), rel=0.15)
    np.testing.assert_array_equal(data["susceptibility"]["chi"].values, chi.data["chi"].values)
    summary = az.summary(data, var_names="phi")
    assert len(summary) == phi.size // (4 * 40)
