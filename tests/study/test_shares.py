"""Studies of yes-or-no outcomes: which control counts, what is said, and forecasts where shares are exact."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from patterning.posterior.around import Around
from patterning.study.arms import PlannedArm
from patterning.study.findings import share_findings
from patterning.study.forecasts import ForecastJob
from patterning.study.free_energies import FreeEnergies, ShareForecast
from patterning.study.outcomes import evidence_of
from patterning.study.settings import Strength
from patterning.study.subject import Outcome, Runs, Subject
from patterning.study.training import Planned

SEEDS = range(40)


class Coins(Subject):
    name = "coins"
    outcomes = (Outcome("heads", "head", "tail", 0.0, 1.0, yes_or_no=True),)


def arm(name: str, kind: str, **more: Any) -> PlannedArm:
    return PlannedArm(name, kind, Planned.alike(np.ones(2), SEEDS), None, **more)


def rows_and_findings(shares: dict[str, float], sign: float = 1.0) -> dict[str, Any]:
    """Results as a study writes them, of arms whose first seeds are heads."""
    arms = [
        arm("unweighted", "base"),
        arm("heads, asked", "arm", controls=("draw 1", "draw 2"), wanted={"heads": sign}),
        arm("draw 1", "control"),
        arm("draw 2", "control"),
    ]
    runs = {name: Runs({"heads": (np.arange(40) < 40 * share).astype(float)}) for name, share in shares.items()}
    evidence = evidence_of(Coins(), arms, runs, SEEDS)
    table = [{"name": a.name, "kind": a.kind, "wanted": dict(a.wanted), "seeds": list(SEEDS)} for a in arms]
    subject = {"outcomes": [vars(one) for one in Coins.outcomes]}
    return {"rows": evidence.rows(), "arms": table, "subject": subject, "foretold": []}


def test_an_arm_must_differ_from_the_draw_that_comes_closest() -> None:
    far = {"unweighted": 0.2, "heads, asked": 0.9, "draw 1": 0.1, "draw 2": 0.4}
    row = rows_and_findings(far)["rows"][1]
    assert row["against_permuted"]["difference"] == pytest.approx(0.5)
    assert row["finding"] == "steers"
    near = rows_and_findings(far | {"draw 1": 0.9})
    assert near["rows"][1]["finding"] == "moves, not shown beyond permuted"
    assert share_findings(near)[0].startswith("0 of 1 asks obtained")
    # asked the other way, the draw with the fewest heads comes closest
    down = rows_and_findings({"unweighted": 0.8, "heads, asked": 0.1, "draw 1": 0.9, "draw 2": 0.5}, sign=-1.0)
    assert down["rows"][1]["against_permuted"]["difference"] == pytest.approx(-0.4)
    assert "asked for less of the head, 10.0 [" in share_findings(down)[0]
    assert share_findings(down)[0].startswith("What was asked for was obtained")


def test_a_forecast_that_failed_is_said_to_have_failed() -> None:
    results = rows_and_findings({"unweighted": 0.2, "heads, asked": 0.9, "draw 1": 0.1, "draw 2": 0.4})
    fit = {"arms": 4, "pairs": 40, "r": 0.99, "low": 0.9, "high": 1.0, "mean_error": 0.03, "largest_error": 0.07}
    told = {"measure": "heads", "of_shares": True, "agreement": fit}
    held, failed, undefined = (
        share_findings(results | {"foretold": [told | {"agreement": fit | {"r": r}}]})[1] for r in (0.99, 0.5, None)
    )
    assert "the prediction held: predicted against realised, r = 0.990 [0.900, 1.000] for the head, off by 3" in held
    assert "did not hold" in failed
    assert "did not hold: predicted against realised, r is not defined" in undefined


def test_shares_are_foretold_exactly_where_losses_are_constant() -> None:
    # two solutions of constant losses: share(B) ∝ V_B exp(-nβ Σ q ρ ℓ_B / Σ q ρ), with V from the pilots' shares
    losses, n_beta, q = np.array([[0.02, 0.05], [0.03, 0.01]]), 100.0, np.array([0.5, 0.5])
    around = [
        Around(name, own / 2, np.tile(own, (4, 1)), 0.0, 0.0, 1.0, 1.0, 4.0, ())
        for name, own in zip(("a", "b"), losses, strict=True)
    ]
    counts = np.array([600_000, 400_000])
    table = FreeEnergies(around, counts, (np.array([0]), np.array([1])), q, n_beta)
    rho = np.array([1.6, 0.4])
    weight = counts * np.exp(-n_beta * (losses @ (q * (rho - 1))))
    arrays = ForecastJob({"a": ShareForecast(table, 0)}, [np.ones(2), rho]).run(Path())
    np.testing.assert_allclose(arrays["a"][:, 0], [0.6, weight[0] / weight.sum()], rtol=1e-5)
    assert (arrays["a"][:, 1] <= arrays["a"][:, 0]).all()
    assert (arrays["a"][:, 0] <= arrays["a"][:, 2]).all()
    gap = table.gap(0)
    np.testing.assert_allclose(gap["s"], [1.0, -1.0])  # b loses more on the first sample, a on the second


def test_linear_weights_stay_positive() -> None:
    with pytest.raises(ValidationError, match="below 1 for linear weights"):
        Strength(policy="linear", alpha=1.0)
    assert str(Strength(policy="clip", alpha=1.5)) == "clip 1.5"
