"""What the workers of the induction experiment run: one training run, or one predictor over all training tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.rng import Stream, generator
from patterning.core.store import Arrays, Unit
from patterning.experiments.induction.text import Source, load_text
from patterning.models.language import LanguageConfig
from patterning.response.predictor import features, fit_in_batches
from patterning.response.slopes import loss_slopes
from patterning.tasks.induction import measure_structure
from patterning.training.language import LanguageTraining, load_language, train_language

Weights = NDArray[np.float32]


def training_unit(
    name: str,
    source: Source,
    model: LanguageConfig,
    training: LanguageTraining,
    seed: int,
    rho: Weights | None,
    checkpoints: Sequence[int],
    keep: Sequence[int] = (),
) -> Unit:
    """One run under weights `rho` (n, t - 1) as a unit of work."""
    return Unit(
        name,
        train_unit,
        {
            "source": source,
            "model": asdict(model),
            "training": asdict(training),
            "seed": seed,
            "rho": np.zeros(0, np.float32) if rho is None else rho.astype(np.float32),
            "checkpoints": list(checkpoints),
            "keep": list(keep),
        },
    )


def train_unit(
    *,
    source: Source,
    model: Mapping[str, Any],
    training: Mapping[str, Any],
    seed: int,
    rho: Weights,
    checkpoints: Sequence[int],
    keep: Sequence[int],
    scratch: Path,
) -> Arrays:
    """Train one seed; an empty `rho` is the unweighted run.

    Returns `steps` (c,), every structure measure by its name (c, …), and `at_<step>` parameters (P,) for `keep`.
    """
    text = load_text(source)
    measure = partial(
        measure_structure,
        test_tokens=torch.from_numpy(text.test.tokens),
        classes=text.test_classes,
        repeated=text.repeated,
    )
    found = train_language(
        LanguageConfig(**model),
        text.tokens,
        torch.from_numpy(rho) if rho.size else None,
        LanguageTraining(**{**training, "betas": tuple(training["betas"])}),
        seed=seed,
        checkpoints=checkpoints,
        measure=measure,
        keep=keep,
        scratch=scratch,
    )
    kept = {f"at_{step}": row.numpy() for step, row in found.kept.items()}
    return {"steps": np.asarray(found.steps), **found.measures, **kept}


CHUNK = 64
"""Rows whose features are held at a time."""
PARTS = 4
"""Units that the prediction of all training tokens is cut into; each fits the predictor anew: the cheap part."""


def prediction_units(name: str, count: int, arguments: Mapping[str, Any]) -> list[Unit]:
    """`predict_unit` over `count` training rows, in parts."""
    stops = np.linspace(0, count, min(PARTS, count) + 1).astype(int)
    return [
        Unit(f"{name}-{i}", predict_unit, {**arguments, "start": int(start), "stop": int(stop)})
        for i, (start, stop) in enumerate(pairwise(stops))
    ]


def predict_unit(
    *,
    source: Source,
    model: Mapping[str, Any],
    anchor: NDArray[np.float32],
    rows: NDArray[np.int64],
    targets: NDArray[np.float64],
    random_seeds: Sequence[int],
    start: int,
    stop: int,
    scratch: Path,
) -> Arrays:
    """Fit `targets` (len(rows)·(t - 1), m) on features of the frozen model `anchor` (P,), predict rows start..stop.

    Returns `predicted` float32 (m, stop - start, t - 1) and the held-out `r2` (m,); for `random_seeds`, `random`
    float32 (seeds, stop - start, t - 1): random linear functions of the standardised features, as smooth over tokens as
    a prediction is.
    """
    del scratch
    text, network = load_text(source), load_language(LanguageConfig(**model), torch.from_numpy(anchor))
    tokens, m = text.tokens, targets.shape[1]
    per_row = tokens.shape[1] - 1
    by_row = targets.reshape(len(rows), per_row, m)
    chunks = [slice(at, at + CHUNK) for at in range(0, len(rows), CHUNK)]

    def of(chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.asarray(features(network, tokens[torch.from_numpy(chosen)]))

    predictor = fit_in_batches(
        (of(rows[part]), by_row[part].reshape(-1, m), np.repeat(rows[part], per_row)) for part in chunks
    )
    spread = of(rows[chunks[0]]).std(axis=0)
    along = np.zeros((len(spread), len(random_seeds)))  # random directions, in units of each feature's spread
    for i, seed in enumerate(random_seeds):
        drawn = generator(seed, Stream.CONTROL).standard_normal(len(spread))
        along[:, i] = drawn / np.where(spread > 0, spread, np.inf)
    parts: list[NDArray[np.float32]] = []
    for at in range(start, stop, CHUNK):
        found = of(np.arange(at, min(at + CHUNK, stop)))
        parts.append(np.concatenate([predictor.predict(found), found @ along], axis=1).astype(np.float32))
    every = np.concatenate(parts).T.reshape(-1, stop - start, per_row)
    return {"predicted": every[:m], "random": every[m:], "r2": np.asarray(predictor.r2, dtype=np.float64)}


def joined(parts: Sequence[Arrays]) -> Arrays:
    """The parts of one prediction put together along the rows."""
    whole = {name: np.concatenate([part[name] for part in parts], axis=1) for name in ("predicted", "random")}
    return {**whole, "r2": parts[0]["r2"]}


@dataclass(frozen=True)
class SlopeFit:
    """Where slopes are taken: the text, the model's shape and its parameters `anchor` (P,)."""

    source: Source
    model: LanguageConfig
    anchor: Tensor


SLOPE_ROWS = 16
"""Rows whose slopes are taken at a time: what a CPU's cache holds."""


def slope_units(name: str, count: int, at: SlopeFit, gradients: Tensor) -> list[Unit]:
    """Slopes of every token loss of `count` training rows along `gradients` (k, P), in parts."""
    stops = np.linspace(0, count, min(PARTS, count) + 1).astype(int)
    shared = {
        "source": at.source,
        "model": asdict(at.model),
        "anchor": at.anchor.numpy(),
        "gradients": gradients.numpy(),
    }
    return [
        Unit(f"{name}-{i}", slope_unit, {**shared, "start": int(start), "stop": int(stop)})
        for i, (start, stop) in enumerate(pairwise(stops))
    ]


def slope_unit(
    *,
    source: Source,
    model: Mapping[str, Any],
    anchor: NDArray[np.float32],
    gradients: NDArray[np.float32],
    start: int,
    stop: int,
    scratch: Path,
) -> Arrays:
    """`slopes` float32 (k, stop - start, t - 1)."""
    del scratch
    text, network = load_text(source), load_language(LanguageConfig(**model), torch.from_numpy(anchor))
    rows = text.tokens[start:stop]
    found = torch.cat([loss_slopes(network, part, torch.from_numpy(gradients)) for part in rows.split(SLOPE_ROWS)])
    return {"slopes": found.T.reshape(len(gradients), len(rows), -1).contiguous().numpy()}


def joined_slopes(parts: Sequence[Arrays]) -> NDArray[np.float32]:
    """The parts of `slope_units` put together: (k, rows, t - 1)."""
    return np.concatenate([part["slopes"] for part in parts], axis=1)
