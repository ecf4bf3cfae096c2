r"""χ of samples that were not sampled, predicted from the frozen model: ridge from activations to χ or mode scores.

Sampling χ takes hundreds of passes for each component and token; a training set of millions of tokens is out of reach.
The second-order part of χ_j(φ_C) is set by how component C enters ℓ_j at w*, of which one pass knows much: what the
component writes, what it attends to, and the error e_j = U[target] - E_p[U] that its output meets (U: unembedding).
The first-order part is exact and cheap (`response.slopes`): append it as more columns.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.models.language import LanguageModel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PENALTIES = tuple(10.0**p for p in range(-5, 2))


def features(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Features (b·(t-1), F) float32 of every next-token prediction in `tokens` (b, t), row by row.

    In the order of `feature_groups`. Three passes' worth of time and b·h·t² numbers for the patterns: call it on
    a batch of rows at a time. The model is left as it is.
    """
    return torch.cat(list(feature_groups(model, tokens).values()), dim=2).flatten(0, 1)


@torch.no_grad()
def feature_groups(model: LanguageModel, tokens: Tensor) -> dict[str, Tensor]:
    """Named groups (b, t - 1, f): stream, error, prediction, copies, attention, attribution, ablation."""
    target, current = tokens[:, 1:], tokens[:, :-1]
    inputs = current
    x, positions = model.start(inputs)
    streams, patterns, outputs = [x], [], []
    for block in model.layers():
        q, k, v = block.attention.project(block.ln1(x), positions)
        pattern = block.attention.pattern(q, k)
        read = block.attention.out.weight.unflatten(1, (block.attention.heads, -1))  # (d, h, d/h)
        outputs.append(torch.einsum("bhts,bhse,dhe->bhtd", pattern, v, read))
        patterns.append(pattern)
        x = block(x, positions)
        streams.append(x)
    final = model.ln_final(x)
    logits = model.unembed(final)
    log_p = logits.log_softmax(-1)
    p, u = log_p.exp(), model.unembed.weight
    loss = -log_p.gather(2, target[..., None])[..., 0]
    error = u[target] - p @ u  # -∂ℓ/∂(what the unembedding reads)
    attention = torch.stack(patterns, 1).flatten(1, 2)  # (b, L·h, t, t)
    written = torch.stack(outputs, 1).flatten(1, 2)  # (b, L·h, t, d)
    written = written - written.mean(-1, keepdim=True)
    scale = model.ln_final.weight / (x.var(-1, unbiased=False, keepdim=True) + model.ln_final.eps).sqrt()
    direct = written * scale[:, None]  # what a head adds to the unembedding's input, at the LayerNorm's scale
    attribution = torch.einsum("bhtd,btd->bth", direct, error)
    moved = direct @ u.T  # logits that a head adds
    mean = (moved * p[:, None]).sum(-1, keepdim=True)
    leverage = ((moved - mean) ** 2 * p[:, None]).sum(-1).transpose(1, 2)  # curvature of ℓ along the head's output
    entropy = -(p * log_p).sum(-1)
    seen = _copies(current, target)
    return {
        "stream": torch.cat([*streams, final], -1),
        "error": torch.cat([error, u[target]], -1),
        "prediction": torch.stack([loss, loss**2, (-loss).exp(), entropy, log_p.amax(-1), (p**2).sum(-1)], -1),
        "copies": torch.stack([*seen.values()], -1).float(),
        "attention": _attention_features(attention, current, target),
        "attribution": torch.cat([attribution, leverage, written.norm(dim=-1).transpose(1, 2)], -1),
        "ablation": _ablations(model, streams, outputs, positions, target, loss),
    }


def _earlier(t: int, device: torch.device) -> Tensor:
    return torch.ones(t, t, dtype=torch.bool, device=device).tril(-1)


