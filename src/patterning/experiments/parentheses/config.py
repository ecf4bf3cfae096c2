"""Settings of the parentheses experiment: one validated class for the Python call, the YAML file and the flags.

Presets differ in maximum length, sample count, steps, layers and heads, and in how many seeds and draws are spent.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from patterning.core.settings import Frozen, Settings, read_yaml, validate
from patterning.intervention.weights import Policy


class TaskSettings(Frozen):
    """The data sets and the model (`make_parentheses`)."""

    max_length: int
    draws: int
    layers: int
    heads: int
    width: int = 64
    test_strings: int = 1000
    seed: int = 0


class TrainSettings(Frozen):
    """The optimiser (`TrainConfig`)."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)


class SamplingSettings(Frozen):
    """The localized posterior: nβ is stated; γ and ε are found for the wanted `rise` of the mean loss (`calibrate`)."""

    n_beta: float = Field(gt=0)
    rise: float = Field(gt=0, lt=1)
    chains: int = Field(ge=2)
    draws: int = Field(ge=8)
    burn_in: int = Field(ge=0)
    steps_between_draws: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    pilot_steps: int = Field(default=120, ge=50)
    batches: int = Field(default=4, ge=2)


DirectionName = Literal[
    "llc-posterior",
    "gap",
    "ood",
    "ood-held",
    "runs",
    "runs-groups",
    "early-covariance",
    "early-first-order",
    "retraining",
]


class EarlySettings(Frozen):
    """χ of unfinished pilot runs at these training steps, averaged over runs and steps."""

    steps: tuple[int, ...]
    chains: int = Field(default=2, ge=2)
    draws: int = Field(default=12, ge=8)
    burn_in: int = Field(default=60, ge=0)
    groups: int = Field(default=6, ge=2)
    runs: int = Field(default=4, ge=1)


class RetrainingSettings(Frozen):
    """Pilot pairs for the direction `retraining`: each split of the FALSE classes in halves, by log weights ±`step`."""

    seeds_per_split: int = Field(default=4, ge=1)
    step: float = Field(default=0.85, gt=0, le=3)


class SweepSettings(Frozen):
    """Candidate weights, tried on pilot seeds only; `id_floor` is the ID accuracy a candidate must keep."""

    policies: tuple[Policy, ...]
    alphas: tuple[float, ...]
    seeds: int = Field(default=4, ge=1)
    id_floor: float = 0.97


class AdaptiveSettings(Frozen):
    """Training steps at which a run reads its own χ and is re-weighted, with the length of each reading."""

    marks: tuple[int, ...]
    policy: Policy = "rank"
    alpha: float = Field(default=2.0, gt=0)
    chains: int = Field(default=2, ge=2)
    draws: int = Field(default=12, ge=8)
    burn_in: int = Field(default=60, ge=0)


class ParenthesesConfig(Settings):
    """The whole experiment: `seeds` claim runs an arm from `first_seed` on, and `pilot_seeds` runs for every choice.

    `permuted` names the directions that get a permuted-weights control. `oracle_keep` is the share of weight that the
    oracle arms leave to the classes they thin out.
    """

    experiment: Literal["parentheses"] = "parentheses"
    task: TaskSettings
    train: TrainSettings
    seeds: int = Field(ge=3)
    first_seed: int = Field(default=5000, ge=2000)
    pilot_seeds: int = Field(ge=3)
    sampling: SamplingSettings
    early: EarlySettings | None
    retraining: RetrainingSettings = RetrainingSettings()
    sweep: SweepSettings
    adaptive: AdaptiveSettings | None
    directions: tuple[DirectionName, ...]
    permuted: tuple[DirectionName, ...]
    oracle_keep: float = Field(default=0.1, ge=0, lt=1)
    solution_accuracy: float = Field(default=0.999, ge=0, le=1)
    min_reliability: float = Field(default=0.5, ge=0, le=1)

    @field_validator("directions", "permuted", mode="before")
    @classmethod
    def _old_names(cls, names: Any) -> Any:
        """Configurations of 2026-11-25 and before say "llc"."""
        return (
            ["llc-posterior" if name == "llc" else name for name in names] if isinstance(names, list | tuple) else names
        )

    @model_validator(mode="after")
    def _batches_fit(self) -> "ParenthesesConfig":
        if self.sampling.draws < self.sampling.batches:
            raise ValueError("sampling.draws must be at least sampling.batches")
        if self.sweep.seeds > self.pilot_seeds:
            raise ValueError("sweep.seeds must be at most pilot_seeds")
        late = [
            step
            for part in (self.early and self.early.steps, self.adaptive and self.adaptive.marks)
            for step in part or ()
        ]
        if any(not 0 < step < self.train.steps for step in late):
            raise ValueError("early.steps and adaptive.marks must lie inside the training run")
        return self


def load_config(values: dict[str, Any], origin: str) -> ParenthesesConfig:
    """A validated configuration; raises `PatterningError` that names the first wrong field of `origin`."""
    return validate(ParenthesesConfig, values, origin)


def read_config(path: Path) -> ParenthesesConfig:
    """The configuration in a YAML file; raises `PatterningError` when there is none."""
    return load_config(read_yaml(path), str(path))
