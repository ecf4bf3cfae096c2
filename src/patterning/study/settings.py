"""Settings that every study has: seeds, directions, strengths, controls."""

from typing import Literal

from pydantic import Field, model_validator

from patterning.core.settings import Frozen, Settings
from patterning.intervention.weights import Policy
from patterning.study.seeds import NOTHING, Seeds

Way = Literal["up", "down"]
SIGN: dict[Way, float] = {"up": 1.0, "down": -1.0}


class Strength(Frozen):
    """How strongly to weight along a direction: ρ by `policy` at strength `alpha` (`intervention.weights`)."""

    policy: Policy
    alpha: float = Field(gt=0)

    def __str__(self) -> str:
        """For tables."""
        return f"{self.policy} {self.alpha:g}"

    @model_validator(mode="after")
    def _positive(self) -> "Strength":
        if self.policy == "linear" and self.alpha >= 1:
            raise ValueError("alpha must be below 1 for linear weights, so that they stay positive")
        return self


class Rounds(Frozen):
    """At most `most` rounds; each trains `seeds` of the pilots' seeds towards each kind that is impure.

    `from_worst`: the first pair are not the purest checkpoints, but the two pilots' ends that are hardest to tell
    apart (by at least 0.05 in agreement): what the method makes of a bad start.
    """

    most: int = Field(default=3, ge=1)
    seeds: int = Field(default=2, ge=1)
    strength: Strength = Strength(policy="rank-tilt", alpha=1.0)
    from_worst: bool = False


class StudySettings(Settings):
    """What every study has. An experiment's configuration adds the sizes of its data, model and training.

    `seeds` claim runs an arm from `first_seed` on; `pilots` unweighted runs from `pilot_seed` on, on which every choice
    is made. `directions`: which of the experiment's readings are used, the leading one first. `ways`: asked up, down
    or both. `strengths`: candidates, tried on `tuning` seeds where there is more than one (`strengths_of`: of single
    directions); `together`: one strength for both ways. `permuted`: directions that get a permuted control (all,
    unless named). `permuted_draws`: 0 deals its weights anew for each seed; otherwise there are so many controls, each
    dealt once for all its seeds. `side_seeds`: seeds of arms other than the leading direction's, its controls and the
    unweighted one. `rounds`: of pilots under weights, where a kind of solutions is missing or impure
    (`study.iterated`). `device`: where runs are trained and chains are sampled ("cuda": docs/gpu.md).
    """

    seeds: int = Field(ge=3)
    first_seed: int = Field(default=5000, ge=0)
    pilots: int = Field(ge=1)
    pilot_seed: int = Field(default=1000, ge=0)
    tuning: int = Field(default=2, ge=1)
    tuning_seed: int = Field(default=2000, ge=0)
    pairs: int = Field(default=0, ge=0)
    pair_seed: int = Field(default=1500, ge=0)
    directions: tuple[str, ...] = Field(min_length=1)
    ways: tuple[Way, ...] = Field(default=("up", "down"), min_length=1)
    strengths: tuple[Strength, ...] = Field(min_length=1)
    strengths_of: dict[str, tuple[Strength, ...]] = Field(default={})
    together: bool = True
    permuted: tuple[str, ...] | None = None
    permuted_draws: int = Field(default=0, ge=0)
    side_seeds: int | None = Field(default=None, ge=1)
    min_reliability: float = Field(default=0.5, ge=0, le=1)
    rounds: Rounds | None = None
    device: str = "cpu"

    @model_validator(mode="after")
    def _seeds_apart(self) -> "StudySettings":
        _ = self.seed_ranges
        if len(set(self.directions)) < len(self.directions):
            raise ValueError("directions must differ: one is named twice")
        if self.side_seeds is not None and self.side_seeds > self.seeds:
            raise ValueError("side_seeds must be at most seeds: unweighted runs are their pairs")
        return self

    @property
    def seed_ranges(self) -> Seeds:
        """Every range of seeds; raises `PatterningError` where two overlap."""
        tuned = any(len(self.candidates(name)) > 1 for name in self.directions)
        return Seeds(
            pilots=range(self.pilot_seed, self.pilot_seed + self.pilots),
            claims=range(self.first_seed, self.first_seed + self.seeds),
            tuning=range(self.tuning_seed, self.tuning_seed + self.tuning) if tuned else NOTHING,
            pairs=range(self.pair_seed, self.pair_seed + self.pairs),
        )

    def candidates(self, direction: str) -> tuple[Strength, ...]:
        """The strengths that are tried of a direction."""
        return self.strengths_of.get(direction, self.strengths)
