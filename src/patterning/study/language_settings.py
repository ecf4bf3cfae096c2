"""Settings of text, of a language model and of its training, as a study of one has them."""

from typing import Literal

from pydantic import Field

from patterning.core.settings import Frozen
from patterning.models.language import LanguageConfig
from patterning.tasks.text.source import TextSource
from patterning.training.language import LanguageTraining, log_spaced, multiplies_bfloat16


class CorpusSettings(Frozen):
    """The text (`TextSource`): a corpus `folder`, or the sample in the package (`max_mb` of it)."""

    folder: str | None = None
    vocabulary: int = Field(ge=257, le=65536)
    max_mb: float | None = Field(default=None, gt=0)
    shares: dict[str, float]
    rows: int = Field(ge=8)
    test_rows: int = Field(ge=8)
    repeat: bool = False
    copy_top: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0)

    def source(self, context: int) -> TextSource:
        """Rows of `context` tokens of it."""
        own = self.model_dump() | {"shares": tuple(sorted(self.shares.items())), "folder": self.folder or ""}
        return TextSource(context, **own)


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

    def language(self, vocabulary: int) -> LanguageConfig:
        """The model's shape; raises `PatterningError` for a width that the heads cannot share."""
        return LanguageConfig(vocabulary=vocabulary, **self.model_dump())


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

    def training(self) -> LanguageTraining:
        """The optimiser of every run, on this machine."""
        own = self.model_dump(exclude={"checkpoints", "first_checkpoint"})
        if own["bfloat16"] == "auto":
            own["bfloat16"] = multiplies_bfloat16()
        return LanguageTraining(**own)

    def measured_at(self) -> tuple[int, ...]:
        """The steps at which every run is measured; raises `PatterningError` where the first is after the last."""
        return tuple(log_spaced(self.steps, self.checkpoints, self.first_checkpoint))
