"""Induction as the subject of a study: a language model on text, weighted token by token, measured along training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.arrays import Bools, Floats
from patterning.core.identity import digest
from patterning.models.language import LanguageConfig, LanguageModel
from patterning.study.subject import Ints, Outcome, Parameters, Rho, Runs
from patterning.study.tokens import Curves, Stages, TokenSubject
from patterning.tasks.induction import (
    Part,
    gap_parts,
    interpolated_onset,
    loss_parts,
    measure_structure,
    repeated_random,
)
from patterning.tasks.text.classes import induction_labels
from patterning.tasks.text.source import Text, TextSource, load_text, stratified
from patterning.training.language import LanguageTraining, load_language, train_language
from patterning.verification.controls import frequency_bands

OTHER_BLOCKS = 1_000_003
"""Added to the text's seed for the random blocks that χ is read on: not those that outcomes are measured on."""
HEADS = ("prefix_matching", "previous_token")
GAP, OTHER = "repeated gap", "loss on other tokens"


@dataclass(frozen=True)
class Thresholds:
    """When a structure counts as there; the random blocks the gap is measured on, and those χ of it is `read_on`."""

    previous_token: float = 0.3
    prefix_matching: float = 0.3
    repeated_gap: float = 1.0
    repeated_rows: int = 64
    read_on: int = 256


@dataclass(frozen=True)
class InductionSubject(TokenSubject):
    """Measured at `checkpoints`. `bands`: token-frequency bands that the permuted control deals weights out within.

    `loss_limit`: by what share weights that ask for less, and for more, may change the loss on other tokens.
    """

    source: TextSource
    language: LanguageConfig
    training: LanguageTraining
    checkpoints: tuple[int, ...]
    thresholds: Thresholds = Thresholds()
    bands: int = 10
    loss_limit: tuple[float, float] = (0.05, 0.05)
    device: str = "cpu"
    name: str = "induction"
    served: str = "induction"
    outcomes: tuple[Outcome, ...] = (
        Outcome("gap_area", "more induction", "less induction"),
        Outcome("onset", "later", "sooner", low=0.0),
        Outcome("prefix_matching", "more", "less", 0.0, 1.0),
        Outcome("repeated_gap", "wider", "narrower"),
        Outcome("formed", "formed", "not formed", yes_or_no=True),
    )

    @cached_property
    def fingerprint(self) -> str:
        """Covers the text, not the folder that it lies in."""
        rest = {key: value for key, value in vars(replace(self)).items() if key != "source"}
        return digest(type(self), self.source.fingerprint, rest)

    def placed(self, folder: Path) -> "InductionSubject":
        """With its text: the sample in the package is tokenized into the run folder."""
        return replace(self, source=self.source.found(folder / "corpus"))

    @property
    def text_data(self) -> Text:
        """Rows and labels; read once in each process."""
        return load_text(self.source)

    @property
    def tokens(self) -> Tensor:
        """Training rows (n, t)."""
        return self.text_data.tokens

    @property
    def groups(self) -> Mapping[str, Bools]:
        """Token classes and domains."""
        return {**self.text_data.classes, **self.text_data.domains}

    def domains(self) -> Mapping[str, Bools]:
        """Where a row is from."""
        return self.text_data.domains

    @property
    def permuted_within(self) -> Ints:
        """The frequency band of each predicted token."""
        tokens = self.text_data.train.tokens[:, 1:]
        return frequency_bands(tokens.ravel(), self.language.vocabulary, self.bands).reshape(tokens.shape)

    @property
    def guarded(self) -> str:
        """The loss on tokens that are no induction tokens."""
        return "loss:not induction"

    def keeps(self, way: str, guard: float, unweighted: float) -> bool:
        """Within the limit of that way."""
        return abs(guard / unweighted - 1) <= self.loss_limit[way == "up"]

    def guard_score(self, guard: float, unweighted: float) -> float:
        """The less change, the better."""
        return -abs(guard / unweighted - 1)

    def text(self, sample: int) -> str:
        """What stands before a predicted token, and the token."""
        row, t = divmod(sample, self.tokens.shape[1] - 1)
        words = [self.piece(token) for token in self.text_data.train.tokens[row, max(0, t - 11) : t + 2]]
        return "".join(words[:-1]).replace("\n", "⏎") + " ▸ " + words[-1].replace("\n", "⏎")

    def piece(self, token: int) -> str:
        """A token as text."""
        return self.text_data.pieces[token]

    def network(self, flat: Parameters) -> LanguageModel:
        """The model of parameters (P,)."""
        return load_language(self.language, torch.from_numpy(flat))

    def stand_for_all(self, count: int, among: Ints | None = None) -> Ints:
        """By the domains' shares."""
        domains = self.text_data.train.domains
        return stratified(domains if among is None else domains[among], count)

    def structure(self, rows: Ints, half: int) -> Mapping[str, Sequence[Part]]:
        """The gap on random blocks of its own, and the loss on training tokens that are no induction tokens."""
        blocks = repeated_random(
            self.language.vocabulary, self.language.context, self.thresholds.read_on, self.source.seed + OTHER_BLOCKS
        )
        tokens = self.tokens[torch.from_numpy(rows)][half::2]
        return {GAP: gap_parts(blocks[half::2]), OTHER: loss_parts(tokens, ~induction_labels(tokens.numpy()))}

    def head_scores(self, curves: Curves) -> Mapping[str, float]:
        """Prefix matching at the end of a run."""
        table = curves["prefix_matching_by_head"][-1]
        return {f"l{i}h{j}": float(value) for i, row in enumerate(table) for j, value in enumerate(row)}

    def heads(self, curves: Curves) -> tuple[str, ...]:
        """Heads over the threshold and half of the best; else the best."""
        scores = self.head_scores(curves)
        best = max(scores, key=lambda name: scores[name])
        wanted = max(self.thresholds.prefix_matching, scores[best] / 2)
        return tuple(name for name, value in scores.items() if value >= wanted) or (best,)

    def stages(self, curves: Curves) -> Stages:
        """Where χ is read: before the circuit, between its two heads, after it (`reading_steps`)."""
        return reading_steps(np.array(self.checkpoints), curves, self.thresholds)

    def train(self, rho: Rho, seeds: Sequence[int], keep: Sequence[int], scratch: Path) -> Runs:
        """AdamW on the token-weighted loss (`training.language`)."""
        parts = [self._train(rho, seed, keep, scratch) for seed in seeds]
        return Runs.joined(parts)

    def _train(self, rho: Rho, seed: int, keep: Sequence[int], scratch: Path) -> Runs:
        text, own = self.text_data, self.thresholds
        blocks = repeated_random(self.language.vocabulary, self.language.context, own.repeated_rows, self.source.seed)
        measure = partial(
            measure_structure, test_tokens=torch.from_numpy(text.test.tokens), classes=text.test_classes,
            repeated=blocks,
        )  # fmt: skip
        run = train_language(
            self.language, text.tokens, None if (rho == 1).all() else torch.from_numpy(rho.astype(np.float32)),
            self.training, seed=seed, checkpoints=self.checkpoints, measure=measure, keep=keep, scratch=scratch,
            device=self.device,
        )  # fmt: skip
        curves = curves_of(run.measures)
        final = outcomes_of(run.steps, curves, own)
        return Runs(
            {name: np.array([value]) for name, value in final.items()}, run.steps,
            {name: values[None] for name, values in curves.items()},
            {step: row.numpy()[None] for step, row in run.kept.items()},
        )  # fmt: skip


