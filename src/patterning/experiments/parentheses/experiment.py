"""Parentheses: which of two algorithms does it learn? Steered both ways by the free-energy gap of two solutions.

The task of Li et al. (arXiv 2507.06445) has two solutions that are perfect on its data, Nested and Equal-Count.
Training visits both: unweighted pilots, measured along the way, hold checkpoints that are pure. The gap between these,
sampled around each, gives weights that ask for one of them (docs/results/parentheses.md).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from patterning.experiments.parentheses.subject import ParenthesesSubject, TaskSize, build_task
from patterning.intervention.direction import Direction
from patterning.study.arms import Rival
from patterning.study.bench import Bench, Kind, Reading
from patterning.study.readings import OfTraining, OverRuns
from patterning.study.readings_of_solutions import Around, Gap, LossGap
from patterning.study.run import Study
from patterning.study.sampling import Sampling
from patterning.study.settings import StudySettings
from patterning.tasks.parentheses import CONSTANT_LOSS
from patterning.training.weighted import TrainConfig
from patterning.verification.controls import thinned

PURE = 0.99
"""A checkpoint is a solution of a rule when its answers agree with the rule on this share of the OOD strings."""


class ParenthesesConfig(StudySettings):
    """`train` is what claims are trained with, measured at `measure_at`.

    Pilots are trained with `pilot_train` (None: as claims), and with `smooth`, where every run goes to Nested first.
    `solutions`: how many of each rule the gap is read between. `oracle_keep`: the share of weight that the oracle arms
    leave to the classes they thin out; None: no oracle arms.
    """

    experiment: Literal["parentheses"] = "parentheses"
    task: TaskSize
    train: TrainConfig
    pilot_train: TrainConfig | None = None
    smooth: TrainConfig | None = None
    measure_at: tuple[int, ...]
    sampling: Sampling
    solutions: int = Field(default=3, ge=1)
    free_labels: tuple[bool, ...] = (True, False)
    id_floor: float = Field(default=0.97, ge=0, le=1)
    seeds_per_split: int = Field(default=1, ge=1)
    oracle_keep: float | None = Field(default=0.1, ge=0, lt=1)


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
    others = {name: part for name, part in (("", config.pilot_train), ("smooth", config.smooth)) if part is not None}
    return Study(
        subject_of(config),
        readings,
        keep=config.measure_at,
        settings={name: subject_of(config, part) for name, part in others.items()},
        rivals=lambda bench, directions: rivals(config, bench, directions),
    )


def rivals(config: ParenthesesConfig, bench: Bench, directions: Mapping[str, Direction]) -> dict[str, Rival]:
    """Oracle arms, which know the answer: classes of FALSE strings that one rule needs are thinned out."""
    del directions
    if config.oracle_keep is None:
        return {}
    task = build_task(config.task)
    q, free = bench.subject.base_weights, ~task.train.labels
    never = np.any([mask for name, mask in task.classes.items() if name.startswith("FALSE, never dips")], axis=0)
    thin: Sequence[tuple[str, str, Any]] = [("Nested", "up", never), ("Equal-Count", "down", free & ~never)]
    return {
        f"oracle → {name}": Rival(thinned(mask, q, free, config.oracle_keep), kind="oracle", way=way)
        for name, way, mask in thin
    }


_SAMPLING: dict[str, Any] = {
    "n_beta": 300.0, "localization": 5000.0, "step_size": 1e-5, "chains": 4, "draws": 32, "burn_in": 100,
    "steps_between_draws": 8, "batch_size": 128,
}  # fmt: skip

# docs/results/parentheses.md: the gap each way, at a strength chosen on two seeds of its own.
_STANDARD: dict[str, Any] = {
    "task": {"max_length": 20, "draws": 20_000, "layers": 3},
    "train": {"steps": 1500, "batch_size": 64, "learning_rate": 1e-3, "weight_decay": 1e-2},
    "pilot_train": {"steps": 6000, "batch_size": 64, "learning_rate": 1e-3, "weight_decay": 1e-2},
    "smooth": {"steps": 400, "batch_size": 256, "learning_rate": 3e-4, "weight_decay": 1e-2, "epsilon": 1e-4},
    "measure_at": (50, 100, 150, 200, 400, 800, 1500, 2000, 2500, 3000, 3500, 4000, 4500, 5000, 5500, 6000),
    "sampling": _SAMPLING,
    "pilots": 6,
    "seeds": 16,
    "side_seeds": 8,
    "directions": ("gap", "losses"),
    "strengths": ({"policy": "rank-tilt", "alpha": 1.0},),
    "strengths_of": {"gap": ({"policy": "rank-tilt", "alpha": 1.0}, {"policy": "rank-tilt", "alpha": 1.5})},
    "together": False,
    "permuted": ("gap",),
    "oracle_keep": None,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "standard": _STANDARD,
    "standard-2-layers": _STANDARD | {"task": _STANDARD["task"] | {"layers": 2}},
}
DEFAULT = "standard"
