"""Settings of the parentheses experiment: one validated class for the Python call, the YAML file and the flags.

Presets differ in maximum length, sample count, steps, layers and heads, and in how many seeds and draws are spent.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from patterning.errors import PatterningError


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskSettings(_Frozen):
    """The data sets and the model (`make_parentheses`)."""

    max_length: int
    draws: int
    layers: int
    heads: int
    width: int = 64
    test_strings: int = 1000
    seed: int = 0


class TrainSettings(_Frozen):
    """The optimiser (`TrainConfig`)."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)


class SamplingSettings(_Frozen):
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


class SweepSettings(_Frozen):
    """Candidate weights, tried on the pilot seeds only; `id_floor` is the ID accuracy a candidate must keep."""

    policies: tuple[Literal["clip", "tilt", "rank"], ...]
    alphas: tuple[float, ...]
    id_floor: float = 0.97


class ParenthesesConfig(_Frozen):
    """The whole experiment. `seeds` claim runs an arm, `pilot_seeds` further runs for choosing everything else."""

    experiment: Literal["parentheses"] = "parentheses"
    preset: str
    task: TaskSettings
    train: TrainSettings
    seeds: int = Field(ge=3)
    pilot_seeds: int = Field(ge=3)
    sampling: SamplingSettings
    sweep: SweepSettings
    oracle_keep: float = Field(default=0.1, ge=0, lt=1)
    solution_accuracy: float = Field(default=0.999, ge=0, le=1)
    min_reliability: float = Field(default=0.5, ge=0, le=1)
    force: bool = False

    @model_validator(mode="after")
    def _batches_fit(self) -> "ParenthesesConfig":
        if self.sampling.draws < self.sampling.batches:
            raise ValueError("sampling.draws must be at least sampling.batches")
        return self


def load_config(values: dict[str, Any], origin: str) -> ParenthesesConfig:
    """A validated configuration; raises `PatterningError` that names the first wrong field of `origin`."""
    try:
        return ParenthesesConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise PatterningError(f"{origin}: {place}: {first['msg'].lower()}") from None


def read_config(path: Path) -> ParenthesesConfig:
    """The configuration in a YAML file; raises `PatterningError` when there is none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise PatterningError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(values, dict):
        raise PatterningError(f"{path} holds no configuration")
    return load_config(values, str(path))
