"""Settings of the induction experiment, and the sizes it comes in."""

from typing import Any, Literal, get_args

from pydantic import Field, PositiveFloat, model_validator

from patterning.core.settings import Frozen
from patterning.experiments.induction.subject import InductionSubject, Thresholds
from patterning.study.language_settings import CorpusSettings, ModelSettings, TrainSettings
from patterning.study.readings_of_components import ComponentSampling
from patterning.study.settings import StudySettings, Way

Stage = Literal["before", "between", "after"]
Control = Literal["random", "random-smooth", "one-run", "other-mode", "label", "gzip", "domains"]


class StructureSettings(Frozen):
    """`Thresholds`, and how χ of the repeated gap is read: at `readings` checkpoints of each pilot.

    `hold_other`: the ways that hold the loss on other tokens.
    """

    previous_token: float = Field(default=0.3, gt=0, lt=1)
    prefix_matching: float = Field(default=0.3, gt=0, lt=1)
    repeated_gap: float = Field(default=1.0, gt=0)
    repeated_rows: int = Field(default=64, ge=4)
    read_on: int = Field(default=256, ge=4)
    readings: int = Field(default=1, ge=1)
    hold_other: tuple[Way, ...] = ("down",)


class InductionConfig(StudySettings):
    """Directions are "structure", "mode" and "full", read at a stage of their own, or at another: "mode-between".

    `loss_limit`: by what share weights may change the loss on other tokens, to be chosen. `controls`: what the arms are
    compared with besides unweighted and permuted. `bands`: token-frequency bands of the permuted control. `show`:
    stages at which χ of the components is shown, where any direction or control needs it. `domain_seeds` runs for each
    of the `domain_changes`.
    """

    experiment: Literal["induction"] = "induction"
    corpus: CorpusSettings
    model: ModelSettings
    train: TrainSettings
    structure: StructureSettings = StructureSettings()
    reading: ComponentSampling
    controls: tuple[Control, ...] = get_args(Control)
    bands: int = Field(default=10, ge=1)
    loss_limit: dict[Way, PositiveFloat] = Field(default={"down": 0.05, "up": 0.05})
    show: tuple[Stage, ...] = get_args(Stage)
    domain_seeds: int = Field(default=1, ge=1)
    domain_changes: tuple[Literal["remove", "double"], ...] = Field(default=("remove", "double"), min_length=1)
    min_r2: float = Field(default=0.2, le=1)
    together: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "InductionConfig":
        if self.reading.probe_rows > self.reading.rows or self.reading.rows > self.corpus.rows:
            raise ValueError("reading.probe_rows <= reading.rows <= corpus.rows must hold")
        if self.train.batch_size > self.corpus.rows:
            raise ValueError("train.batch_size is larger than corpus.rows")
        if self.domain_seeds > self.seeds:
            raise ValueError("domain_seeds must be at most seeds: unweighted runs are their pairs")
        if self.train.first_checkpoint > self.train.steps:
            raise ValueError("train.first_checkpoint is after the last step")
        if set(self.loss_limit) != {"down", "up"}:
            raise ValueError("loss_limit needs a share for 'down' and one for 'up'")
        _ = subject_of(self)
        return self

    @property
    def side(self) -> range:
        """Claim seeds of the arms beside the leading direction, its permuted weights and the unweighted one."""
        return self.seed_ranges.claims[: self.side_seeds or self.seeds]


def subject_of(config: InductionConfig) -> InductionSubject:
    """What the study is about; raises `PatterningError` for a width that the heads cannot share."""
    own = config.structure.model_dump(exclude={"readings", "hold_other"})
    return InductionSubject(
        config.corpus.source(config.model.context), config.model.language(config.corpus.vocabulary),
        config.train.training(), config.train.measured_at(), Thresholds(**own), config.bands,
        (config.loss_limit["down"], config.loss_limit["up"]), config.device,
    )  # fmt: skip


def _strengths(*alphas: float, policies: tuple[str, ...] = ("rank-tilt",)) -> list[dict[str, Any]]:
    return [{"policy": policy, "alpha": alpha} for policy in policies for alpha in alphas]


# Toy: everything runs, nothing is learned that could be called a circuit.
_TINY: dict[str, Any] = {
    "corpus": {
        "vocabulary": 300, "max_mb": 0.3, "shares": {"code": 0.5, "docs": 0.3, "prose": 0.2}, "rows": 96,
        "test_rows": 16, "repeat": True, "copy_top": 0.5,
    },
    "model": {"context": 24, "layers": 2, "heads": 2, "width": 16},
    "train": {"steps": 24, "batch_size": 8, "learning_rate": 1e-2, "warmup": 2, "checkpoints": 5},
    "structure": {
        "previous_token": 0.06, "prefix_matching": 0.05, "repeated_gap": 0.005, "repeated_rows": 8, "readings": 2,
    },
    "reading": {
        "rows": 32, "probe_rows": 16, "n_beta": 30.0, "localization": 300.0, "step_size": 1e-3, "chains": 2, "draws": 8,
        "burn_in": 2, "steps_between_draws": 1, "batch_size": 4,
    },
    "directions": ("structure", "mode", "full"), "strengths": _strengths(1.0), "permuted": ("structure",),
    "strengths_of": {"structure": _strengths(0.5, 1.0), "mode": _strengths(0.5)}, "show": ("after",),
    "pilots": 3, "tuning": 1, "tuning_seed": 1003, "seeds": 3, "side_seeds": 1, "bands": 4, "force": True,
}  # fmt: skip

