"""How strongly to weight, found on pilot seeds: each direction's own stage, policy and α, for "less" and for "more"."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from patterning.core.errors import PatterningError
from patterning.core.store import Unit
from patterning.core.workers import Workers
from patterning.experiments.induction.config import TOWARD, InductionConfig, Stage, Toward
from patterning.experiments.induction.direction import Direction
from patterning.experiments.induction.outcome import outcomes
from patterning.experiments.induction.pilot import checkpoints_of, training_of
from patterning.experiments.induction.text import Source
from patterning.experiments.induction.units import Weights, training_unit
from patterning.intervention.weights import Policy, make_weights

Found = Mapping[tuple[Stage, str], Direction]
SIDE = "loss:not induction"
Worth = tuple[bool, float]


@dataclass(frozen=True)
class Strength:
    """How strongly to weight: the stage χ was read at, policy, α, and the sign that makes +s "more"."""

    stage: Stage
    policy: Policy
    alpha: float
    sign: float


Strengths = Mapping[str, Mapping[str, Strength]]
"""Direction → "less" and "more" → strength."""


def weigh(config: InductionConfig, direction: Direction, strength: Strength, toward: Toward) -> Weights:
    """ρ (rows, t - 1) float32 along `direction`; with `weigh: sequence` one weight a row, from its mean score."""
    values = direction.along(tried_as(toward, strength.sign)).astype(np.float64)
    if config.weigh == "sequence":
        values = np.broadcast_to(values.mean(axis=1, keepdims=True), values.shape)
    flat = values.ravel() * TOWARD[toward] * strength.sign
    q = np.full(flat.size, 1 / flat.size)
    rho = make_weights(flat, q, policy=strength.policy, alpha=strength.alpha)
    return rho.reshape(values.shape).astype(np.float32)


def tried_as(toward: Toward, sign: float) -> Toward:
    """What the sweep called the runs that are now `toward`: the other one where the pilot turned the sign."""
    return toward if sign > 0 else "less" if toward == "more" else "more"


def run_unit(config: InductionConfig, source: Source, name: str, seed: int, rho: Weights | None) -> Unit:
    """One run of the experiment under ρ (None: unweighted)."""
    return training_unit(name, source, config.language, training_of(config), seed, rho, checkpoints_of(config))


def sweep(
    config: InductionConfig, source: Source, found: Found, pool: Workers
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Strength]]]:
    """Try every candidate on pilot seeds; the rows of the table, and each direction's strengths.

    A candidate is run both ways. They part by the difference of their repeated gaps, averaged over the log-spaced
    checkpoints, which sees the onset as well as the end. A direction of one candidate is not tried where the sign is
    the response's: nothing is left to choose. Seeds follow those that χ was read on: a direction is not
    tried on what it was read from. Raises `PatterningError` when no direction stands.
    """
    own, names = config.sweep, config.directions
    standing = {
        name: [
            Strength(stage, policy, alpha, 1.0)
            for stage, policy, alpha in product(own.stages(name), own.policies, own.alphas_of.get(name, own.alphas))
            if found[stage, name].s is not None
        ]
        for name in names
    }
    if not any(standing.values()):
        raise PatterningError("no direction stands at any stage that the sweep looks at")
    settled = {name for name, some in standing.items() if len(some) == 1 and own.sign == "response"}
    candidates = [(name, one) for name, some in standing.items() if name not in settled for one in some]
    seeds = [config.pilot_seed + config.structure.runs + i for i in range(own.seeds)]
    work = [run_unit(config, source, "sweep-unweighted", seed, None) for seed in seeds if candidates]
    for name, one in candidates:
        for toward in TOWARD:
            rho = weigh(config, found[one.stage, name], one, toward)
            work += [run_unit(config, source, f"sweep-{name}-{toward}", seed, rho) for seed in seeds]
    runs = iter(pool.compute(work, "strength, on pilot seeds"))
    base = [outcomes(next(runs), config.structure) for _ in seeds if candidates]
    rows: list[dict[str, Any]] = []
    for name, one in candidates:
        row: dict[str, Any] = {
            "direction": name, "stage": one.stage, "policy": one.policy, "alpha": one.alpha, "seeds": seeds,
        }  # fmt: skip
        for toward in TOWARD:
            ended = [outcomes(next(runs), config.structure) for _ in seeds]
            for key in ("onset", "repeated_gap", "prefix_matching", "gap_area"):
                row[f"{toward}_{key}"] = float(np.mean([run[key] for run in ended]))
            sides = [run[SIDE] / unweighted[SIDE] - 1 for run, unweighted in zip(ended, base, strict=True)]
            row[f"{toward}_side"] = float(np.mean(sides))
        rows.append(row | {"separation": row["more_gap_area"] - row["less_gap_area"], "chosen": []})
    return rows, {
        name: dict.fromkeys(TOWARD, some[0])
        if name in settled
        else _choose(config, [row for row in rows if row["direction"] == name])
        for name, some in standing.items()
        if some
    }


def _choose(config: InductionConfig, rows: Sequence[dict[str, Any]]) -> dict[str, Strength]:
    """The strengths of one direction from its candidates, marked in their `chosen`."""
    widest = max(rows, key=lambda row: abs(row["separation"]))
    sign = -1.0 if config.sweep.sign == "pilot" and widest["separation"] < 0 else 1.0
    chosen = {}
    for toward, limit in config.sweep.loss_limit.items():
        way = TOWARD[toward]
        tried = tried_as(toward, sign)

        def worth(row: Mapping[str, Any], tried: str = tried, way: float = way, limit: float = limit) -> Worth:
            return abs(row[f"{tried}_side"]) <= limit, way * row[f"{tried}_gap_area"]

        best = max(rows, key=worth)
        best["chosen"].append(toward)
        chosen[toward] = Strength(best["stage"], best["policy"], best["alpha"], sign)
    return chosen
