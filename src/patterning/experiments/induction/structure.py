"""The direction of a structure measure: χ of the repeated-random gap on every training token, without sampling.

The first-order χ (`response.slopes`) of two observables: the gap, and the loss of the tokens that
are no induction tokens. The intervention is χ† for a wider gap; for "less", with the other loss held: held
for "more" as well, nothing grew on a pilot seed (docs/results/induction-four-heads.md). The gap is read on random
blocks of its own, on which no outcome is measured; what decides is attention: prefix matching.

χ at one checkpoint of one run is exact for that checkpoint, and mostly about it: between runs of different seeds it
correlates at 0.3 to 0.5. So it is averaged over runs and checkpoints, as data attribution does (TRAK, arXiv 2303.14186,
over models; TracIn, arXiv 2002.08484, over checkpoints), in Gaussian rank scores, each reading counting alike.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.workers import Workers
from patterning.experiments.induction.config import TOWARD, InductionConfig, Stage
from patterning.experiments.induction.direction import Direction
from patterning.experiments.induction.pilot import Pilot
from patterning.experiments.induction.text import Source, Text
from patterning.experiments.induction.units import SlopeFit, joined_slopes, slope_units
from patterning.intervention.solve import solve
from patterning.intervention.weights import gaussian_scores
from patterning.models.language import LanguageModel, next_token_losses
from patterning.response.slopes import loss_slopes, parameter_gradient
from patterning.response.susceptibility import rank_correlation, step_up
from patterning.tasks.induction import repeated_random
from patterning.tasks.text.classes import induction_labels
from patterning.training.language import load_language

OBSERVABLES = ("repeated gap", "loss on other tokens")
OTHER_BLOCKS = 1_000_003
"""Added to the corpus's seed for the random blocks that χ is read on: not those that outcomes are measured on."""
AT_ONCE = 32


def read_structure(
    config: InductionConfig, source: Source, text: Text, rows: NDArray[np.int64], pilots: Sequence[Pilot], pool: Workers
) -> dict[tuple[Stage, str], Direction]:
    """χ of the gap at every stage of the sweep: "structure", the mean over runs, and "one-run", the first run's alone.

    Gradients of the loss are taken on the training rows `rows` (d,). A run in which induction did not form is left out,
    unless it formed in none.
    """
    own = config.structure
    by_seed = {pilot.seed: pilot for pilot in pilots if pilot.formed} or {pilot.seed: pilot for pilot in pilots}
    stages = config.sweep.stages("structure")
    places = {
        (stage, seed): [(seed, step) for step in pilot.last_steps(stage, own.readings)]
        for stage in stages
        for seed, pilot in by_seed.items()
    }
    anchors = {(seed, step): by_seed[seed].anchor(step) for some in places.values() for seed, step in some}
    read = _read(config, source, text, rows, anchors, pool)
    found: dict[tuple[Stage, str], Direction] = {}
    seeds = list(by_seed)
    for stage in stages:
        for name, some in (("structure", seeds), ("one-run", seeds[:1]))[: len(seeds)]:
            # (2 ways, runs, rows, t - 1)
            of_run = np.stack(
                [np.stack([read[key][0] for key in places[stage, seed]]).mean(0) for seed in some], axis=1
            )
            readings = [read[key][1] for seed in some for key in places[stage, seed]]
            summary = {"name": name, "stage": stage, "step": readings[0]["step"], "readings": readings}
            less, more = of_run.mean(axis=1)
            summary |= _describe(config, of_run[1], readings)
            found[stage, name] = Direction(name, stage, more, summary, less)
    return found


def _describe(
    config: InductionConfig, by_run: NDArray[np.float32], readings: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What the direction asks, its error at a checkpoint, and how far the runs (r, …) agree on it."""
    held = f", loss on other tokens held for {' and '.join(ways)}" if (ways := config.structure.hold_other) else ""
    runs, steps = len(by_run), len(readings)
    flat = [s.astype(np.float64).ravel() for s in by_run]
    pairs = [rank_correlation(a, b) for a, b in combinations(flat, 2)]
    between = float(np.mean(pairs)) if pairs else None
    return {
        "what": f"wider repeated gap{held} (first-order χ, every token; {runs} runs, {steps} checkpoints)",
        "reliability": {
            name: float(np.mean([one["reliability"][name] for one in readings])) for name in readings[0]["reliability"]
        },
        "between_runs": between,
        # Spearman-Brown from one run to the mean of all: how well it would correlate with the mean over as many others
        "across_runs": runs * between / (1 + (runs - 1) * between) if between and between > 0 else between,
    }


def _read(
    config: InductionConfig,
    source: Source,
    text: Text,
    rows: NDArray[np.int64],
    anchors: dict[tuple[int, int], Tensor],
    pool: Workers,
) -> dict[tuple[int, int], tuple[NDArray[np.float32], dict[str, Any]]]:
    """Gaussian scores (2, rows, t - 1), less and more, at each anchor by seed and step, and what is known of them."""
    blocks = repeated_random(
        config.corpus.vocabulary, config.model.context, config.structure.read_on, source.seed + OTHER_BLOCKS
    )
    tokens = text.tokens[torch.from_numpy(rows)]
    models = {key: load_language(config.language, anchor) for key, anchor in anchors.items()}
    # (2 halves, observables, P): halves of the blocks and of the rows, which tell χ's own error
    halves = {
        key: torch.stack([observable_gradients(model, blocks[i::2], tokens[i::2]) for i in range(2)])
        for key, model in models.items()
    }
    work = [
        slope_units("structure", config.corpus.rows, SlopeFit(source, config.language, anchor), halves[key].mean(0))
        for key, anchor in anchors.items()
    ]
    done = iter(pool.compute([unit for units in work for unit in units], "χ of the structure, all training tokens"))
    few = text.tokens[torch.from_numpy(rows[: 2 * AT_ONCE])]
    found = {}
    for ((seed, step), model), units in zip(models.items(), work, strict=True):
        s, summary = _direction(config, joined_slopes([next(done) for _ in units]))
        reliability = dict(zip(OBSERVABLES, _reliability(model, few, halves[seed, step]), strict=True))
        found[seed, step] = s, {"seed": seed, "step": step, "reliability": reliability} | summary
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


def _direction(config: InductionConfig, slopes: NDArray[np.float32]) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Gaussian scores (2, …) of χ† for a gap wider by one standard deviation of its row, as "less" and "more" ask."""
    own = config.reading
    chi = -slopes.reshape(len(OBSERVABLES), -1).astype(np.float64) / own.localization
    chi -= chi.mean(axis=1, keepdims=True)
    q = np.full(chi.shape[1], 1 / chi.shape[1])
    target = np.array([chi[0].std(), 0.0])
    scores: list[NDArray[np.float64]] = []
    summary: dict[str, Any] = {"correlation": float(np.corrcoef(chi)[0, 1])}
    for toward in TOWARD:
        used = slice(2 if toward in config.structure.hold_other else 1)
        solution = solve(chi[used], q, target[used], own.n_beta)
        scores.append(gaussian_scores(solution.s, q, np.ones(len(q), dtype=bool)))
        summary[toward] = {
            "rank": solution.rank,
            "condition": solution.condition,
            "noise_floor": solution.noise_floor,
            "wanted": solution.wanted,
            "predicted": solution.predicted,
        }
    return np.stack(scores).reshape(2, *slopes.shape[1:]).astype(np.float32), summary
