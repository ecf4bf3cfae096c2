"""Fluctuation-response on a Gaussian model: χ foretells what re-weighted data do to ⟨φ⟩."""

import sys
from pathlib import Path

import pytest

from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from fluctuation import compare, gaussian_task, slope


@pytest.mark.parametrize(
    ("estimator", "draws"), [pytest.param("covariance", 100, marks=pytest.mark.long), ("pathwise", 50)]
)
def test_slope_is_one(estimator, draws) -> None:
    chains = ChainConfig(64, draws, 60, 2, 12, matched=True)
    kernel = SGLD(n_beta=50.0, localization=20.0, step_size=2e-3)
    predicted, measured = compare(
        gaussian_task(), "full", kernel, chains, estimator=estimator, directions=4, alpha=0.05
    )
    found, error, correlation = slope(predicted, measured)
    assert abs(found - 1) < 0.05
    assert error < 0.03
    assert correlation > 0.99
