"""The stages after inversion: choose the strength on pilot seeds, retrain on the claim's seeds, verify."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterning.core.store import Arrays, Unit
from patterning.core.workers import Workers
from patterning.experiments.parentheses.adaptive import adaptive_unit
from patterning.experiments.parentheses.config import AdaptiveSettings, ParenthesesConfig
from patterning.experiments.parentheses.directions import TOWARD, Direction
from patterning.experiments.parentheses.stages import (
    PILOT_SEED,
    Measures,
    chain_settings,
    gather,
    train_unit,
    unweighted,
)
from patterning.intervention.permute import permuted
from patterning.intervention.weights import Policy, make_weights, summarise
from patterning.tasks.parentheses import Parentheses, name_rule
from patterning.tasks.strings import RULES
from patterning.verification.controls import thinned
from patterning.verification.effects import paired_effect

Floats = NDArray[np.float64]
LABELS = {"nested": "Nested", "equal_count": "Equal-Count"}


@dataclass(frozen=True)
class Strength:
    """How a direction is applied: the policy and α that the sweep chose."""

    policy: Policy
    alpha: float


@dataclass
class Arm:
    """Retrained runs under one set of weights. `rho` (n,) is what the report shows; None where it varies by seed."""

    name: str
    label: str
    toward: str
    kind: str
    runs: list[Arrays] = field(default_factory=list)
    rho: Floats | None = None
    control: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)


def sweep_strength(
    config: ParenthesesConfig,
    task: Parentheses,
    pool: Workers,
    pilots: Sequence[Arrays],
    directions: Sequence[Direction],
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], Strength]]:
    """Try every policy and α on pilot seeds, and choose one for every direction, the same for both targets.

    The choice parts the two targets most in OOD accuracy, among the candidates that keep the ID accuracy under both, or
    has the best ID accuracy if none does. Parting the targets compares weighted runs of the same seeds with each other:
    a few unweighted runs that happened to end high or low do not enter. A single candidate is taken without training.
    """
    q, free = task.base_weights.numpy(), ~task.train.labels
    candidates = [Strength(policy, alpha) for policy in config.sweep.policies for alpha in config.sweep.alphas]
    if len(candidates) == 1:
        return [], dict.fromkeys(product([direction.name for direction in directions], TOWARD), candidates[0])
    seeds = range(PILOT_SEED, PILOT_SEED + config.sweep.seeds)
    base = gather(list(pilots[: len(seeds)]))
    rows: list[dict[str, Any]] = []
    work: list[Unit] = []
    for direction in directions:
        for toward, strength in product(TOWARD, candidates):
            rho = make_weights(direction.toward(toward), q, policy=strength.policy, alpha=strength.alpha, free=free)
            work += [train_unit(config, "sweep", seed, rho[None]) for seed in seeds]
            rows.append({"direction": direction.name, "toward": toward} | asdict(strength))
            rows[-1] |= asdict(summarise(rho, q, free))
    found = pool.compute(work, "strength, on pilot seeds")
    for i, row in enumerate(rows):
        measures = gather(found[i * len(seeds) : (i + 1) * len(seeds)])
        row["id_accuracy"] = float(measures["id_accuracy"].mean())
        change = measures["ood_accuracy"] - base["ood_accuracy"]
        row["difference"] = float(change.mean())
        row["standard_error"] = float(change.std(ddof=1) / np.sqrt(len(change))) if len(change) > 1 else None
        row["chosen"] = False
    chosen = {}
    for direction in directions:
        best = max(candidates, key=lambda candidate: _merit(rows, direction.name, candidate, config.sweep.id_floor))
        for toward in TOWARD:
            _row(rows, direction.name, toward, best)["chosen"] = True
            chosen[direction.name, toward] = best
    return rows, chosen


def _row(rows: Sequence[dict[str, Any]], direction: str, toward: str, strength: Strength) -> dict[str, Any]:
    wanted = {"direction": direction, "toward": toward} | asdict(strength)
    return next(row for row in rows if wanted.items() <= row.items())


def _merit(rows: Sequence[dict[str, Any]], direction: str, strength: Strength, floor: float) -> tuple[bool, float]:
    """Candidates that keep the ID accuracy first, by how far the targets part; then the others, by ID accuracy."""
    nested, equal = (_row(rows, direction, toward, strength) for toward in TOWARD)
    lowest = min(nested["id_accuracy"], equal["id_accuracy"])
    return (True, nested["difference"] - equal["difference"]) if lowest >= floor else (False, lowest)


def retrain(
    config: ParenthesesConfig,
    task: Parentheses,
    pool: Workers,
    directions: Sequence[Direction],
    chosen: Mapping[tuple[str, str], Strength],
    kernel: Mapping[str, float],
) -> list[Arm]:
    """Train every arm from scratch on the claim's seeds: unweighted, steered, permuted controls, oracles, adaptive."""
    q, free = task.base_weights.numpy(), ~task.train.labels
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    plan: list[tuple[Arm, list[Unit]]] = [
        (Arm("unweighted", "unweighted", "", "baseline"), [unweighted(config, "unweighted", seed) for seed in seeds])
    ]

    def add(arm: Arm, weights: Sequence[Floats]) -> None:
        work = [train_unit(config, arm.name, seed, rho[None]) for seed, rho in zip(seeds, weights, strict=True)]
        plan.append((arm, work))

    for direction, toward in product(directions, TOWARD):
        strength = chosen[direction.name, toward]
        s = direction.toward(toward)
        rho = make_weights(s, q, policy=strength.policy, alpha=strength.alpha, free=free)
        name, label = f"{direction.name}-{toward}", f"{direction.name} → {LABELS[toward]}"
        notes = asdict(strength) | asdict(summarise(rho, q, free))
        add(Arm(name, label, toward, "steered", rho=rho, control=f"permuted-{name}", notes=notes), [rho] * config.seeds)
        if direction.name in config.permuted:
            shuffled = [permuted(rho, q, free, seed) for seed in seeds]
            add(Arm(f"permuted-{name}", f"permuted {label}", "", "control", notes=notes), shuffled)
    for toward, classes in zip(TOWARD, oracle_classes(task), strict=True):
        rho = thinned(classes, q, free, config.oracle_keep)
        notes = {"keep": config.oracle_keep} | asdict(summarise(rho, q, free))
        add(
            Arm(f"oracle-{toward}", f"oracle → {LABELS[toward]}", toward, "oracle", rho=rho, notes=notes),
            [rho] * config.seeds,
        )
    if config.adaptive is not None:
        for toward in TOWARD:
            arm = Arm(f"adaptive-{toward}", f"adaptive → {LABELS[toward]}", toward, "steered")
            arm.control = f"permuted-{arm.name}"
            plan.append((arm, [_adaptive(config, config.adaptive, seed, toward, kernel) for seed in seeds]))
    found = pool.compute([unit for _, work in plan for unit in work], "retraining every arm")
    for i, (arm, _) in enumerate(plan):
        arm.runs = found[i * config.seeds : (i + 1) * config.seeds]
    arms = [arm for arm, _ in plan]
    if config.adaptive is not None:
        arms += _permuted_adaptive(config, config.adaptive, task, pool, arms)
    return arms


