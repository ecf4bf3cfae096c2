"""Weights from directions: the strength found on pilot seeds, then every arm and control over the claim seeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterning.errors import PatterningError
from patterning.experiments.induction.config import InductionConfig, Stage
from patterning.experiments.induction.directions import LABELS, SMOOTH, Direction
from patterning.experiments.induction.outcome import Arm, outcomes
from patterning.experiments.induction.pilot import Pilot, checkpoints_of, training_of
from patterning.experiments.induction.text import Source, Text
from patterning.experiments.induction.units import Weights, training_unit
from patterning.intervention.weights import Policy, make_weights, summarise
from patterning.store import Unit
from patterning.tasks.text.classes import induction_labels
from patterning.tasks.text.tokenizer import token_bytes
from patterning.verification.controls import (
    compressibility,
    frequency_bands,
    labelled_like,
    permuted_within,
    random_direction_like,
)
from patterning.workers import Workers

Floats = NDArray[np.float64]
Found = Mapping[tuple[Stage, str], Direction]
TOWARD = {"less": -1.0, "more": 1.0}


@dataclass(frozen=True)
class Strength:
    """How strongly to weight: the stage χ was read at, policy, α, and the sign that makes +s "more"."""

    stage: Stage
    policy: Policy
    alpha: float
    sign: float


def weigh(config: InductionConfig, s: NDArray[Any], strength: Strength, toward: str) -> Weights:
    """ρ (rows, t - 1) float32 for `s` of that shape; with `weigh: sequence` one weight a row, from its mean score."""
    values = np.asarray(s, dtype=np.float64)
    if config.weigh == "sequence":
        values = np.broadcast_to(values.mean(axis=1, keepdims=True), values.shape)
    flat = values.ravel() * TOWARD[toward] * strength.sign
    q = np.full(flat.size, 1 / flat.size)
    rho = make_weights(flat, q, policy=strength.policy, alpha=strength.alpha)
    return rho.reshape(values.shape).astype(np.float32)


def _unit(config: InductionConfig, source: Source, name: str, seed: int, rho: Weights | None) -> Unit:
    return training_unit(name, source, config.language, training_of(config), seed, rho, checkpoints_of(config))


def sweep(
    config: InductionConfig, source: Source, pilot: Pilot, found: Found, pool: Workers
) -> tuple[list[dict[str, Any]], Strength]:
    """Try every candidate on pilot seeds and choose the strength: where "less" and "more" part most.

    They part by the difference of their mean repeated gaps over the (log-spaced) checkpoints, which sees the onset as
    well as the end. Seed 0 of the sweep is the pilot's own, so that run is the unweighted partner.
    """
    own = config.sweep
    stages: list[Stage] = [stage for stage in own.read_at if found[stage, own.direction].s is not None]
    seeds = [config.pilot_seed + i for i in range(own.seeds)]
    candidates: list[tuple[Stage, Policy, float]] = list(product(stages, own.policies, own.alphas))
    work = []
    for stage, policy, alpha in candidates:
        s = found[stage, own.direction].s
        assert s is not None
        for toward in TOWARD:
            rho = weigh(config, s, Strength(stage, policy, alpha, 1.0), toward)
            work += [_unit(config, source, f"sweep-{toward}", seed, rho) for seed in seeds]
    runs = iter(pool.compute(work, "strength, on pilot seeds"))
    base = outcomes(pilot.run, config.structure)
    rows: list[dict[str, Any]] = []
    for stage, policy, alpha in candidates:
        ended = {toward: [outcomes(next(runs), config.structure) for _ in seeds] for toward in TOWARD}
        area = {toward: float(np.mean([run["gap_area"] for run in ended[toward]])) for toward in TOWARD}
        side = ended["less"][0]["loss:not induction"] / base["loss:not induction"] - 1
        rows.append(
            {"stage": stage, "policy": policy, "alpha": alpha, "seeds": seeds}
            | {f"{toward}_{key}": float(np.mean([run[key] for run in ended[toward]]))
               for toward in TOWARD for key in ("onset", "repeated_gap", "prefix_matching")}
            | {"separation": area["more"] - area["less"], "side_effect": float(side), "chosen": False}
        )  # fmt: skip

    def worth(row: Mapping[str, Any]) -> tuple[bool, float]:
        parted = abs(row["separation"]) if own.sign == "pilot" else row["separation"]
        return abs(row["side_effect"]) <= own.loss_limit, parted

    best = max(rows, key=worth)
    best["chosen"] = True
    sign = -1.0 if own.sign == "pilot" and best["separation"] < 0 else 1.0
    return rows, Strength(best["stage"], best["policy"], best["alpha"], sign)


def retrain(
    config: InductionConfig, source: Source, text: Text, found: Found, strength: Strength, pool: Workers
) -> list[Arm]:
    """Train every arm over the claim seeds: the same seeds in every arm, which makes them pairs."""
    plan: list[Arm] = []
    work: list[Unit] = []
    counts: list[int] = []
    for arm, weights in _plan(config, text, found, strength):
        plan.append(arm)
        counts.append(len(weights))
        for i, rho in enumerate(weights):
            work.append(_unit(config, source, arm.name, config.first_seed + i, rho))
        if weights[0] is not None:
            flat = weights[0].astype(np.float64).ravel()
            arm.notes |= asdict(summarise(flat, np.full(flat.size, 1 / flat.size)))
    runs = iter(pool.compute(work, "retraining every arm"))
    for arm, count in zip(plan, counts, strict=True):
        arm.runs = [next(runs) for _ in range(count)]
    return plan


def _plan(
    config: InductionConfig, text: Text, found: Found, strength: Strength
) -> Iterator[tuple[Arm, Sequence[Weights | None]]]:
    """Every arm with its weights, one a seed."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    settings = {"policy": strength.policy, "alpha": strength.alpha}
    names = [name for name in config.directions if found[strength.stage, name].s is not None]
    with_control = "permuted" in config.controls
    yield Arm("unweighted", "unweighted", "base"), [None] * config.seeds
    lead: dict[str, Weights] = {}
    for name, toward in product(names, TOWARD):
        rho = weigh(config, _direction(found, strength, name), strength_of(config, strength, name), toward)
        lead.setdefault(toward, rho)
        control = f"permuted-{toward}" if with_control else None
        arm = Arm(f"{name}-{toward}", f"{LABELS[name]}, {toward}", "steered", toward, control, dict(settings))
        yield arm, [rho] * config.seeds
    if not lead:
        raise PatterningError(f"no direction stands at the stage {strength.stage!r} that the sweep chose")
    s = _direction(found, strength, names[0])
    if with_control:
        strata = frequency_bands(text.train.tokens[:, 1:].ravel(), config.corpus.vocabulary, config.bands)
        for toward, rho in lead.items():
            dealt = [permuted_within(rho.astype(np.float64).ravel(), strata, seed) for seed in seeds]
            arm = Arm(f"permuted-{toward}", f"permuted within frequency bands, {toward}", "null", notes=dict(settings))
            yield arm, [row.reshape(rho.shape).astype(np.float32) for row in dealt]
    if "random" in config.controls:
        drawn = [random_direction_like(s.astype(np.float64).ravel(), seed).reshape(s.shape) for seed in seeds]
        arm = Arm("random", "random direction", "null", notes=dict(settings))
        yield arm, [weigh(config, one, strength, "more") for one in drawn]
    if "random-smooth" in config.controls:
        arm = Arm("random-smooth", "random function of activations", "null", notes=dict(settings))
        yield arm, [weigh(config, one, strength, "more") for one in _smooth(found, strength)]
    yield from _heuristics(config, text, found, strength, lead, settings)
    if "domains" in config.controls:
        for i, domain in enumerate(text.corpus.domains):
            here = np.repeat(text.train.domains == i, s.shape[1]).reshape(s.shape)
            if not here.any() or here.all():
                continue
            for name, factor in (("remove", 0.0), ("double", 2.0)):
                rho = np.where(here, factor, 1.0).astype(np.float32)
                yield Arm(f"{name}-{domain}", f"{name} {domain}", "domain"), [rho] * config.domain_seeds


