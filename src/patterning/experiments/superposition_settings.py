"""Settings of the superposition experiment, and the sizes it comes in."""

from typing import Any, Literal

from pydantic import Field, model_validator

from patterning.core.errors import PatterningError
from patterning.core.settings import Frozen, Settings, validate
from patterning.posterior.around import CHECK_EVERY


class TrainSettings(Frozen):
    """Noisy training from N(0, `init_scale`²) under the prior N(0, 1), then `quiet_steps` of descent without noise."""

    learning_rate: float = Field(default=0.3, gt=0, lt=1)
    steps: int = Field(default=4000, ge=1)
    quiet_steps: int = Field(default=200, ge=1)
    init_scale: float = Field(default=0.1, gt=0)


class SamplingSettings(Frozen):
    """The localized posterior around each solution: γ, ε, and the length of the chains."""

    localization: float = Field(default=30.0, gt=0)
    step_size: float = Field(default=5e-4, gt=0)
    chains: int = Field(default=32, ge=4)
    steps: int = Field(default=4000, ge=100)
    burn_in: int = Field(default=800, ge=0)
    steps_between_draws: int = Field(default=10, ge=1)
    seed: int = Field(default=2000, ge=0)


class Ask(Frozen):
    """A wish: more runs that end as `target`, by weights ρ = 1 + α s with max |s| = 1 (so that ρ stays positive)."""

    target: Literal["hexagon", "pentagon-1", "pentagon-2", "pentagon-3", "pentagon-4", "pentagon-5", "pentagon-6"]
    alpha: float = Field(gt=0, lt=1)


class SuperpositionConfig(Settings):
    """The whole experiment: `seeds` paired runs an arm from `first_seed` on; unweighted pilot runs from seed 0 on."""

    experiment: Literal["superposition"] = "superposition"
    n_beta: float = Field(default=300.0, gt=0)
    train: TrainSettings = TrainSettings()
    sampling: SamplingSettings = SamplingSettings()
    pilot_seeds: int = Field(default=400, ge=4)
    seeds: int = Field(default=200, ge=4)
    first_seed: int = Field(default=1000, ge=0)
    asks: tuple[Ask, ...] = Field((Ask(target="hexagon", alpha=0.6), Ask(target="pentagon-3", alpha=0.8)), min_length=1)
    permuted: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> "SuperpositionConfig":
        claim, sampling = range(self.first_seed, self.first_seed + self.seeds), self.sampling
        if self.first_seed < self.pilot_seeds:
            raise ValueError("first_seed must be at least pilot_seeds: pilot runs must not be counted again")
        if sampling.seed < self.pilot_seeds or sampling.seed in claim:
            raise ValueError("sampling.seed must not be the seed of a training run")
        if (sampling.steps - sampling.burn_in) // sampling.steps_between_draws < 2 * CHECK_EVERY:
            raise ValueError(f"sampling.steps must leave at least {2 * CHECK_EVERY} draws after burn_in")
        if len({ask.target for ask in self.asks}) < len(self.asks):
            raise ValueError("asks must have different targets")
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "demo": {},
    "long": {"train": {"steps": 16_000}},
    "fine": {"train": {"steps": 12_000, "learning_rate": 0.1}},
}
"""`long` trains four times as long as `demo`; `fine` as long (learning rate × steps) in steps a third as large."""
DEFAULT = "demo"


def preset_config(name: str) -> SuperpositionConfig:
    """The configuration of a preset; raises `PatterningError` for a name that is none."""
    if name not in PRESETS:
        raise PatterningError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
    return load_config({"preset": name, **PRESETS[name]}, f"preset {name}")


def load_config(values: dict[str, Any], origin: str) -> SuperpositionConfig:
    """A validated configuration; raises `PatterningError` that names the first wrong field of `origin`."""
    return validate(SuperpositionConfig, values, origin)