def curves_of(measures: Mapping[str, NDArray[np.float64]]) -> dict[str, Floats]:
    """Measures (c, …) along training; of those by head (c, layers, heads) the best head's as well, (c,).

    A class of tokens that the test rows hold none of is left out.
    """
    curves = {name: values for name, values in measures.items() if name not in HEADS and not np.isnan(values).any()}
    for name in HEADS:
        curves[name] = measures[name].max(axis=(1, 2))
        curves[f"{name}_by_head"] = measures[name]
    return curves


def outcomes_of(steps: Ints, curves: Mapping[str, Floats], thresholds: Thresholds) -> dict[str, float]:
    """Final measures of a run; its `onset`, with its last step where induction never `formed`; `gap_area`.

    The onset is where the smaller of the two ratios to the thresholds reaches 1. The checkpoints are even in the
    logarithm, so that `gap_area`, the mean gap over them, is the mean over log training time: it sees the onset as well
    as the end.
    """
    ratio = np.minimum(
        curves["prefix_matching"] / thresholds.prefix_matching, curves["repeated_gap"] / thresholds.repeated_gap
    )
    onset = interpolated_onset(steps, ratio)
    final = {name: float(values[-1]) for name, values in curves.items() if values.ndim == 1}
    formed = bool(np.isfinite(onset))
    return final | {
        "onset": onset if formed else float(steps[-1]),
        "formed": float(formed),
        "gap_area": float(curves["repeated_gap"].mean()),
    }


def reading_steps(steps: Ints, curves: Curves, thresholds: Thresholds) -> Stages:
    """Steps of three readings, with notes where a structure did not appear in the order expected.

    "before": the last checkpoint before some head's previous-token score reaches its threshold. "between": the last one
    before induction is there, when it has begun to form. "after": the last one of the run.
    """
    notes = []
    last = len(steps) - 1
    prefix = curves["prefix_matching"] >= thresholds.prefix_matching
    there = prefix & (curves["repeated_gap"] >= thresholds.repeated_gap)
    formed = bool(there.any())
    induction = int(there.argmax()) if formed else last
    if not formed:
        notes.append("induction did not form: 'after' is only the last checkpoint")
    heads = curves["previous_token"] >= thresholds.previous_token
    previous = int(heads.argmax()) if heads.any() else induction
    if previous >= induction or previous < 1:
        notes.append("previous-token heads did not come before induction: 'before' is a third of the way to its onset")
        previous = max(1, induction // 3)
    before = max(0, previous - 1)
    between = min(max(before + 1, induction - 1), last - 1)
    at = {name: int(steps[i]) for name, i in (("before", before), ("between", between), ("after", last))}
    return Stages(at, formed, tuple(notes))
