"""Settings of the induction experiment: one validated class for the Python call, the YAML file and the presets."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveFloat, model_validator

from patterning.core.settings import Frozen, Settings, read_yaml, validate
from patterning.intervention.weights import Policy
from patterning.models.language import LanguageConfig
from patterning.response.one_component import Estimator, PhiOf

Stage = Literal["before", "between", "after"]
STAGES: tuple[Stage, ...] = ("before", "between", "after")
"""Before previous-token heads; between them and induction; after induction has formed."""
DirectionName = Literal["structure", "mode", "full"]
ControlName = Literal["permuted", "random", "random-smooth", "one-run", "first-mode", "heuristic", "gzip", "domains"]
Toward = Literal["less", "more"]
TOWARD: dict[Toward, float] = {"less": -1.0, "more": 1.0}


class CorpusSettings(Frozen):
    """The text: a corpus folder, or the sample in the package (`max_mb` of it) at `vocabulary` entries.

    `shares` of the rows by domain; a domain with too little text is an error, unless `repeat`. `copy_top` below 1:
    rows / copy_top rows are cut, and of each domain those that offer most to a perfect copier (`copy_gain`) are trained
    on, `rows` in all; test rows are not selected.
    """

    folder: str | None = None
    vocabulary: int = Field(ge=257, le=65536)
    max_mb: float | None = Field(default=None, gt=0)
    shares: dict[str, float]
    rows: int = Field(ge=8)
    test_rows: int = Field(ge=8)
    repeat: bool = False
    copy_top: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0)


class ModelSettings(Frozen):
    """`LanguageConfig`, but for the vocabulary, which is the corpus's."""

    context: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    width: int = Field(ge=4)
    mlp_ratio: int = Field(default=0, ge=0)
    positions: Literal["added", "shortformer"] = "shortformer"
    init_std: float = Field(default=0.02, gt=0)
    position_init: Literal["normal", "sinusoidal"] = "normal"
    position_scale: float = Field(default=1.0, gt=0)
    unembed_bias: bool = False


class TrainSettings(Frozen):
    """`LanguageTraining`, and how many log-spaced `checkpoints` from `first_checkpoint` on are measured.

    `bfloat16`: "auto" rounds matrix products where the processor multiplies bfloat16 itself; elsewhere they would take
    nine times as long as float32 (docs/gotchas.md). Runs on either kind of machine are runs of their own.
    """

    steps: int = Field(ge=10)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup: int = Field(ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.05, ge=0)
    clip: float = Field(default=1.0, gt=0)
    bfloat16: bool | Literal["auto"] = False
    checkpoints: int = Field(ge=4)
    first_checkpoint: int = Field(default=1, ge=1)


class StructureSettings(Frozen):
    """When a structure counts as there: the thresholds that onset and the three reading checkpoints are found by.

    The gap is measured on `repeated_rows` random blocks; χ of it is read on `read_on` other ones, in `runs` unweighted
    runs of pilot seeds, at `readings` checkpoints of each (the stage's and those before it), and averaged: what χ says
    of one run alone is mostly about that run. `hold_other`: which ways to hold the loss on other tokens.
    """

    previous_token: float = Field(default=0.3, gt=0, lt=1)
    prefix_matching: float = Field(default=0.3, gt=0, lt=1)
    repeated_gap: float = Field(default=1.0, gt=0)
    repeated_rows: int = Field(default=64, ge=4)
    read_on: int = Field(default=256, ge=4)
    runs: int = Field(default=1, ge=1)
    readings: int = Field(default=1, ge=1)
    hold_other: tuple[Toward, ...] = ("less",)


class ReadingSettings(Frozen):
    """χ at each checkpoint: `probe_rows` of the training rows (stratified by domain), gradients from `rows` of them.

    `phi`: whose loss the components' φ is, the probed rows' or that of all `rows` (`component_response`). `modes`:
    "rank" turns each row of χ into Gaussian scores before its modes are found (χ is heavy-tailed).
    """

    rows: int = Field(ge=8)
    probe_rows: int = Field(ge=4)
    n_beta: float = Field(gt=0)
    localization: float = Field(gt=0)
    step_size: float = Field(gt=0)
    chains: int = Field(ge=2)
    draws: int = Field(ge=8)
    burn_in: int = Field(ge=0)
    steps_between_draws: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    rounds: int = Field(default=1, ge=1)
    reliability: float = Field(default=0.9, gt=0, lt=1)
    estimator: Estimator = "pathwise"
    phi: PhiOf = "data"
    modes: Literal["none", "rank"] = "rank"


