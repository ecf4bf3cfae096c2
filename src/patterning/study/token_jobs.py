"""What is computed of every token of a text, as jobs: slopes of the losses, and predictions from activations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from patterning.core.arrays import Floats
from patterning.core.jobs import Job
from patterning.core.rng import Stream, generator
from patterning.core.store import Arrays
from patterning.core.workers import Workers
from patterning.response.predictor import features, fit_in_batches
from patterning.response.slopes import loss_slopes
from patterning.study.subject import Ints, Parameters
from patterning.study.tokens import TokenSubject

PARTS = 4
"""Jobs that all rows are cut into; each fits a predictor anew: the cheap part."""
FEATURE_ROWS = 64
"""Rows whose features are held at a time."""
SLOPE_ROWS = 16
"""Rows whose slopes are taken at a time: what a CPU's cache holds."""


@dataclass(frozen=True)
class SlopesJob(Job):
    """Slopes of every token loss of rows `start` to `stop` along `gradients` (k, P), at parameters `anchor` (P,)."""

    subject: TokenSubject
    anchor: Parameters
    gradients: NDArray[np.float32]
    start: int
    stop: int

    def run(self, scratch: Path) -> Arrays:
        """`slopes` float32 (k, stop - start, t - 1)."""
        del scratch
        network, along = self.subject.network(self.anchor), torch.from_numpy(self.gradients)
        rows = self.subject.tokens[self.start : self.stop]
        found = torch.cat([loss_slopes(network, part, along) for part in rows.split(SLOPE_ROWS)])
        return {"slopes": found.T.reshape(len(along), len(rows), -1).contiguous().numpy()}


def slopes_of_all(
    subject: TokenSubject, pool: Workers, at: Mapping[str, tuple[Parameters, NDArray[np.float32]]]
) -> dict[str, NDArray[np.float32]]:
    """Slopes (k, n, t - 1) of every token, by name, at each anchor (P,) along its gradients (k, P)."""
    work = {
        name: [
            SlopesJob(subject, anchor, gradients, start, stop, label=f"slopes-{name}-{i}")
            for i, (start, stop) in enumerate(_cut(subject))
        ]
        for name, (anchor, gradients) in at.items()
    }
    done = iter(pool.compute([job for jobs in work.values() for job in jobs], "χ of the structure, all tokens"))
    return {name: np.concatenate([next(done)["slopes"] for _ in jobs], axis=1) for name, jobs in work.items()}


@dataclass(frozen=True)
class PredictJob(Job):
    """Fit `targets` (len(rows)·(t - 1), m) on features of the frozen model `anchor` (P,); predict rows start to stop.

    `random_seeds`: of random linear functions of the standardised features, as smooth over tokens as a prediction is.
    """

    subject: TokenSubject
    anchor: Parameters
    rows: Ints
    targets: Floats
    random_seeds: tuple[int, ...]
    start: int
    stop: int

    def run(self, scratch: Path) -> Arrays:
        """`predicted` (m, stop - start, t - 1), `random` (seeds, stop - start, t - 1), float32; held-out `r2` (m,)."""
        del scratch
        tokens, network, rows = self.subject.tokens, self.subject.network(self.anchor), self.rows
        per_row, m = tokens.shape[1] - 1, self.targets.shape[1]
        by_row = self.targets.reshape(len(rows), per_row, m)
        chunks = [slice(at, at + FEATURE_ROWS) for at in range(0, len(rows), FEATURE_ROWS)]

        def of(chosen: Ints) -> NDArray[np.float32]:
            return np.asarray(features(network, tokens[torch.from_numpy(chosen)]))

        predictor = fit_in_batches(
            (of(rows[part]), by_row[part].reshape(-1, m), np.repeat(rows[part], per_row)) for part in chunks
        )
        along = _random_functions(of(rows[chunks[0]]).std(axis=0), self.random_seeds)
        parts: list[NDArray[np.float32]] = []
        for at in range(self.start, self.stop, FEATURE_ROWS):
            found = of(np.arange(at, min(at + FEATURE_ROWS, self.stop)))
            parts.append(np.concatenate([predictor.predict(found), found @ along], axis=1).astype(np.float32))
        every = np.concatenate(parts).T.reshape(-1, self.stop - self.start, per_row)
        return {"predicted": every[:m], "random": every[m:], "r2": np.asarray(predictor.r2, dtype=np.float64)}


@dataclass(frozen=True)
class OnAllTokens:
    """Targets predicted on every token: `predicted` (m, n, t - 1) with held-out `r2` (m,); `random` (seeds, n, t - 1).

    The last are random functions of the same features.
    """

    predicted: NDArray[np.float32]
    random: NDArray[np.float32]
    r2: Floats


def predict_all(
    subject: TokenSubject, pool: Workers, anchor: Parameters, rows: Ints, targets: Floats, random_seeds: Sequence[int],
    name: str,
) -> OnAllTokens:  # fmt: skip
    """`targets` (len(rows)·(t - 1), m), known on some `rows`, on every token."""
    jobs = [
        PredictJob(subject, anchor, rows, targets, tuple(random_seeds), start, stop, label=f"predict-{name}-{i}")
        for i, (start, stop) in enumerate(_cut(subject))
    ]
    parts = pool.compute(jobs, "predicting all tokens")
    whole = {key: np.concatenate([part[key] for part in parts], axis=1) for key in ("predicted", "random")}
    return OnAllTokens(whole["predicted"], whole["random"], parts[0]["r2"])


def _random_functions(spread: NDArray[np.floating], seeds: Sequence[int]) -> Floats:
    """Random directions (F, seeds), in units of each feature's spread (F,)."""
    along = np.zeros((len(spread), len(seeds)))
    for i, seed in enumerate(seeds):
        drawn = generator(seed, Stream.CONTROL).standard_normal(len(spread))
        along[:, i] = drawn / np.where(spread > 0, spread, np.inf)
    return along


def _cut(subject: TokenSubject) -> list[tuple[int, int]]:
    count = subject.tokens.shape[0]
    stops = np.linspace(0, count, min(PARTS, count) + 1).astype(int)
    return [(int(start), int(stop)) for start, stop in pairwise(stops)]