def _heuristics(
    config: InductionConfig,
    text: Text,
    found: Found,
    strength: Strength,
    lead: Mapping[str, Weights],
    settings: Mapping[str, Any],
) -> Iterator[tuple[Arm, Sequence[Weights | None]]]:
    """What needs no χ, or another part of it: the first mode, the induction label itself, and gzip."""
    first = found.get((strength.stage, "first-mode"))
    if "first-mode" in config.controls and first is not None and first.s is not None:
        rho = weigh(config, first.s, strength_of(config, strength, "first-mode"), "more")
        yield Arm("first-mode", LABELS["first-mode"], "control", notes=dict(settings)), [rho] * config.seeds
    if "heuristic" in config.controls:
        label = induction_labels(text.train.tokens)
        for toward, rho in lead.items():
            flat = labelled_like(rho.astype(np.float64).ravel(), label.ravel(), "more" if toward == "more" else "less")
            arm = Arm(f"heuristic-{toward}", f"induction label, {toward}", "heuristic", toward)
            yield arm, [flat.reshape(rho.shape).astype(np.float32)] * config.seeds
    if "gzip" in config.controls:
        rho = deal_to_rows(lead["more"], -compressed_size(text))
        yield Arm("gzip", "compressible rows (gzip)", "heuristic", "more", notes=dict(settings)), [rho] * config.seeds


def strength_of(config: InductionConfig, strength: Strength, name: str) -> Strength:
    """The sign was found for one direction, the sweep's; each of the others keeps the sign it was foretold with."""
    return strength if name == config.sweep.direction else replace(strength, sign=1.0)


def _smooth(found: Found, strength: Strength) -> Sequence[NDArray[np.float32]]:
    return [direction.s for (stage, name), direction in sorted(found.items(), key=lambda item: item[0])
            if stage == strength.stage and name.startswith(SMOOTH) and direction.s is not None]  # fmt: skip


def _direction(found: Found, strength: Strength, name: str) -> NDArray[np.float32]:
    s = found[strength.stage, name].s
    assert s is not None  # only usable ones are planned
    return s


def compressed_size(text: Text) -> Floats:
    """Compressed bytes / bytes (rows,) of each training row: low for a repetitive one."""
    table = token_bytes(text.corpus.tokenizer)
    return compressibility([b"".join(table[token] for token in row) or b" " for row in text.train.tokens])


def deal_to_rows(rho: Weights, worth: Floats) -> Weights:
    """The same weights (rows, t - 1) sorted, the largest to the rows of the highest `worth` (rows,): one histogram."""
    result = np.empty_like(rho)
    result[np.argsort(worth, kind="stable")] = np.sort(rho, axis=None).reshape(rho.shape)
    return result