class SweepSettings(Frozen):
    """Candidate weights, tried on pilot seeds only: every direction × its stages × policy × α, both ways.

    `read_at`: the stages at which each direction is read; a direction that is not named is read "after". `alphas_of`:
    the strengths of a direction, where they are not `alphas`.
    Each direction is given its own best for "less" and for "more", on `seeds` pilot seeds after those that χ was read
    on. Candidates that change the loss on other tokens by more than `loss_limit` (a share) come last. `sign`: "pilot"
    calls "more" what grew induction in the sweep (and says where that is not what the response foretold); "response"
    keeps the sign of the response, whatever the sweep shows.
    """

    read_at: dict[DirectionName, tuple[Stage, ...]] = Field(default={"structure": ("between",)})
    policies: tuple[Policy, ...] = Field(default=("rank-tilt",), min_length=1)
    alphas: tuple[PositiveFloat, ...] = Field(default=(1.0, 2.0), min_length=1)
    alphas_of: dict[DirectionName, Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]] = Field(default={})
    seeds: int = Field(default=1, ge=1)
    loss_limit: dict[Toward, PositiveFloat] = Field(default={"less": 0.05, "more": 0.05})
    sign: Literal["pilot", "response"] = "pilot"

    def stages(self, direction: str) -> tuple[Stage, ...]:
        """Where `direction` is read; the first mode goes with the induction mode."""
        own: dict[str, tuple[Stage, ...]] = {**self.read_at}
        return own.get("mode" if direction == "first-mode" else direction, ("after",))


class InductionConfig(Settings):
    """The whole experiment: `seeds` claim runs an arm from `first_seed` on; choices are made on `pilot_seed` and after.

    The first of `directions` leads: controls take its weights. `other_seeds` (None: `seeds`) runs for each arm that is
    not unweighted, the leading direction or its permuted weights.
    `weigh`: a weight for each token, or one for each row (its mean score). `bands`: token-frequency bands within which
    the permuted control deals the weights out again; "random" draws its direction token by token, "random-smooth" as a
    random function of the activations; "one-run" is χ of the structure from the first pilot run alone, against the
    average over all of them. `domain_seeds` runs for each `domain_changes` of a domain.
    """

    experiment: Literal["induction"] = "induction"
    corpus: CorpusSettings
    model: ModelSettings
    train: TrainSettings
    structure: StructureSettings = StructureSettings()
    reading: ReadingSettings
    sweep: SweepSettings = SweepSettings()
    directions: tuple[DirectionName, ...] = Field(default=("structure", "mode", "full"), min_length=1)
    controls: tuple[ControlName, ...] = get_args(ControlName)
    weigh: Literal["token", "sequence"] = "token"
    bands: int = Field(default=10, ge=1)
    seeds: int = Field(ge=3)
    other_seeds: int | None = Field(default=None, ge=1)
    domain_seeds: int = Field(default=1, ge=1)
    domain_changes: tuple[Literal["remove", "double"], ...] = Field(default=("remove", "double"), min_length=1)
    first_seed: int = Field(default=5000, ge=2000)
    pilot_seed: int = Field(default=1000, ge=0, lt=2000)
    min_r2: float = Field(default=0.2, le=1)

    @model_validator(mode="after")
    def _fits(self) -> "InductionConfig":
        if self.reading.probe_rows > self.reading.rows or self.reading.rows > self.corpus.rows:
            raise ValueError("reading.probe_rows <= reading.rows <= corpus.rows must hold")
        if self.train.batch_size > self.corpus.rows:
            raise ValueError("train.batch_size is larger than corpus.rows")
        if max(self.domain_seeds, self.side_seeds) > self.seeds:
            raise ValueError("domain_seeds and other_seeds must be at most seeds: unweighted runs are their pairs")
        if len(set(self.directions)) < len(self.directions):
            raise ValueError("directions must be named once each")
        if self.train.first_checkpoint > self.train.steps:
            raise ValueError("train.first_checkpoint is after the last step")
        if "random-smooth" in self.controls and set(self.directions) == {"structure"}:
            raise ValueError(
                "the control 'random-smooth' needs the activations that 'mode' or 'full' are predicted from"
            )
        if set(self.sweep.loss_limit) != set(TOWARD):
            raise ValueError("sweep.loss_limit needs a share for 'less' and one for 'more'")
        return self

    @property
    def side_seeds(self) -> int:
        """Runs of an arm beside the leading direction."""
        return self.other_seeds or self.seeds

    @property
    def language(self) -> LanguageConfig:
        """The model's shape; raises `PatterningError` for a width that the heads cannot share."""
        return LanguageConfig(vocabulary=self.corpus.vocabulary, **self.model.model_dump())


def load_config(values: dict[str, Any], origin: str) -> InductionConfig:
    """A validated configuration; raises `PatterningError` that names the first wrong field of `origin`."""
    config = validate(InductionConfig, values, origin)
    _ = config.language
    return config


def read_config(path: Path) -> InductionConfig:
    """The configuration in a YAML file; raises `PatterningError` when there is none."""
    return load_config(read_yaml(path), str(path))
