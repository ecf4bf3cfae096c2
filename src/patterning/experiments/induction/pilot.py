"""The unweighted pilot runs, and the three checkpoints at which χ is read, found on the curves of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from patterning.core.store import Arrays
from patterning.core.workers import Workers
from patterning.experiments.induction.config import InductionConfig, Stage, StructureSettings
from patterning.experiments.induction.text import Source
from patterning.experiments.induction.units import training_unit
from patterning.training.language import LanguageTraining, log_spaced, multiplies_bfloat16

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pilot:
    """`run`: measures along training, and parameters at every checkpoint; `at`: step of each reading checkpoint.

    `prefix_matching` by head name is of the end of the run: it says which heads become induction heads. `formed`:
    whether induction did.
    """

    seed: int
    run: Arrays
    at: dict[Stage, int]
    formed: bool
    prefix_matching: dict[str, float]
    previous_token: dict[str, float]
    induction_heads: tuple[str, ...]
    notes: tuple[str, ...]

    def anchor(self, step: int) -> torch.Tensor:
        """Parameters (P,) at a checkpoint."""
        return torch.from_numpy(self.run[f"at_{step}"])

    def last_steps(self, stage: Stage, count: int) -> list[int]:
        """The checkpoint of `stage` and those before it, `count` in all where there are as many past step 0."""
        steps = [int(step) for step in self.run["steps"] if 0 < step <= self.at[stage]]
        return steps[-count:] or [self.at[stage]]


def training_of(config: InductionConfig) -> LanguageTraining:
    """The optimiser of every run."""
    settings = config.train.model_dump(exclude={"checkpoints", "first_checkpoint"})
    if settings["bfloat16"] == "auto":
        settings["bfloat16"] = multiplies_bfloat16()
    return LanguageTraining(**settings)


def checkpoints_of(config: InductionConfig) -> list[int]:
    """The steps at which every run is measured."""
    return log_spaced(config.train.steps, config.train.checkpoints, config.train.first_checkpoint)


def train_pilots(config: InductionConfig, source: Source, pool: Workers) -> list[Pilot]:
    """Unweighted runs of the seeds from `pilot_seed` on, every checkpoint kept, as many as χ is averaged over.

    The first one is where the components' χ is read.
    """
    steps = checkpoints_of(config)
    seeds = range(config.pilot_seed, config.pilot_seed + config.structure.runs)
    units = [
        training_unit("pilot", source, config.language, training_of(config), seed, None, steps, keep=steps)
        for seed in seeds
    ]
    runs = pool.compute(units, "pilot runs")
    return [_look(config, seed, run) for seed, run in zip(seeds, runs, strict=True)]


def _look(config: InductionConfig, seed: int, run: Arrays) -> Pilot:
    """The reading checkpoints and the induction heads, found on a pilot run."""
    curves = curves_of(run)
    at, notes = reading_steps(run["steps"], curves, config.structure)
    formed = bool(induction_there(curves, config.structure).any())
    prefix, previous = by_head(run["prefix_matching"][-1]), by_head(run["previous_token"][-1])
    best = max(prefix.values())
    wanted = max(config.structure.prefix_matching, best / 2)
    heads = [name for name, value in prefix.items() if value >= wanted]
    if not heads:
        heads = [max(prefix, key=lambda name: prefix[name])]
        notes.append(
            f"no head of the pilot run reaches a prefix-matching score of {config.structure.prefix_matching} "
            f"(largest {best:.2f}): {heads[0]} stands for the induction heads"
        )
    return Pilot(seed, run, at, formed, prefix, previous, tuple(heads), tuple(notes))


def by_head(scores: Floats) -> dict[str, float]:
    """Scores (layers, heads) by component name."""
    return {f"l{i}h{j}": float(value) for i, row in enumerate(scores) for j, value in enumerate(row)}


def curves_of(run: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
    """What is drawn along training, each (c,): the largest score of any head, and the scalars."""
    heads = {name: run[name].max(axis=(1, 2)) for name in ("prefix_matching", "previous_token")}
    scalars = {
        name: values for name, values in run.items() if name in ("repeated_gap", "icl") or name.startswith("loss")
    }
    return {name: np.asarray(values, dtype=np.float64) for name, values in (heads | scalars).items()}


def induction_there(curves: Mapping[str, Floats], structure: StructureSettings) -> NDArray[np.bool_]:
    """At which checkpoints prefix matching and repeated gap are both at their thresholds, (c,)."""
    prefix = curves["prefix_matching"] >= structure.prefix_matching
    return prefix & (curves["repeated_gap"] >= structure.repeated_gap)


def reading_steps(
    steps: NDArray[np.int64], curves: Mapping[str, Floats], structure: StructureSettings
) -> tuple[dict[Stage, int], list[str]]:
    """Steps of the three readings, and notes where a structure did not appear in the order expected.

    "before": the last checkpoint before some head's previous-token score reaches its threshold. "between": the last one
    before induction is there, when it has begun to form. "after": the last one of the run.
    """
    notes = []
    last = len(steps) - 1
    there = induction_there(curves, structure)
    induction = int(there.argmax()) if there.any() else last
    if not there.any():
        notes.append("induction did not form in the pilot run: 'after' is only its last checkpoint")
    heads = curves["previous_token"] >= structure.previous_token
    previous = int(heads.argmax()) if heads.any() else induction
    if previous >= induction or previous < 1:
        notes.append(
            f"previous-token heads (score {structure.previous_token}) did not come before induction in the pilot run: "
            "'before' is at a third of the checkpoints before its onset"
        )
        previous = max(1, induction // 3)
    before = max(0, previous - 1)
    between = min(max(before + 1, induction - 1), last - 1)
    return {"before": int(steps[before]), "between": int(steps[between]), "after": int(steps[last])}, notes
