r"""Weights for rows that were not probed, predicted from the model at w*.

χ is measured on some rows; training may read a million. To first order, χ of any observable is a slope of each sample's
loss along one direction v in parameter space, -∇φ·∇ℓ_j / γ (`response.first_order`). v need not be known: it is
taken from the weighted samples themselves,

.. math:: v = \sum_{j\ \mathrm{probed}} q_j\, t_j\, \nabla \ell_j(w^*)

with t_j the Gaussian rank score of ρ_j. The slope v·∇ℓ_j and the loss ℓ_j of every sample are then fitted to t by least
squares (kernel regression with the model's own tangent kernel, one step of it), and unprobed rows are given the weight
that has their place among the probed ones: the histogram of the weights is kept. How well this works is measured on
probed rows that v and the fit have not seen.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patterning.core.arrays import Bools, Floats
from patterning.core.errors import PatterningError, PatterningWarning
from patterning.core.flat import evaluate
from patterning.core.task import Task
from patterning.intervention.weights import gaussian_scores

FOLDS = 4
LEAST_R2 = 0.05
"""A prediction that explains less of unseen rows than this is refused."""
POOR_R2 = 0.3
BATCH = 64


@dataclass(frozen=True)
class Extended:
    """ρ of every sample, `rho` (n·t,); `held_out_r2` of the prediction on probed rows left out; `probed` rows."""

    rho: Floats
    held_out_r2: float
    probed: int


def extend(rho: Floats, q: Floats, known: Bools, task: Task, anchor: Tensor, *, force: bool = False) -> Extended:
    """ρ (n·t,) for samples with base weight `q` that are not `known`, from those that are, around `anchor` w* (P,).

    Known samples keep their ρ. Raises `PatterningError` for fewer than 8 rows of known samples, and where the
    prediction is worth nothing (unless `force`).
    """
    per_row = len(q) // len(task.base_weights)
    rows = np.flatnonzero(known.reshape(-1, per_row).any(axis=1))
    if len(rows) < 2 * FOLDS:
        raise PatterningError(f"{len(rows)} rows have weights of their own: {2 * FOLDS} are needed to predict others")
    scores = gaussian_scores(rho, q, known)
    losses = _losses(task, anchor, per_row)
    r2 = _held_out(task, anchor, scores, losses, q, known, rows, per_row)
    if r2 < LEAST_R2 and not force:
        raise PatterningError(
            f"the weights of unprobed rows cannot be predicted: on probed rows left out, {100 * r2:.0f} % of the "
            "variance is explained; probe more rows, or weight the probed ones alone (force=True takes the prediction "
            "all the same)"
        )
    if r2 < POOR_R2:
        warnings.warn(
            f"weights of unprobed rows are predicted with a held-out R² of {r2:.2f}: they act more weakly than those "
            "of probed rows",
            PatterningWarning,
            stacklevel=3,
        )
    features = _features(task, anchor, scores, losses, q, known, per_row)
    predicted = features @ _fit(features[known], scores[known], q[known])
    whole = np.where(known, rho, _by_rank(predicted, predicted[known], rho[known]))
    return Extended(np.where(q > 0, whole, 1.0), r2, len(rows))


def _losses(task: Task, anchor: Tensor, per_row: int) -> Floats:
    """ℓ_j(w*) of every sample, masked ones 0."""
    n = len(task.base_weights)
    if per_row == 1:
        return evaluate(task.losses, anchor[None], n)[0].double().cpu().numpy()
    parts = torch.arange(n).split(BATCH)
    with torch.no_grad():
        return np.concatenate(
            [task.sample_losses(anchor[None], part[None])[0].double().cpu().numpy() for part in parts]
        )


def _features(
    task: Task, anchor: Tensor, scores: Floats, losses: Floats, q: Floats, known: Bools, per_row: int
) -> Floats:
    """(samples, 3): the slope along v in units of its own spread, the loss, and 1."""
    weight = np.where(known, q * scores, 0.0)
    slope = _slopes(task, anchor, _direction(task, anchor, weight, per_row), per_row)
    spread = max(float(np.sqrt((q * slope**2).sum())), 1e-300)
    return np.stack([slope / spread, losses - (q * losses).sum(), np.ones_like(losses)], axis=1)


def _direction(task: Task, anchor: Tensor, weight: Floats, per_row: int) -> Tensor:
    """Σ weight_j ∇ℓ_j (P,), in batches of rows, over rows that have weight."""
    table = torch.from_numpy(weight.reshape(-1, per_row)).to(anchor)
    rows = table.abs().sum(1).nonzero()[:, 0].cpu()
    total = torch.zeros_like(anchor)
    for part in rows.split(BATCH):
        flat = anchor[None].clone().requires_grad_()
        losses = task.sample_losses(flat, part[None])[0].reshape(len(part), per_row)
        total += torch.autograd.grad((losses * table[part]).sum(), flat)[0][0]
    norm = float(total.norm())
    if not np.isfinite(norm) or norm == 0:
        raise PatterningError("the weighted samples have no gradient at this checkpoint: nothing can be predicted")
    return total / norm


def _slopes(task: Task, anchor: Tensor, direction: Tensor, per_row: int) -> Floats:
    """v·∇ℓ_j of every sample: forward derivatives, or differences where a loss has none."""
    size = float(anchor.double().square().mean().sqrt()) or 1.0
    step = 1e-3 * size * np.sqrt(anchor.numel())
    parts = torch.arange(len(task.base_weights)).split(BATCH)

    def at(flat: Tensor, part: Tensor) -> Tensor:
        return task.sample_losses(flat, part[None])

    def along(part: Tensor) -> Tensor:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
                return torch.func.jvp(lambda flat: at(flat, part), (anchor[None],), (direction[None],))[1]
        except (RuntimeError, NotImplementedError):
            with torch.no_grad():
                ahead, behind = (at((anchor + sign * step * direction)[None], part) for sign in (1, -1))
                return (ahead - behind) / (2 * step)

    return np.concatenate([along(part)[0].detach().double().cpu().numpy() for part in parts]).reshape(-1)[
        : len(task.base_weights) * per_row
    ]


def _fit(features: Floats, scores: Floats, q: Floats) -> Floats:
    root = np.sqrt(q)[:, None]
    return np.asarray(np.linalg.lstsq(features * root, scores * root[:, 0])[0], dtype=np.float64)


def _held_out(
    task: Task, anchor: Tensor, scores: Floats, losses: Floats, q: Floats, known: Bools, rows: np.ndarray, per_row: int
) -> float:
    """Share of the variance of scores explained on rows that neither v nor the fit has seen."""
    fold_of = np.full(len(q) // per_row, -1)
    fold_of[rows] = np.arange(len(rows)) % FOLDS
    fold = np.repeat(fold_of, per_row)
    error = total = 0.0
    for k in range(FOLDS):
        seen, left = known & (fold != k), known & (fold == k)
        features = _features(task, anchor, scores, losses, q, seen, per_row)
        predicted = features[left] @ _fit(features[seen], scores[seen], q[seen])
        mean = float((q * scores)[seen].sum() / q[seen].sum())
        error += float((q[left] * (scores[left] - predicted) ** 2).sum())
        total += float((q[left] * (scores[left] - mean) ** 2).sum())
    return 1 - error / max(total, 1e-300)


def _by_rank(predicted: Floats, of_known: Floats, rho: Floats) -> Floats:
    """The weight of the known sample that has the same rank among predictions."""
    place = np.searchsorted(np.sort(of_known), predicted, side="left").clip(max=len(rho) - 1)
    return np.sort(rho)[place]
