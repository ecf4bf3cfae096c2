"""Table and spectrum of a χ that is known."""

import json

import numpy as np
import pytest
import xarray

from patterning.face.response_page import component_table, response_page, rows_with_spread, spectrum, warnings_of


def tree_of(chi: np.ndarray) -> xarray.DataTree:
    """A stored response of given χ (components, samples), with halves that differ by 2 in every second sample."""
    components, samples = chi.shape
    names = [f"c{i}" for i in range(components)]
    noise = np.where(np.arange(samples) % 2, 1.0, -1.0)
    both = ("component", "observable")
    phi = np.random.default_rng(0).normal(2.0, 1.0, (4, 50, components, 1))
    phi[3, :, 0] = np.nan  # a chain of the first component was excluded
    attributes = {
        "n_beta": 30.0, "chains_antithetic": 0, "estimator": "covariance", "phi_of": "probes", "task": "0",
        "excluded_chains": json.dumps({"c0": ["chain 3: it left"]}),
    }  # fmt: skip
    susceptibility = xarray.Dataset(
        {
            "chi": ((*both, "sample"), chi[:, None]),
            "standard_error": ((*both, "sample"), np.full((components, 1, samples), 0.5)),
            "halves": (
                ("component", "half", "observable", "sample"),
                np.stack([chi + noise, chi - noise], 1)[:, :, None],
            ),
            "degrees_of_freedom": ("component", np.full(components, 10.0)),
            **{name: (both, np.full((components, 1), 0.25)) for name in ("reliability", "r_hat", "ess")},
            "rise": ("component", np.full(components, 0.1)),
            "estimator": ("component", ["covariance"] * components),
            "note": ("component", ["enough"] * components),
            "free_coordinates": ("component", np.arange(components) + 7),
        },
        {"component": names, "observable": ["component loss"]},
        attributes,
    )
    posterior = xarray.Dataset(
        {"phi": (("chain", "draw", *both), phi)}, {"component": names, "observable": ["component loss"]}
    )
    return xarray.DataTree.from_dict({"/susceptibility": susceptibility, "/posterior": posterior})


def test_the_spectrum_of_known_rows() -> None:
    wave = np.where(np.arange(12) % 4 < 2, 1.0, -1.0)  # orthogonal to the noise, mean 0, standard deviation 1
    chi = np.stack([5 * wave, 3 * wave + 2, np.full(12, 4.0), np.where(np.arange(12) == 5, np.nan, 1.0)])
    tree = tree_of(chi)
    assert rows_with_spread(tree).tolist() == [True, True, False, False]
    values, floor = spectrum(tree)
    np.testing.assert_allclose(values, [np.sqrt(24), 0], atol=1e-12)  # two equal rows of 12 samples
    np.testing.assert_allclose(floor, [np.sqrt(12 * (1 / 25 + 1 / 9)), 0], atol=1e-12)
    assert spectrum(tree_of(np.ones((2, 1))))[0].shape == (0,)


def test_the_table_of_known_rows() -> None:
    chi = np.array([[0.0, 3.0, -1.0, 0.1], [1.0, 1.0, 1.0, 1.0]])
    tree = tree_of(chi)
    first, second = component_table(tree)
    trace = tree["posterior"]["phi"].values[:3, :, 0, 0]
    assert first["llc"] == pytest.approx(30 * trace.mean())
    assert second["llc"] == pytest.approx(30 * tree["posterior"]["phi"].values[:, :, 1, 0].mean())
    # independent draws: the standard error of their mean, within the sampling error of the effective sample size
    assert first["llc_standard_error"] == pytest.approx(30 * trace.std() / np.sqrt(trace.size), rel=0.35)
    assert first["median_chi_over_error"] == pytest.approx(1.1)  # of 0, 6, 2 and 0.2
    assert first["share_not_zero"] == 0.25  # 2.228 * 0.5 is t of 10 times the error: only 3 is beyond
    assert (first["spread"], second["spread"]) == (True, False)
    assert (first["free_coordinates"], first["note"], first["component"]) == (7, "enough", "c0")
    assert warnings_of(tree, component_table(tree)) == [
        "left out, diverged: c0, chain 3: it left",
        "χ without spread, left out of correlations and spectrum: c1 "
        "(the component does not move what is measured, nothing that the component does reaches the loss, its χ is 0 "
        "by symmetry (as at the minimum of a quadratic), or the loss is not finite)",
        "reliability of χ under 0.5, mostly noise: c0, c1",
    ]
    page = response_page(tree, "<title>")
    assert "&lt;title&gt;" in page