def _copies(current: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Of every prediction (b, t): what the text alone says of copying."""
    t = current.shape[1]
    before = _earlier(t, current.device)
    same = (current[:, :, None] == current[:, None, :]) & before  # query, key
    follows = same & (target[:, :, None] == target[:, None, :])  # and its successor was the target
    place = torch.arange(t, device=current.device)
    last = torch.where(same, place, -1).amax(-1)
    latest = torch.where(last >= 0, target.gather(1, last.clamp(min=0)) == target, False)
    counts = {"same": same.sum(-1), "follows": follows.sum(-1)}
    known = (current[:, None, :] == target[:, :, None]) & (
        before | torch.eye(t, dtype=torch.bool, device=before.device)
    )
    return {
        **{name: (1 + count).log() for name, count in counts.items()},
        "seen": same.any(-1),
        "hit": follows.any(-1),
        "latest": latest,
        "miss": same.any(-1) & ~follows.any(-1),
        "target": (1 + known.sum(-1)).log(),
        "position": (1 + place.float()).log().expand_as(current),
    }


def _attention_features(attention: Tensor, current: Tensor, target: Tensor) -> Tensor:
    """Of every head (b, t, L·h · 7): where its attention goes, in classes that need the tokens alone."""
    t = current.shape[1]
    previous = current.roll(1, 1)
    previous[:, 0] = -1
    copied = current[:, None, :] == target[:, :, None]  # the token read is the one to be predicted
    matched = previous[:, None, :] == current[:, :, None]  # its predecessor is the current token: prefix matching
    leads = target[:, None, :] == target[:, :, None]  # its successor is the one to be predicted
    leads = leads & _earlier(t, current.device)
    found = [
        torch.einsum("bhts,bts->bth", attention, mask.float()) for mask in (copied, matched, copied & matched, leads)
    ]
    back = attention.diagonal(-1, dim1=2, dim2=3)
    back = torch.nn.functional.pad(back, (1, 0))
    own = attention.diagonal(dim1=2, dim2=3)
    spread = -(attention * attention.clamp(min=1e-12).log()).sum(-1)
    return torch.cat([*found, *(part.transpose(1, 2) for part in (back, own, spread))], -1)


def _ablations(
    model: LanguageModel,
    streams: Sequence[Tensor],
    outputs: Sequence[Tensor],
    positions: Tensor | None,
    target: Tensor,
    loss: Tensor,
) -> Tensor:
    """Loss without a head's output minus loss, nats, for each head: (b, t, L·h)."""
    found = []
    blocks = list(model.layers())
    for layer, heads in enumerate(outputs):
        for own in heads.unbind(1):
            x = streams[layer + 1] - own  # a MLP of the same block keeps its output
            for block in blocks[layer + 1 :]:
                x = block(x, positions)
            log_p = model.unembed(model.ln_final(x)).log_softmax(-1)
            found.append(-log_p.gather(2, target[..., None])[..., 0] - loss)
    return torch.stack(found, -1)


@dataclass(frozen=True)
class Predictor:
    """A linear map from features (F,) to m targets.

    `r2` (m,): share of the targets' variance predicted on groups that the map (and its penalty) was not fitted to, in
    `folds` parts; negative: worse than the mean. `penalties` (m,) in units of a feature's variance. `samples`: how
    many it was fitted to. Targets are noisy, which bounds r2 by their reliability: `against_truth` divides by it.
    """

    weights: Floats
    intercept: Floats
    r2: Floats
    penalties: Floats
    samples: int

    def predict(self, found: Tensor | NDArray[np.floating]) -> Floats:
        """(n, F) → (n, m) float64."""
        return np.asarray(found, dtype=np.float64) @ self.weights + self.intercept

    def against_truth(self, reliability: Floats | float) -> Floats:
        """r2 (m,) against the noise-free targets, given the share of the targets' variance that is not noise."""
        return self.r2 / np.asarray(reliability)


@dataclass(frozen=True)
class _Sums:
    """Sums over n samples: x (F,), y (m,), xx (F, F), xy (F, m), yy (m,)."""

    n: int
    x: Floats
    y: Floats
    xx: Floats
    xy: Floats
    yy: Floats

    @classmethod
    def of(cls, x: Floats, y: Floats) -> "_Sums":
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y, (y**2).sum(0))

    def plus(self, other: "_Sums", sign: int = 1) -> "_Sums":
        return _Sums(
            n=self.n + sign * other.n,
            x=self.x + sign * other.x,
            y=self.y + sign * other.y,
            xx=self.xx + sign * other.xx,
            xy=self.xy + sign * other.xy,
            yy=self.yy + sign * other.yy,
        )

    def fits(self, penalties: Sequence[float]) -> list[tuple[Floats, Floats]]:
        """Weights (F, m) and intercepts (m,) of the ridge fit at every penalty, from one eigendecomposition."""
        mean, centre = self.x / self.n, self.y / self.n
        spread = np.sqrt(np.maximum(np.diagonal(self.xx) / self.n - mean**2, 0))
        size = np.sqrt(np.diagonal(self.xx) / self.n)
        one = np.where(spread > 1e-6 * size, 1 / np.where(spread > 0, spread, 1), 0)  # a constant feature says nothing
        covariance = (self.xx / self.n - np.outer(mean, mean)) * np.outer(one, one)
        slope = (self.xy / self.n - np.outer(mean, centre)) * one[:, None]
        values, vectors = np.linalg.eigh(covariance)
        turned = vectors.T @ slope
        found = []
        for penalty in penalties:
            weights = one[:, None] * (vectors @ (turned / (np.maximum(values, 0) + penalty)[:, None]))
            found.append((weights, centre - mean @ weights))
        return found

    def errors(self, weights: Floats, intercept: Floats) -> Floats:
        """Sum of squared errors (m,) of a fit on these samples."""
        found = self.yy - 2 * (weights * self.xy).sum(0) - 2 * intercept * self.y + self.n * intercept**2
        return found + (weights * (self.xx @ weights)).sum(0) + 2 * intercept * (self.x @ weights)