def oracle_classes(task: Parentheses) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """FALSE strings that the oracle arms thin out, (n,) each: those that never dip (→ Nested), those that do."""
    never = np.zeros(len(task.train), dtype=bool)
    for name, mask in task.classes.items():
        if name.startswith("FALSE, never dips"):
            never |= mask
    return never, ~task.train.labels & ~never


def _adaptive(
    config: ParenthesesConfig, settings: AdaptiveSettings, seed: int, toward: str, kernel: Mapping[str, float]
) -> Unit:
    return Unit(
        f"adaptive-{toward}",
        adaptive_unit,
        {
            "task": config.task.model_dump(),
            "train": config.train.model_dump(),
            "seed": seed,
            "toward": toward,
            "marks": list(settings.marks),
            "policy": settings.policy,
            "alpha": settings.alpha,
            "kernel": dict(kernel),
            "chains": chain_settings(config)
            | {"chains": settings.chains, "draws": settings.draws, "burn_in": settings.burn_in, "seed": seed + 1},
            "batches": config.sampling.batches,
        },
    )


def _permuted_adaptive(
    config: ParenthesesConfig, settings: AdaptiveSettings, task: Parentheses, pool: Workers, arms: Sequence[Arm]
) -> list[Arm]:
    """The weights that each adaptive run chose, dealt to other FALSE strings, segment by segment."""
    q, free = task.base_weights.numpy(), ~task.train.labels
    result, work = [], []
    for toward in TOWARD:
        adaptive = next(arm for arm in arms if arm.name == f"adaptive-{toward}")
        for seed, run in enumerate(adaptive.runs, config.first_seed):
            rho = np.stack([permuted(row, q, free, seed) for row in run["rho"]])
            work.append(train_unit(config, f"permuted-adaptive-{toward}", seed, rho, [0, *settings.marks]))
        result.append(Arm(f"permuted-{adaptive.name}", f"permuted {adaptive.label}", "", "control", [], None, None))
    found = pool.compute(work, "permuted adaptive control")
    for i, arm in enumerate(result):
        arm.runs = found[i * config.seeds : (i + 1) * config.seeds]
    return result


