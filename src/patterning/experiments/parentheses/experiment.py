"""Parentheses: which of two algorithms does it learn? Steered both ways by the free-energy gap of two solutions.

The task of Li et al. (arXiv 2507.06445) has two solutions that are perfect on its data, Nested and Equal-Count.
Training visits both: unweighted pilots, measured along the way, hold checkpoints that are pure. The gap between these,
sampled around each, gives weights that ask for one of them (docs/results/parentheses.md).
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from patterning.experiments.parentheses.subject import ParenthesesSubject, TaskSize, build_task
from patterning.intervention.direction import Direction
from patterning.study.arms import Rival
from patterning.study.bench import Bench, Kind, Reading
from patterning.study.figure import figure_by_seed
from patterning.study.given import Given
from patterning.study.iterated import Pair
from patterning.study.metagradient import OfGradient
from patterning.study.readings import OfTraining, OverRuns
from patterning.study.readings_of_solutions import Around, Barrier, Gap, LossGap
from patterning.study.rivals import Lead, at_strengths, other_reading, single_random_directions, thinned_groups
from patterning.study.run import Study
from patterning.study.sampling import Sampling
from patterning.study.settings import Strength, StudySettings, Way
from patterning.tasks.parentheses import CONSTANT_LOSS
from patterning.training.weighted import TrainConfig
from patterning.verification.controls import thinned

WAYS: dict[Way, str] = {"up": "Nested", "down": "Equal-Count"}
PURE = 0.99
"""A checkpoint is a solution of a rule when its answers agree with the rule on this share of the OOD strings."""


class ParenthesesConfig(StudySettings):
    """`train` is what claims are trained with, measured at `measure_at`.

    Pilots are trained with `pilot_train` (None: as claims), and with `smooth`, where every run goes to Nested first.
    `solutions`: how many of each rule the gap is read between. `given`: a run whose gap is used instead, on the same
    strings, to see whether weights carry over to another model (the direction "given").

    Rivals of the gap, trained beside it: `rival_readings`, each way at the gap's strengths; `other_strengths` of the
    gap; `class_factors` by which each class of FALSE strings is thinned out or multiplied; `random_directions`, the
    gap's scores dealt to other strings; `oracle_keep`, the share of weight that the oracle arms leave to the classes
    they thin out (None: no oracle arms). `rival_seeds`: of all but the first of the readings.
    """

    experiment: Literal["parentheses"] = "parentheses"
    task: TaskSize
    train: TrainConfig
    pilot_train: TrainConfig | None = None
    smooth: TrainConfig | None = None
    measure_at: tuple[int, ...]
    sampling: Sampling
    solutions: int = Field(default=3, ge=1)
    given: Path | None = None
    free_labels: tuple[bool, ...] = (True, False)
    id_floor: float = Field(default=0.97, ge=0, le=1)
    seeds_per_split: int = Field(default=1, ge=1)
    oracle_keep: float | None = Field(default=0.1, ge=0, lt=1)
    rival_readings: tuple[str, ...] = ()
    other_strengths: tuple[Strength, ...] = ()
    class_factors: tuple[float, ...] = ()
    random_directions: int = Field(default=0, ge=0)
    rival_seeds: int = Field(default=4, ge=2)


CONFIG = ParenthesesConfig


def subject_of(config: ParenthesesConfig, train: TrainConfig | None = None) -> ParenthesesSubject:
    """The subject under the claims' training settings, or under others."""
    own = config.train if train is None else train
    steps = sorted({step for step in config.measure_at if step <= own.steps} | {own.steps})
    at_once = 1 if config.device == "cpu" else 64  # seeds fill a GPU together
    return ParenthesesSubject(
        config.task, own, tuple(steps), config.free_labels, config.id_floor, config.device, at_once
    )


def study(config: ParenthesesConfig) -> Study:
    """What `run_study` runs."""
    nested = Kind("agree_nested", PURE, config.solutions, "smooth" if config.smooth else "", "id_accuracy", PURE)
    equal = Kind("agree_equal_count", PURE, config.solutions, guard="id_accuracy", guard_at_least=PURE)
    names = (WAYS["up"], WAYS["down"])

    def gap(row: Any) -> Gap:
        return Gap(nested, equal, config.sampling, CONSTANT_LOSS, names, row)

    def around(held: tuple[str, ...]) -> Around:
        return Around(nested, {"ood_loss": -1.0}, config.sampling, CONSTANT_LOSS, held, WAYS["up"])

    readings: dict[str, Reading] = {
        "gap": gap("free-energy"),
        **{row: gap(row) for row in ("llc-posterior", "llc-total", "entropic")},
        "losses": LossGap(nested, equal, names),
        "barrier": Barrier(replace(nested, settings=""), WAYS["up"]),
        "barrier-out": Barrier(equal, WAYS["down"], sign=-1.0),
        "ood": around(()),
        "ood-held": around(("true_loss", "false_loss")),
        "runs": OverRuns(),
        "runs-groups": OverRuns(groups=6),
        "retraining": OfTraining(config.seeds_per_split),
        **({"metagradient": OfGradient(subject_of(config, config.smooth), "ood_loss", -1.0)} if config.smooth else {}),
        **({"given": Given(config.given, "gap")} if config.given else {}),
    }
    others = {name: part for name, part in (("", config.pilot_train), ("smooth", config.smooth)) if part is not None}
    return Study(
        subject_of(config),
        readings,
        keep=config.measure_at,
        settings={name: subject_of(config, part) for name, part in others.items()},
        pair=Pair(nested, equal, names),
        rivals=partial(rivals, config),
        figure=partial(figure_by_seed, title="accuracy where the two algorithms disagree: 0 Equal-Count, 1 Nested"),
    )


