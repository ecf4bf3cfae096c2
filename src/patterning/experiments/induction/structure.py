"""The direction of a structure measure: χ of the repeated-random gap on every training token, without sampling.

The first-order χ (SPEC §8.3, nβ = 0; `response.slopes`) of two observables: the gap, and the loss of the tokens that
are no induction tokens. The intervention is χ† for a wider gap with the other loss held (SPEC §6). The gap is read on
random blocks of its own, on which no outcome is measured; the outcome that decides is attention: prefix matching.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.experiments.induction.config import InductionConfig, Stage
from patterning.experiments.induction.pilot import Pilot
from patterning.experiments.induction.text import Source, Text
from patterning.experiments.induction.units import SlopeFit, joined_slopes, slope_units
from patterning.intervention.solve import solve
from patterning.models.language import LanguageModel, next_token_losses
from patterning.response.slopes import loss_slopes, parameter_gradient
from patterning.response.susceptibility import rank_correlation, step_up
from patterning.tasks.induction import repeated_random
from patterning.tasks.text.classes import induction_labels
from patterning.training.language import load_language
from patterning.workers import Workers

Floats = NDArray[np.float64]
OBSERVABLES = ("repeated gap", "loss on other tokens")
OTHER_BLOCKS = 1_000_003
"""Added to the corpus's seed for the random blocks that χ is read on: not those that outcomes are measured on."""
AT_ONCE = 32


@dataclass(frozen=True)
class Structure:
    """s (rows, t - 1) towards a wider gap, float32, and what is known of it."""

    stage: Stage
    s: NDArray[np.float32]
    summary: dict[str, Any]


def read_structure(
    config: InductionConfig, source: Source, text: Text, rows: NDArray[np.int64], pilot: Pilot, pool: Workers
) -> dict[Stage, Structure]:
    """`Structure` at every stage of the sweep; gradients of the loss are taken on the training rows `rows` (d,)."""
    stages = config.sweep.stages("structure")
    blocks = repeated_random(
        config.corpus.vocabulary, config.model.context, config.structure.read_on, source.seed + OTHER_BLOCKS
    )
    tokens = text.tokens[torch.from_numpy(rows)]
    models = {stage: load_language(config.language, pilot.anchors[stage]) for stage in stages}
    # (2 halves, observables, P) at each stage: halves of the blocks and of the rows, which tell χ's own error
    halves = {
        stage: torch.stack([observable_gradients(model, blocks[i::2], tokens[i::2]) for i in range(2)])
        for stage, model in models.items()
    }
    work = [
        slope_units(f"structure-{stage}", config.corpus.rows, SlopeFit(source, config.language, pilot.anchors[stage]),
                    halves[stage].mean(0))
        for stage in stages
    ]  # fmt: skip
    done = iter(pool.compute([unit for units in work for unit in units], "χ of the structure, all training tokens"))
    found: dict[Stage, Structure] = {}
    for stage, units in zip(stages, work, strict=True):
        slopes = joined_slopes([next(done) for _ in units])  # (observables, rows, t - 1)
        few = text.tokens[torch.from_numpy(rows[: 2 * AT_ONCE])]
        found[stage] = _direction(config, pilot, stage, slopes, _reliability(models[stage], few, halves[stage]))
    return found


def observable_gradients(model: LanguageModel, blocks: Tensor, tokens: Tensor) -> Tensor:
    """Gradients (2, P) of `OBSERVABLES`: on repeated `blocks` (m, 2L), and on text `tokens` (n, t)."""
    length = blocks.shape[1] // 2
    other = torch.from_numpy(~induction_labels(tokens.numpy()))

    def gap(part: slice) -> Tensor:
        losses = next_token_losses(model, blocks[part])
        return (losses[:, : length - 1].mean(1) - losses[:, length:].mean(1)).sum() / len(blocks)

    def loss(part: slice) -> Tensor:
        return (next_token_losses(model, tokens[part]) * other[part]).sum() / other.sum()

    return torch.stack(
        [
            parameter_gradient(model, [lambda at=at, f=f: f(slice(at, at + AT_ONCE)) for at in range(0, n, AT_ONCE)])
            for f, n in ((gap, len(blocks)), (loss, len(tokens)))
        ]
    )


def _reliability(model: LanguageModel, tokens: Tensor, halves: Tensor) -> list[float]:
    """Split-half reliability of χ of each observable, from gradients of halves (2, observables, P), on a few rows."""
    count = halves.shape[1]
    slopes = torch.cat([loss_slopes(model, part, halves.flatten(0, 1)) for part in tokens.split(AT_ONCE)]).numpy()
    return [step_up(rank_correlation(slopes[:, i], slopes[:, count + i])) for i in range(count)]


def _direction(
    config: InductionConfig, pilot: Pilot, stage: Stage, slopes: NDArray[np.float32], reliability: Sequence[float]
) -> Structure:
    """χ† for a gap wider by one standard deviation of its row, the other loss held."""
    own = config.reading
    chi = -slopes.reshape(len(OBSERVABLES), -1).astype(np.float64) / own.localization
    chi -= chi.mean(axis=1, keepdims=True)
    q = np.full(chi.shape[1], 1 / chi.shape[1])
    solution = solve(chi, q, np.array([chi[0].std(), 0.0]), own.n_beta)
    summary = {
        "name": "structure",
        "stage": stage,
        "step": pilot.at[stage],
        "what": "wider repeated gap, loss on other tokens held (first-order χ, every token)",
        "rank": solution.rank,
        "condition": solution.condition,
        "noise_floor": solution.noise_floor,
        "wanted": solution.wanted,
        "predicted": solution.predicted,
        "reliability": dict(zip(OBSERVABLES, reliability, strict=True)),
        "correlation": float(np.corrcoef(chi)[0, 1]),
    }
    return Structure(stage, solution.s.reshape(slopes.shape[1:]).astype(np.float32), summary)