def verify(config: ParenthesesConfig, task: Parentheses, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Every arm as plain values: outcomes by seed, paired effects, rules reached, what the weights are."""
    measured: dict[str, Measures] = {arm.name: gather(arm.runs) for arm in arms}
    base = measured["unweighted"]
    rows = []
    for arm in arms:
        mine = measured[arm.name]
        control = measured.get(arm.control or "")
        counts = dict.fromkeys([*RULES, "none"], 0)
        for i in range(len(arm.runs)):
            counts[name_rule({key: float(value[i]) for key, value in mine.items()})] += 1
        rho = arm.rho if arm.rho is not None else _mean_rho(arm)
        rivals = sum(other.kind == "steered" and other.toward == arm.toward for other in arms)
        rows.append(
            {
                "name": arm.name,
                "label": arm.label,
                "toward": arm.toward,
                "kind": arm.kind,
                "seeds": [config.first_seed + i for i in range(len(arm.runs))],
                "measures": {key: value.tolist() for key, value in mine.items()},
                "rules": counts,
                "effect": _effects(mine, base) if arm.name != "unweighted" else None,
                "effect_against_permuted": _effects(mine, control) if control is not None else None,
                "simultaneous": _simultaneous(mine, base, control, rivals) if arm.kind == "steered" else None,
                "notes": arm.notes | _adaptive_notes(arm),
                "weight_by_class": None if rho is None else _by_class(task, rho),
                "extreme_strings": None if arm.rho is None else _extremes(task, arm.rho),
            }
        )
    return rows


def _effects(mine: Measures, other: Measures) -> dict[str, Any]:
    return {key: asdict(paired_effect(mine[key], other[key])) for key in mine}


def _simultaneous(mine: Measures, base: Measures, control: Measures | None, rivals: int) -> dict[str, Any]:
    """Effects on OOD accuracy at the level that allows for picking the largest of `rivals` directions (Bonferroni)."""

    def effect(other: Measures) -> dict[str, Any]:
        return asdict(paired_effect(mine["ood_accuracy"], other["ood_accuracy"], level=1 - 0.05 / rivals))

    return {"unweighted": effect(base), "permuted": effect(control) if control is not None else None}


def _mean_rho(arm: Arm) -> Floats | None:
    """Mean weights over runs and over the segments after the first mark, for the adaptive arm."""
    return None if "rho" not in arm.runs[0] else np.mean([run["rho"][1:].mean(0) for run in arm.runs], axis=0)


def _adaptive_notes(arm: Arm) -> dict[str, Any]:
    if "reliability" not in arm.runs[0]:
        return {}
    return {
        "reliability_by_mark": np.mean([run["reliability"] for run in arm.runs], axis=0).tolist(),
        "seconds_training": float(np.mean([run["seconds"][0] for run in arm.runs])),
        "seconds_chi": float(np.mean([run["seconds"][1] for run in arm.runs])),
    }


def _by_class(task: Parentheses, rho: Floats) -> dict[str, float]:
    q = task.base_weights.numpy()
    return {name: float((q * rho)[mask].sum() / q[mask].sum()) for name, mask in task.classes.items()}


def _extremes(task: Parentheses, rho: Floats, count: int = 10) -> dict[str, list[dict[str, Any]]]:
    """The most up- and down-weighted strings; among equal weights, the commoner first."""
    q = task.base_weights.numpy()
    order = np.lexsort((-q, -rho))
    down = np.lexsort((-q, rho))

    def rows(picks: NDArray[np.int64]) -> list[dict[str, Any]]:
        return [
            {"text": task.train.text(int(i)), "label": bool(task.train.labels[i]), "rho": float(rho[i])}
            for i in picks[:count]
        ]

    return {"up": rows(order), "down": rows(down)}
