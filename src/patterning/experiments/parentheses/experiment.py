"""Parentheses: which of two algorithms does it learn? Steered both ways by the free-energy gap of two solutions.

The task of Li et al. (arXiv 2507.06445) has two solutions that are perfect on its data, Nested and Equal-Count.
Training visits both: unweighted pilots, measured along the way, hold checkpoints that are pure. The gap between these,
sampled around each, gives weights that ask for one of them (docs/results/parentheses.md).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from patterning.core.arrays import Floats
from patterning.core.plain import Document
from patterning.experiments.parentheses.figure import figure
from patterning.experiments.parentheses.subject import ParenthesesSubject, TaskSize, build_task
from patterning.intervention.direction import Direction
from patterning.study.arms import Rival
from patterning.study.bench import Bench, Kind, Reading
from patterning.study.given import Given
from patterning.study.metagradient import OfGradient
from patterning.study.readings import OfTraining, OverRuns
from patterning.study.readings_of_solutions import Around, Gap, LossGap
from patterning.study.rivals import Lead
from patterning.study.run import Study
from patterning.study.sampling import Sampling
from patterning.study.settings import Strength, StudySettings, Way
from patterning.study.strength import weigh
from patterning.tasks.parentheses import CONSTANT_LOSS
from patterning.training.weighted import TrainConfig
from patterning.verification.controls import random_direction_like, thinned

WAYS: tuple[tuple[Way, str], ...] = (("up", "Nested"), ("down", "Equal-Count"))
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
    return ParenthesesSubject(config.task, own, tuple(steps), config.free_labels, config.id_floor)


def study(config: ParenthesesConfig) -> Study:
    """What `run_study` runs."""
    nested = Kind("agree_nested", PURE, config.solutions, "smooth" if config.smooth else "", "id_accuracy", PURE)
    equal = Kind("agree_equal_count", PURE, config.solutions, guard="id_accuracy", guard_at_least=PURE)
    names = ("Nested", "Equal-Count")

    def gap(row: Any) -> Gap:
        return Gap(nested, equal, config.sampling, CONSTANT_LOSS, names, row)

    readings: dict[str, Reading] = {
        "gap": gap("free-energy"),
        "llc-posterior": gap("llc-posterior"),
        "llc-total": gap("llc-total"),
        "entropic": gap("entropic"),
        "losses": LossGap(nested, equal, names),
        "ood": Around(nested, {"ood_loss": -1.0}, config.sampling, CONSTANT_LOSS, name_of_kind="Nested"),
        "ood-held": Around(
            nested, {"ood_loss": -1.0}, config.sampling, CONSTANT_LOSS, ("true_loss", "false_loss"), "Nested"
        ),
        "runs": OverRuns(),
        "runs-groups": OverRuns(groups=6),
        "retraining": OfTraining(config.seeds_per_split),
    }
    if config.smooth is not None:
        readings["metagradient"] = OfGradient(subject_of(config, config.smooth), "ood_loss", -1.0)
    if config.given is not None:
        readings["given"] = Given(config.given, "gap")
    others = {name: part for name, part in (("", config.pilot_train), ("smooth", config.smooth)) if part is not None}
    return Study(
        subject_of(config),
        readings,
        keep=config.measure_at,
        settings={name: subject_of(config, part) for name, part in others.items()},
        rivals=lambda bench, directions: rivals(config, bench, directions),
        figure=figure,
    )


def rivals(config: ParenthesesConfig, bench: Bench, directions: Mapping[str, Direction]) -> dict[str, Rival]:
    """What else may steer or not: other readings and strengths, classes of strings, random directions."""
    lead = Lead.of(bench, directions, bench.seeds.claims[: config.rival_seeds])
    few = config.rival_seeds
    result = dict[str, Rival]()
    for i, name in enumerate(config.rival_readings):
        reading = study(config).readings[name].read(name, bench).direction
        for way, rule in WAYS:
            s = reading.s if way == "up" else -reading.s
            rho = lead.along(s, bench.chosen.get((lead.name, way)))
            result[f"{name} → {rule}"] = Rival(rho, kind="rival", way=way, seeds=few if i else None)
    for strength in config.other_strengths:
        for way, rule in WAYS:
            rho = weigh(bench, lead.direction, way, strength).rho
            result[f"{lead.name} → {rule}, {strength}"] = Rival(rho, kind="strength", way=way, seeds=few)
    for seed in range(config.random_directions):
        rho = lead.along(random_direction_like(lead.direction.s, seed))
        result[f"random direction {seed + 1}"] = Rival(rho, kind="random", seeds=few)
    return result | _by_class(config, bench.subject.base_weights, few)


def _by_class(config: ParenthesesConfig, q: Floats, few: int) -> dict[str, Rival]:
    """Each class of FALSE strings thinned out or multiplied; and the oracle, which knows which classes a rule needs."""
    task, result = build_task(config.task), dict[str, Rival]()
    free = ~task.train.labels
    classes = {name: mask for name, mask in task.classes.items() if name.startswith("FALSE")}
    for name, mask in classes.items():
        for factor in config.class_factors:
            rho = thinned(mask, q, free, factor)
            result[f"{factor:g} × {name}"] = Rival(rho, kind="class", seeds=few)
    if config.oracle_keep is not None:
        never = np.any([mask for name, mask in classes.items() if name.startswith("FALSE, never dips")], axis=0)
        for (way, rule), mask in zip(WAYS, (never, free & ~never), strict=True):
            rho = thinned(mask, q, free, config.oracle_keep)
            result[f"oracle → {rule}"] = Rival(rho, kind="oracle", way=way, seeds=few)
    return result


_SAMPLING: Document = {
    "n_beta": 300.0, "localization": 5000.0, "step_size": 1e-5, "chains": 4, "draws": 32, "burn_in": 100,
    "steps_between_draws": 8, "batch_size": 128,
}  # fmt: skip

# docs/results/parentheses.md: the gap each way, at a strength chosen on two seeds of its own. Runs come to rest in a
# solution, as the learning rate falls over their second half; pilots go on switching, so that both solutions are seen.
_STANDARD: Document = {
    "task": {"max_length": 20, "draws": 20_000, "layers": 3},
    "train": {"steps": 1500, "batch_size": 64, "learning_rate": 1e-3, "weight_decay": 1e-2, "settle": 0.5},
    "pilot_train": {"steps": 6000, "batch_size": 64, "learning_rate": 1e-3, "weight_decay": 1e-2},
    "smooth": {"steps": 400, "batch_size": 256, "learning_rate": 3e-4, "weight_decay": 1e-2, "epsilon": 1e-4},
    "measure_at": (50, 100, 150, 200, 400, 800, 1500, 2000, 2500, 3000, 3500, 4000, 4500, 5000, 5500, 6000),
    "sampling": _SAMPLING,
    "pilots": 6,
    "pilot_seed": 1100,
    "tuning_seed": 2100,
    "seeds": 16,
    "first_seed": 7000,
    "side_seeds": 8,
    "directions": ("gap",),
    "strengths": ({"policy": "rank-tilt", "alpha": 1.0}, {"policy": "rank-tilt", "alpha": 1.5}),
    "together": False,
    "rival_readings": ("losses", "llc-posterior", "llc-total"),
    "other_strengths": tuple({"policy": "rank-tilt", "alpha": alpha} for alpha in (0.25, 0.5, 0.75, 2.0)),
    "class_factors": (0.4,),
    "random_directions": 3,
    "rival_seeds": 3,
}  # fmt: skip

# Two layers and short runs, for a look: Equal-Count steers; above the unweighted runs there is little room for Nested.
_QUICK: Document = _STANDARD | {
    "task": {"max_length": 20, "draws": 20_000, "layers": 2},
    "train": _STANDARD["train"] | {"steps": 600},
    "pilot_train": _STANDARD["pilot_train"] | {"steps": 4000},
    "sampling": _SAMPLING | {"draws": 20, "burn_in": 60},
    "pilots": 5,
    "seeds": 8,
    "solutions": 2,
    "strengths": ({"policy": "rank-tilt", "alpha": 1.0},),
    "rival_readings": (),
    "other_strengths": (),
    "class_factors": (),
    "random_directions": 0,
    "oracle_keep": None,
}

PRESETS: dict[str, Document] = {
    "quick": _QUICK,
    "standard": _STANDARD,
    "standard-2-layers": _STANDARD | {"task": _STANDARD["task"] | {"layers": 2}},
}
DEFAULT = "standard"
