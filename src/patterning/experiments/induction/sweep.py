"""How strongly to weight, found on pilot seeds: each direction's own stage, policy and α, for "less" and for "more"."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterning.errors import PatterningError
from patterning.experiments.induction.config import InductionConfig, Stage
from patterning.experiments.induction.directions import Direction
from patterning.experiments.induction.outcome import outcomes
from patterning.experiments.induction.pilot import Pilot, checkpoints_of, training_of
from patterning.experiments.induction.text import Source
from patterning.experiments.induction.units import Weights, training_unit
from patterning.intervention.weights import Policy, make_weights
from patterning.store import Unit
from patterning.workers import Workers

Found = Mapping[tuple[Stage, str], Direction]
TOWARD = {"less": -1.0, "more": 1.0}


@dataclass(frozen=True)
class Strength:
    """How strongly to weight: the stage χ was read at, policy, α, and the sign that makes +s "more"."""

    stage: Stage
    policy: Policy
    alpha: float
    sign: float


Strengths = Mapping[str, Mapping[str, Strength]]
"""Direction → "less" and "more" → strength."""


def weigh(config: InductionConfig, s: NDArray[Any], strength: Strength, toward: str) -> Weights:
    """ρ (rows, t - 1) float32 for `s` of that shape; with `weigh: sequence` one weight a row, from its mean score."""
    values = np.asarray(s, dtype=np.float64)
    if config.weigh == "sequence":
        values = np.broadcast_to(values.mean(axis=1, keepdims=True), values.shape)
    flat = values.ravel() * TOWARD[toward] * strength.sign
    q = np.full(flat.size, 1 / flat.size)
    rho = make_weights(flat, q, policy=strength.policy, alpha=strength.alpha)
    return rho.reshape(values.shape).astype(np.float32)


def run_unit(config: InductionConfig, source: Source, name: str, seed: int, rho: Weights | None) -> Unit:
    """One run of the experiment under ρ (None: unweighted)."""
    return training_unit(name, source, config.language, training_of(config), seed, rho, checkpoints_of(config))


def sweep(
    config: InductionConfig, source: Source, pilot: Pilot, found: Found, pool: Workers
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Strength]]]:
    """Try every candidate on pilot seeds; the rows of the table, and each direction's strengths.

    A candidate is run both ways. They part by the difference of their repeated gaps, averaged over the log-spaced
    checkpoints, which sees the onset as well as the end. Seed 0 of the sweep is the pilot's own, so that run is the
    unweighted partner. Raises `PatterningError` when no direction stands.
    """
    own, names = config.sweep, config.directions
    candidates: list[tuple[str, Stage, Policy, float]] = [
        (name, stage, policy, alpha)
        for name in names
        for stage, policy, alpha in product(own.stages(name), own.policies, own.alphas)
        if found[stage, name].s is not None
    ]
    if not candidates:
        raise PatterningError("no direction stands at any stage that the sweep looks at")
    seeds = [config.pilot_seed + i for i in range(own.seeds)]
    work = []
    for name, stage, policy, alpha in candidates:
        s = found[stage, name].s
        assert s is not None
        for toward in TOWARD:
            rho = weigh(config, s, Strength(stage, policy, alpha, 1.0), toward)
            work += [run_unit(config, source, f"sweep-{name}-{toward}", seed, rho) for seed in seeds]
    runs = iter(pool.compute(work, "strength, on pilot seeds"))
    base = outcomes(pilot.run, config.structure)
    rows: list[dict[str, Any]] = []
    for name, stage, policy, alpha in candidates:
        row: dict[str, Any] = {"direction": name, "stage": stage, "policy": policy, "alpha": alpha, "seeds": seeds}
        for toward in TOWARD:
            ended = [outcomes(next(runs), config.structure) for _ in seeds]
            for key in ("onset", "repeated_gap", "prefix_matching", "gap_area"):
                row[f"{toward}_{key}"] = float(np.mean([run[key] for run in ended]))
            row[f"{toward}_side"] = float(ended[0]["loss:not induction"] / base["loss:not induction"] - 1)
        rows.append(row | {"separation": row["more_gap_area"] - row["less_gap_area"], "chosen": []})
    return rows, {
        name: _choose(config, mine) for name in names if (mine := [row for row in rows if row["direction"] == name])
    }


def _choose(config: InductionConfig, rows: Sequence[dict[str, Any]]) -> dict[str, Strength]:
    """The strengths of one direction from its candidates, marked in their `chosen`."""
    widest = max(rows, key=lambda row: abs(row["separation"]))
    sign = -1.0 if config.sweep.sign == "pilot" and widest["separation"] < 0 else 1.0
    chosen = {}
    for toward, way in TOWARD.items():
        tried = toward if sign > 0 else next(other for other in TOWARD if other != toward)

        def worth(row: Mapping[str, Any], tried: str = tried, way: float = way) -> tuple[bool, float]:
            return abs(row[f"{tried}_side"]) <= config.sweep.loss_limit, way * row[f"{tried}_gap_area"]

        best = max(rows, key=worth)
        best["chosen"].append(toward)
        chosen[toward] = Strength(best["stage"], best["policy"], best["alpha"], sign)
    return chosen