# Induction by step 750 to 1,050 in most seeds (docs/results/induction-onset.md); a run takes 80 s of one core that does
# not multiply bfloat16, and the whole 54 minutes of two.
_NANO: dict[str, Any] = {
    "corpus": {
        "vocabulary": 512, "shares": {"code": 0.8, "docs": 0.13, "prose": 0.07}, "rows": 5000, "test_rows": 64,
        "repeat": True, "copy_top": 0.25,
    },
    "model": {
        "context": 128, "layers": 2, "heads": 2, "width": 64, "init_std": 0.08, "position_init": "sinusoidal",
        "position_scale": 3.0,
    },
    "train": {
        "steps": 1250, "batch_size": 16, "learning_rate": 8e-3, "warmup": 100, "weight_decay": 0.2, "checkpoints": 26,
        "first_checkpoint": 100, "bfloat16": "auto",
    },
    "structure": {"repeated_rows": 32, "readings": 2},
    "reading": {
        # pathwise, of the loss on all rows: half a minute a component
        "rows": 2000, "probe_rows": 96, "n_beta": 30.0, "localization": 300.0, "step_size": 1e-3, "chains": 4,
        "draws": 8, "burn_in": 12, "steps_between_draws": 6, "batch_size": 8,
    },
    "directions": ("structure", "mode", "full"), "permuted": ("structure",),
    # rank-tilt of strength α leaves an effective share exp(-α²) of the data: 0.91 and 0.70
    "strengths": _strengths(0.3), "strengths_of": {"structure": _strengths(0.3, 0.6)},
    "loss_limit": {"down": 0.02, "up": 0.05},
    "controls": ("random", "other-mode", "label", "gzip", "domains"),
    # χ of two runs correlates at about 0.5: the mean over runs says more
    "pilots": 4, "tuning": 1, "tuning_seed": 1004, "seeds": 4, "side_seeds": 3, "domain_seeds": 2,
    "domain_changes": ("remove",),
    "force": True,  # with four heads, the two signs of the induction mode seldom agree: the page says where not
}  # fmt: skip

_EVERYWHERE: dict[str, Any] = {
    "directions": ("structure", "mode", "full", "structure-after", "mode-between", "full-between"),
    "permuted": ("structure",), "strengths": _strengths(0.3, 0.6, 1.0, policies=("clip", "rank-tilt")),
    "pilots": 1, "tuning": 1, "tuning_seed": 1001, "domain_seeds": 3,
}  # fmt: skip

_SMALL: dict[str, Any] = _EVERYWHERE | {
    "corpus": {
        "vocabulary": 1024, "shares": {"code": 0.6, "docs": 0.3, "prose": 0.1}, "rows": 100_000, "test_rows": 512,
        "repeat": True,
    },
    "model": {**_NANO["model"], "width": 128},
    "train": {
        "steps": 6000, "batch_size": 32, "learning_rate": 4e-3, "warmup": 100, "checkpoints": 40, "bfloat16": True,
    },
    "reading": {**_NANO["reading"], "rows": 8000, "probe_rows": 600, "draws": 40, "rounds": 2},
    "seeds": 6,
}  # fmt: skip

# The model of Wang et al. (arXiv 2410.02984): 3,355,016 parameters, AdamW 1e-3 with batch 100 for 50,000 steps; γ 300,
# nβ 30, ε 1e-3, 4 chains of 100 draws in batches of 16. The text (a corpus of `patterning data text`) and the betas are
# ours.
_PAPER: dict[str, Any] = _EVERYWHERE | {
    "corpus": {
        "folder": "corpus", "vocabulary": 5000, "shares": {"code": 0.3, "docs": 0.45, "prose": 0.25}, "rows": 20_000,
        "test_rows": 256, "repeat": True,
    },
    "model": {"context": 1024, "layers": 2, "heads": 8, "width": 256, "unembed_bias": True},
    "train": {
        "steps": 50_000, "batch_size": 100, "learning_rate": 1e-3, "warmup": 0, "betas": (0.9, 0.999),
        "weight_decay": 0.05, "checkpoints": 48, "bfloat16": True,
    },
    "reading": {
        "rows": 4000, "probe_rows": 300, "n_beta": 30.0, "localization": 300.0, "step_size": 1e-3, "chains": 4,
        "draws": 100, "burn_in": 100, "steps_between_draws": 4, "batch_size": 16, "rounds": 2,
    },
    "seeds": 4,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {"tiny": _TINY, "nano": _NANO, "small": _SMALL, "paper": _PAPER}
DEFAULT = "nano"