def rivals(config: ParenthesesConfig, bench: Bench, directions: Mapping[str, Direction]) -> dict[str, Rival]:
    """What else may steer or not; a reading that was refused is no rival. Oracle arms know what a rule needs."""
    few, task, readings = config.rival_seeds, build_task(config.task), study(config).readings
    lead, free = Lead.of(bench, directions, bench.seeds.claims[:few]), ~task.train.labels
    result = at_strengths(lead, config.other_strengths, WAYS, few)
    result |= single_random_directions(lead, config.random_directions, few)
    for i, name in enumerate(config.rival_readings):
        read, seeds = partial(readings[name].read, name, bench), few if i else None
        for way, rule in WAYS.items():
            strength = bench.chosen.get((lead.name, way))
            result |= other_reading(lead, f"{name} → {rule}", read, way, strength, kind="rival", seeds=seeds)
    classes = {name: mask for name, mask in task.classes.items() if name.startswith("FALSE")}
    result |= thinned_groups(bench, classes, free, config.class_factors, few)
    if config.oracle_keep is not None:
        never = np.any([mask for name, mask in classes.items() if name.startswith("FALSE, never dips")], axis=0)
        for (way, rule), mask in zip(WAYS.items(), (never, free & ~never), strict=True):
            rho = thinned(mask, bench.subject.base_weights, free, config.oracle_keep)
            result[f"oracle → {rule}"] = Rival(rho, kind="oracle", way=way, seeds=few)
    return result


# docs/results/parentheses.md. The gap each way, at a strength chosen on two seeds of its own. Runs come to rest in a
# solution, as the learning rate falls over their second half; pilots go on switching, so that both solutions are seen.
_GAP: dict[str, Any] = {
    "task": {"max_length": 20, "draws": 20_000, "layers": 3}, "directions": ("gap",), "together": False,
    "train": {"steps": 1500, "batch_size": 64, "learning_rate": 1e-3, "weight_decay": 1e-2, "settle": 0.5},
    "pilot_train": {"steps": 6000, "batch_size": 64, "learning_rate": 1e-3, "weight_decay": 1e-2},
    "smooth": {"steps": 400, "batch_size": 256, "learning_rate": 3e-4, "weight_decay": 1e-2, "epsilon": 1e-4},
    "measure_at": (50, 100, 150, 200, 400, 800, 1500, 2000, 2500, 3000, 3500, 4000, 4500, 5000, 5500, 6000),
    "sampling": {"n_beta": 300.0, "localization": 5000.0, "step_size": 1e-5, "chains": 4, "draws": 32, "burn_in": 100,
                 "steps_between_draws": 8, "batch_size": 128},
    "pilots": 6, "pilot_seed": 1100, "tuning_seed": 2100, "seeds": 16, "first_seed": 7000, "side_seeds": 8,
    "strengths": tuple({"policy": "rank-tilt", "alpha": alpha} for alpha in (1.0, 1.5)), "oracle_keep": None,
}  # fmt: skip
_STANDARD = _GAP | {
    "other_strengths": tuple({"policy": "rank-tilt", "alpha": alpha} for alpha in (0.25, 0.5, 0.75, 2.0)),
    "rival_readings": ("losses", "llc-posterior", "llc-total"), "rival_seeds": 3, "class_factors": (0.4,),
    "random_directions": 3, "oracle_keep": 0.1,
}  # fmt: skip
# Two layers and short runs, for a look: Equal-Count steers; above the unweighted runs there is little room for Nested.
_QUICK: dict[str, Any] = _GAP | {
    "task": _GAP["task"] | {"layers": 2}, "train": _GAP["train"] | {"steps": 600}, "pilots": 5, "seeds": 8,
    "pilot_train": _GAP["pilot_train"] | {"steps": 4000}, "solutions": 2, "strengths": _GAP["strengths"][:1],
    "sampling": _GAP["sampling"] | {"draws": 20, "burn_in": 60},
}  # fmt: skip
# Data, model and training of Li et al.; solutions are found by shorter training, and Equal-Count by rounds of weights.
_PAPER: dict[str, Any] = _GAP | {
    "task": {"max_length": 40, "draws": 200_000, "distinct": True, "layers": 3}, "rounds": {"most": 3},
    "train": {"steps": 125_000, "batch_size": 8, "learning_rate": 1e-4, "weight_decay": 1e-2}, "solutions": 1,
    "pilot_train": _GAP["pilot_train"] | {"steps": 3000}, "smooth": _GAP["smooth"] | {"steps": 300}, "ways": ("down",),
    "measure_at": (150, 200, 300, 400, 800, 1500, 2000, 2500, 3000, *range(5000, 125_001, 5000)), "pilots": 4,
    "sampling": _GAP["sampling"] | {"chains": 2, "draws": 8}, "strengths": _GAP["strengths"][:1], "seeds": 8,
    "pilot_seed": 1400, "tuning_seed": 2500, "first_seed": 7600,
}  # fmt: skip
_TWO_LAYERS = _STANDARD | {"task": _QUICK["task"], "pilot_seed": 1800, "tuning_seed": 2800, "first_seed": 9000}

PRESETS = {"quick": _QUICK, "standard": _STANDARD, "standard-2-layers": _TWO_LAYERS, "paper-3-layers": _PAPER}
DEFAULT = "standard"
