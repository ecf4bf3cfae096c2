"""What the workers of the induction experiment run: one training run, or one predictor over all training tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from patterning.experiments.induction.text import Source, load_text
from patterning.models.language import LanguageConfig
from patterning.response.predictor import features, fit_predictor
from patterning.rng import Stream, generator
from patterning.store import Arrays, Unit
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


CHUNK = 512
"""Rows whose features are held at a time."""


def predict_unit(
    *,
    source: Source,
    model: Mapping[str, Any],
    anchor: NDArray[np.float32],
    rows: NDArray[np.int64],
    targets: NDArray[np.float64],
    random_seeds: Sequence[int],
    scratch: Path,
) -> Arrays:
    """Fit `targets` (len(rows)·(t - 1), m) on features of the frozen model `anchor` (P,), predict all training tokens.

    Returns `predicted` float32 (m, n, t - 1) and the held-out `r2` (m,); for `random_seeds`, `random` float32
    (seeds, n, t - 1): random linear functions of the standardised features, as smooth over tokens as a prediction is.
    """
    del scratch
    text, network = load_text(source), load_language(LanguageConfig(**model), torch.from_numpy(anchor))
    tokens = text.tokens
    per_row = tokens.shape[1] - 1

    def of(chosen: torch.Tensor) -> NDArray[np.float32]:
        return np.asarray(features(network, chosen))

    known = of(tokens[torch.from_numpy(rows)])
    predictor = fit_predictor(known, targets, np.repeat(np.arange(len(rows)), per_row))
    spread = known.std(axis=0)
    width = known.shape[1]
    along = np.zeros((width, len(random_seeds)))  # random directions, in units of each feature's spread
    for i, seed in enumerate(random_seeds):
        along[:, i] = generator(seed, Stream.CONTROL).standard_normal(width) / np.where(spread > 0, spread, np.inf)
    parts: list[NDArray[np.float32]] = []
    for chunk in tokens.split(CHUNK):
        found = of(chunk)
        parts.append(np.concatenate([predictor.predict(found), found @ along], axis=1).astype(np.float32))
    every = np.concatenate(parts).T.reshape(-1, len(tokens), per_row)
    m = targets.shape[1]
    return {"predicted": every[:m], "random": every[m:], "r2": np.asarray(predictor.r2, dtype=np.float64)}