def _fold(groups: Ints, folds: int) -> Ints:
    """A fold for each group, by a hash (Knuth's): the same in every batch, and not in step with the order of rows."""
    mixed = np.asarray(groups).astype(np.uint64) * np.uint64(11400714819323198485)
    return ((mixed >> np.uint64(32)) % np.uint64(folds)).astype(np.int64)


def fit_predictor(
    found: Tensor | NDArray[np.floating],
    targets: Floats,
    groups: Ints,
    *,
    folds: int = 5,
    penalties: Sequence[float] = PENALTIES,
) -> Predictor:
    """Ridge from features `found` (n, F) to `targets` (n, m); `groups` (n,): the row of each, held out whole."""
    return fit_in_batches([(found, targets, groups)], folds=folds, penalties=penalties)


def fit_in_batches(
    batches: Iterable[tuple[Tensor | NDArray[np.floating], Floats, Ints]],
    *,
    folds: int = 5,
    penalties: Sequence[float] = PENALTIES,
) -> Predictor:
    """`fit_predictor` over batches (features, targets, groups), each seen once: memory F² · folds, whatever n is.

    Sums of products in float64, one set a fold, give every fold's fit and its error on the fold left out. The penalty
    of a target, in units of a standardised feature's mean square, is the best one; in the error that is reported for a
    fold, the best one on the other folds. Raises `PatterningError` for shapes that do not fit, NaN, or too few rows.
    """
    if folds < 2 or not len(penalties) or min(penalties) <= 0:
        raise PatterningError(f"{folds} folds and penalties {list(penalties)}: at least 2 folds, one penalty, all > 0")
    parts: list[_Sums | None] = [None] * folds
    for found, targets, groups in batches:
        x, y = np.asarray(found, dtype=np.float64), np.asarray(targets, dtype=np.float64)
        if x.ndim != 2 or y.ndim != 2 or not len(x) == len(y) == len(groups):
            raise PatterningError(f"features {x.shape}, targets {y.shape}, groups {groups.shape}: (n, F), (n, m), (n,)")
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise PatterningError("features or targets hold NaN or infinite entries")
        place = _fold(groups, folds)
        for fold in range(folds):
            if (own := place == fold).any():
                sums, before = _Sums.of(x[own], y[own]), parts[fold]
                parts[fold] = sums if before is None else sums.plus(before)
    held = [part for part in parts if part is not None]
    if len(held) < 2:
        raise PatterningError("all rows fall into one fold: more rows are needed to hold some out")
    total = reduce(_Sums.plus, held)
    errors = np.stack(  # (folds, penalties, m)
        [[part.errors(*fit) for fit in total.plus(part, -1).fits(penalties)] for part in held]
    )
    others = errors.sum(0) - errors
    picked = others.argmin(1)  # (folds, m)
    honest = np.take_along_axis(errors, picked[:, None], axis=1)[:, 0].sum(0)
    best = errors.sum(0).argmin(0)
    fits = total.fits(penalties)
    weights = np.stack([fits[b][0][:, i] for i, b in enumerate(best)], axis=1)
    intercept = np.array([fits[b][1][i] for i, b in enumerate(best)])
    spread = total.yy - total.y**2 / total.n
    return Predictor(weights, intercept, 1 - honest / spread, np.asarray(penalties)[best], total.n)
