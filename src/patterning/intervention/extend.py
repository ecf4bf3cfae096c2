r"""Weights for rows that were not probed, predicted from the model at w*.

χ is measured on some rows; training may read a million. To first order, χ of any observable is a slope of each sample's
loss along one direction v in parameter space, -∇φ·∇ℓ_j / γ (`response.first_order`). v need not be known: it is
taken from the weighted samples themselves,

.. math:: v = \sum_{j\ \mathrm{probed}} q_j\, t_j\, \nabla \ell_j(w^*)

with t_j the Gaussian rank score of ρ_j. The slope v·∇ℓ_j and the loss ℓ_j of every sample are then fitted to t by least
squares on the probed samples (kernel regression with the model's own tangent kernel, one step of it), and other rows
are given the weight that has their place among the probed ones: the histogram of the weights is kept. How well this
works is measured on probed rows that v and the fit have not seen. All that is fitted is a `Rule`: it takes a row's loss
and slope, and needs no other row, so that a corpus can go by in parts (`intervention.extend_file`).
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patterning.core.anchors import check_anchor, warn_if_trained
from patterning.core.arrays import Bools, Floats
from patterning.core.errors import PatterningError, PatterningWarning
from patterning.core.plain import Facts, Plain
from patterning.core.task import Task
from patterning.core.threads import undisturbed
from patterning.intervention.weights import gaussian_scores

FOLDS = 4
LEAST_R2 = 0.05
"""A prediction that explains less of unseen rows than this is refused."""
POOR_R2 = 0.3
BATCH = 64
"""Rows that are evaluated in one call."""

Losses = Callable[[Tensor, Tensor], Tensor]
"""Losses (1, b·t) of rows (b,) at parameters (1, P)."""


@dataclass(frozen=True)
class Rule:
    """How a sample's weight follows from its loss and slope.

    `direction` v (P,), of length 1; `coefficients` of slope, loss and 1; `predicted` and `rho`, both sorted: what is
    predicted of the known samples, and their weights. `held_out_r2`: share of the variance of scores that is explained
    on probed rows left out; `probed` rows. `pull`: Σ q (ρ - 1) v·∇ℓ / Σ q over the known samples, with v of other
    rows; `along`: the share of the variance of their weights that lies along it (the larger one, of ρ and its ranks).
    """

    direction: Tensor
    coefficients: Floats
    predicted: Floats
    rho: Floats
    held_out_r2: float
    probed: int
    pull: float
    along: float

    def weights(self, losses: Floats, slopes: Floats) -> Floats:
        """ρ of samples: the weight of the known sample that has the same rank among predictions."""
        predicted = _table(losses, slopes) @ self.coefficients
        place = np.searchsorted(self.predicted, predicted, side="left").clip(max=len(self.rho) - 1)
        return self.rho[place]


@undisturbed()
def extended(weights: Any, task: Task, at: Any, *, force: bool) -> Any:
    """`Weights.extend`: the weights with ρ of all rows of the task."""
    anchor, known = ready(weights, task, at)
    if known.sum() == (weights.base_weights > 0).sum():
        return weights
    rho, q = weights.rho.ravel(), weights.base_weights.ravel()
    rule = fit_rule(rho, q, known, task, anchor, force=force)
    losses, slopes = losses_and_slopes(task.sample_losses, anchor, rule.direction, torch.arange(len(weights)))
    whole = np.where(q > 0, np.where(known, rho, rule.weights(losses, slopes)), 1.0)
    sums = Pull()
    sums.add(whole, q, slopes, known)
    facts = facts_of_all(weights.facts, float(q[known].sum() / q.sum()), rule, sums)
    return replace(weights, rho=whole.reshape(weights.rho.shape), free=weights.base_weights > 0, facts=facts)


class Pull:
    """Sums over samples as they go by, for what weights of all of them do along v: of known samples, and of others."""

    def __init__(self) -> None:
        self.sums = np.zeros((2, 4))

    def add(self, rho: Floats, q: Floats, slopes: Floats, known: Bools) -> None:
        """Take in samples (m,)."""
        for of, place in enumerate((known & (q > 0), ~known & (q > 0))):
            r, w, s = rho[place], q[place], slopes[place]
            self.sums[of] += [w.sum(), w @ r, w @ s, (w * r) @ s]

    @property
    def has_known(self) -> bool:
        """Whether known samples are among them, which those of another corpus are not."""
        return bool(self.sums[0, 0] > 0)

    def of_others(self) -> float:
        """Σ q (ρ - 1)(v·∇ℓ - mean) of the others / Σ q of all, with ρ scaled to mean 1 over all."""
        q, rho, slope, _ = self.sums.sum(0)
        scale, mean, own = q / rho, slope / q, self.sums[1]
        return float((scale * own[3] - own[2] - mean * (scale * own[1] - own[0])) / q)


def facts_of_all(facts: Facts, share: float, rule: Rule, sums: Pull) -> dict[str, Plain]:
    """What is expected of weights for each unit of strength, once all rows have weights and not a `share` of them.

    χ is read from ρ on the known rows, whose slopes along v are taken from rows that v has not seen. A share of it,
    `rule.along` or more, lies along v, and the other rows answer to that share alone: per unit of Σ q ρ v·∇ℓ they move
    φ by share / pull of what the known rows do. (More, as v is then fitted to more rows.) What is told is the geometric
    mean of both ends, `along` and 1. Its interval holds both, with the error from so few probed rows,
    √((1 - R²) / (R² · probed)) of the change, and with that of the chains. Where several rows of χ were asked for or
    held, one v does not tell them apart, and the interval is not known.
    """
    r2, pull = min(rule.held_out_r2, 1.0), rule.pull
    others = sums.of_others()
    at_most = others / (share * pull) if pull > 0 and rule.along > 0 else float("nan")
    factor = float(sums.has_known) + at_most * np.sqrt(rule.along)
    target = facts.get("target")
    error = float("nan")
    if isinstance(target, Mapping) and len(target) == 1 and r2 > 0:
        few, ends = 1.96 * np.sqrt((1 - r2) / (r2 * rule.probed)), at_most * (1 - np.sqrt(rule.along)) / factor
        error = float(np.hypot(few, ends))
    told = dict(facts)
    for name in ("predicted_per_strength", "by_token_per_strength"):
        if isinstance(own := told.get(name), Mapping):
            told[name] = {row: _of_all(value, factor, error) for row, value in own.items()}
    return told | {"held_out_r2": rule.held_out_r2, "probed_rows": rule.probed}


def _of_all(told: Any, factor: float, error: float) -> Plain:
    if not isinstance(told, Mapping):
        return factor * told
    value, low, high = (float("nan") if told[end] is None else factor * told[end] for end in ("value", "low", "high"))
    width = float(np.hypot((high - low) / 2, error * value))
    return {"value": value, "low": value - width, "high": value + width}


def ready(weights: Any, task: Task, at: Any) -> tuple[Tensor, Bools]:
    """The checkpoint (P,) and which samples have weights of their own (n·t,), after checks."""
    weights.check(task)
    if at is None:
        warn_if_trained(task)
    anchor = check_anchor(task, at) if isinstance(at, Tensor) else task.own_row() if at is None else task.flatten(at)
    return anchor, (weights.free & (weights.base_weights > 0)).ravel()


def fit_rule(rho: Floats, q: Floats, known: Bools, task: Task, anchor: Tensor, *, force: bool = False) -> Rule:
    """The rule that predicts ρ (n·t,) of samples with base weight `q` from those that are `known`, at w* (P,).

    Raises `PatterningError` for fewer than 8 rows of known samples, and where the prediction is worth nothing (unless
    `force`). Known rows alone are evaluated.
    """
    per_row = len(q) // len(task.base_weights)
    rows = np.flatnonzero(known.reshape(-1, per_row).any(axis=1))
    if len(rows) < 2 * FOLDS:
        raise PatterningError(f"{len(rows)} rows have weights of their own: {2 * FOLDS} are needed to predict others")
    cells = (rows[:, None] * per_row + np.arange(per_row)).ravel()
    seen = _Known(task, anchor, torch.from_numpy(rows), gaussian_scores(rho, q, known)[cells], q[cells], known[cells])
    r2, slopes = seen.held_out(np.repeat(np.arange(len(rows)) % FOLDS, per_row))
    if r2 < LEAST_R2 and not force:
        raise PatterningError(
            "the weights of unprobed rows cannot be predicted: of the variance on probed rows left out, "
            f"{100 * max(r2, 0.0):.0f} % is explained; probe more rows, or weight the probed ones alone (force=True "
            "takes the prediction all the same)"
        )
    if r2 < POOR_R2:
        warnings.warn(
            f"weights of unprobed rows are predicted with a held-out R² of {r2:.2f}: they act more weakly than those "
            "of probed rows",
            PatterningWarning,
            stacklevel=4,
        )
    direction, coefficients, predicted, _ = seen.fit(seen.known, seen.known)
    place, weight = seen.known, seen.q[seen.known]
    along = max(_explained(of[place], slopes[place], weight) for of in (rho[cells], seen.scores))
    pull = float(np.cov(rho[cells][place], slopes[place], aweights=weight, bias=True)[0, 1])
    return Rule(direction, coefficients, np.sort(predicted), np.sort(rho[known]), r2, len(rows), pull, along)


def _explained(one: Floats, other: Floats, q: Floats) -> float:
    """Squared correlation under weights q."""
    covariance = np.cov(one, other, aweights=q)
    return float(covariance[0, 1] ** 2 / max(covariance[0, 0] * covariance[1, 1], 1e-300))


@dataclass(frozen=True)
class _Known:
    """The probed `rows` with scores t, base weights and which samples are known, (m·t,) each."""

    task: Task
    anchor: Tensor
    rows: Tensor
    scores: Floats
    q: Floats
    known: Bools

    def fit(self, seen: Bools, asked: Bools) -> tuple[Tensor, Floats, Floats, Floats]:
        """v and the coefficients from samples `seen`; what they predict of those `asked`, and the slopes of these."""
        direction = self._direction(np.where(seen, self.q * self.scores, 0.0))
        losses, slopes = losses_and_slopes(self.task.sample_losses, self.anchor, direction, self.rows)
        table = _table(losses, slopes)
        size = np.maximum(np.sqrt((self.q[seen, None] * table[seen] ** 2).sum(0)), 1e-300)  # columns of one size
        root = np.sqrt(self.q[seen])
        solved = np.linalg.lstsq(table[seen] / size * root[:, None], self.scores[seen] * root)[0]
        return direction, solved / size, table[asked] @ (solved / size), slopes[asked]

    def held_out(self, fold: np.ndarray) -> tuple[float, Floats]:
        """Share of the variance of scores explained on rows that neither v nor the fit saw, and slopes along such v."""
        error, total, slopes = 0.0, 0.0, np.zeros_like(self.scores)
        for number in range(FOLDS):
            seen, left = self.known & (fold != number), self.known & (fold == number)
            _, _, predicted, slopes[left] = self.fit(seen, left)
            mean = float((self.q * self.scores)[seen].sum() / self.q[seen].sum())
            error += float((self.q[left] * (self.scores[left] - predicted) ** 2).sum())
            total += float((self.q[left] * (self.scores[left] - mean) ** 2).sum())
        return 1 - error / max(total, 1e-300), slopes

    def _direction(self, weight: Floats) -> Tensor:
        """Σ weight_j ∇ℓ_j (P,), scaled to length 1, in batches of rows that have weight."""
        table = torch.from_numpy(weight.reshape(len(self.rows), -1)).to(self.anchor)
        total = torch.zeros_like(self.anchor)
        for part in table.abs().sum(1).nonzero()[:, 0].cpu().split(BATCH):
            flat = self.anchor[None].clone().requires_grad_()
            losses = self.task.sample_losses(flat, self.rows[part][None])[0].reshape(len(part), -1)
            total += torch.autograd.grad((losses * table[part]).sum(), flat)[0][0]
        norm = float(total.norm())
        if not np.isfinite(norm) or norm == 0:
            raise PatterningError("the weighted samples have no gradient at this checkpoint: nothing can be predicted")
        return total / norm


def losses_and_slopes(losses: Losses, anchor: Tensor, direction: Tensor, rows: Tensor) -> tuple[Floats, Floats]:
    """ℓ_j(w*) and v·∇ℓ_j of every sample in `rows` (m,), (m·t,) each: by forward derivatives, in batches of rows.

    Where a loss has none, by central differences over 1e-3 of the parameters' size.
    """
    parts = [_along(losses, anchor, direction, part) for part in rows.split(BATCH)]
    values, slopes = (
        np.concatenate([p.detach().double().cpu().numpy() for p in of]) for of in zip(*parts, strict=True)
    )
    return values, slopes


def _along(losses: Losses, anchor: Tensor, direction: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
            found = torch.func.jvp(lambda flat: losses(flat, part[None]), (anchor[None],), (direction[None],))
            return found[0][0], found[1][0]
    except (RuntimeError, NotImplementedError):
        size = float(anchor.double().square().mean().sqrt()) or 1.0
        step = 1e-3 * size * np.sqrt(anchor.numel())
        with torch.no_grad():
            ahead, behind = (losses((anchor + sign * step * direction)[None], part[None])[0] for sign in (1, -1))
            return losses(anchor[None], part[None])[0], (ahead - behind) / (2 * step)


def _table(losses: Floats, slopes: Floats) -> Floats:
    """What a score is a linear function of, (samples, 3)."""
    return np.stack([slopes, losses, np.ones_like(losses)], axis=1)
