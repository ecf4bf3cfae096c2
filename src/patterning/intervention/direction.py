r"""`Direction`: which samples to weight up and down for a wanted change of observables, before any strength is chosen.

s solves the fundamental equation for the ratios and signs of the wanted change,

.. math:: s \propto \chi^\dagger d\mu

(Wang & Murfet, arXiv 2601.13548, and their sequel, arXiv 2609.00699). s_j > 0: sample j gains weight. How far the
observables move is set by the strength of the weights alone; what is to be expected at strength 1 is `predicted`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import Bools, Floats, as_mask
from patterning.core.errors import PatterningError
from patterning.core.plain import Facts, Plain
from patterning.core.samples import Data, Samples
from patterning.intervention.change import Change, changes_of_chains
from patterning.intervention.constrained import Certificate, constrained_weights
from patterning.intervention.data_weights import Weights
from patterning.intervention.rows_of_chi import MIN_RELIABILITY, Rows, untrusted
from patterning.intervention.solve import solve
from patterning.intervention.strength import check_limits, is_number, strong_enough
from patterning.intervention.weights import PairPolicy, standardise, swaps
from patterning.intervention.wishes import in_words, not_held, plan_in_words, unconfirmed, wished


@dataclass(frozen=True)
class Fold:
    """A direction `s` (n,) chosen on some chains, and nβ χ of the other chains, `response` (c, k, n)."""

    s: Floats
    response: Floats


@dataclass(frozen=True, eq=False)
class Direction:
    """Signed scores `s` (n,) of the samples, with root mean square 1 under q; or why there are none (`refused`).

    `wanted`: the change that was asked for, by row (0: held). `predicted`: what every row is expected to do for each
    unit of strength, from chains that did not take part in choosing s (cross-fitted); `folds` are the halves of the
    chains it was made from. `theta` (k,): s is Σ θ_k χ_k, up to a constant. `singular_values` and `noise_floor` are
    of the rows of χ; what lies under the floor was cut. `kept` (rank, n): the other directions of χ, orthonormal under
    q over the free samples; 0 elsewhere. `free` (n,): the samples that it was made for, None for all.
    `name`, `what` and `facts`: of a reading of a study, in words and plain values.
    `opposite`: the direction of the opposite wish, where that is not -s (something else is held). `component_losses`:
    the rows in `wanted` whose observable is the component's own loss, which bear the component's name.
    """

    s: Floats
    wanted: Mapping[str, float]
    predicted: Mapping[str, Change]
    refused: str | None
    samples: Samples
    data: Data | None
    theta: Mapping[str, float] = field(default_factory=dict)
    singular_values: tuple[float, ...] = ()
    noise_floor: float = 0.0
    rank: int = 0
    folds: tuple["Fold", ...] = ()
    name: str = ""
    what: str = ""
    facts: Facts = field(default_factory=dict)
    opposite: "Direction | None" = None
    component_losses: tuple[str, ...] = ()
    kept: Floats | None = None
    free: Bools | None = None

    def reversed(self) -> "Direction":
        """The opposite wish: -s, or `opposite`."""
        if self.opposite is not None:
            return self.opposite
        expected = {name: Change(-c.value, -c.high, -c.low) for name, c in self.predicted.items()}
        wanted = {name: -value for name, value in self.wanted.items()}
        theta = {name: -value for name, value in self.theta.items()}
        folds = tuple(Fold(-fold.s, fold.response) for fold in self.folds)
        return replace(self, s=-self.s, wanted=wanted, predicted=expected, theta=theta, folds=folds)

    def __str__(self) -> str:
        """In words."""
        return plan_in_words(self.wanted, self.predicted, self.refused)

    def weights(
        self,
        strength: float,
        policy: PairPolicy | Literal["constrained"] = "clip",
        *,
        free: Any = None,
        within: Any = None,
        cap: float | None = None,
        min_ess: float | None = None,
        per: str = "sample",
        force: bool = False,
    ) -> Weights:
        """Weights along s: ρ = 1 + strength · s, made non-negative by `policy` (`intervention.weights`).

        `free` (n,) bool: which samples may move (default: all that it was made for); the others, and rows that were not
        probed, stay at ρ = 1. `within` (n,): groups that each keep their total weight, labels say. `cap`: no ρ above
        this. `min_ess`: the strength is lowered until the effective sample size of the free samples is at least this
        share. `per="row"`: one weight a row, from the mean of s over its tokens. `policy="swap"`, for preference pairs:
        |ρ|, and `swapped` where the labels are to be exchanged. `policy="constrained"`: of all weights that keep
        ρ >= 0, `cap`, `min_ess`, `free` and `within`, and move the asked rows as 1 + strength · s would (held ones not
        at all), those nearest to 1 (`intervention.constrained`); `facts["certificate"]` proves it. Raises
        `PatterningError` for a refused direction, unless `force`, and where no constrained weights reach the strength.
        """
        if self.refused and not force:
            raise PatterningError(f"this direction was refused ({self.refused}); force=True takes it all the same")
        if per not in ("sample", "row"):
            raise PatterningError(f"per is {per!r}: it must be 'sample' or 'row'")
        s, q, row = self.s, self.samples.weight, self.samples.row
        moving = as_mask("free", free, len(s)) & as_mask("free", self.free, len(s))
        if not (q[moving] > 0).any():
            raise PatterningError(
                "no free sample has a base weight, of those that the direction was made for: nothing can move"
            )
        certificate = None
        if policy == "constrained":
            moving, rho, certificate = self._nearest(strength, moving, within, cap, min_ess, per)
            used = strength
        else:
            s = _row_means(s, np.where(moving, q, 0.0), row) if per == "row" else s
            used, rho = strong_enough(s, q, moving, strength, policy, cap, min_ess, within)
        facts: dict[str, Plain] = {
            "what": "; ".join(in_words(name, value) for name, value in self.wanted.items()),
            "target": dict(self.wanted),
            "component_losses": list(self.component_losses),
            "policy": policy,
            "per": per,
            "strength": float(used),
            "asked_strength": float(strength),
        }
        if certificate is not None:
            facts["certificate"] = vars(certificate)
        weights = self._spread(rho, moving, facts, per)
        if policy == "swap":
            weights = self._with_swaps(weights, swaps(s, q, alpha=used, free=moving, within=within))

        def made(s: Floats) -> Floats:
            return strong_enough(s, q, moving, used, cast("PairPolicy", policy), cap, None, within)[1]

        predicted = self._expected(rho, made, moving, used, policy, per)
        facts["effective_sample_size"] = weights.summary().effective_sample_size
        facts["predicted_per_strength"] = {name: vars(change) for name, change in predicted.items()}
        if per == "row" and len(np.unique(self.samples.row)) < len(self.s):
            by_token = self._expected(rho, made, moving, used, policy, "sample")
            facts["by_token_per_strength"] = {name: by_token[name].value for name, sign in self.wanted.items() if sign}
        return replace(weights, facts=facts)

    def _nearest(
        self, strength: float, moving: Bools, within: Any, cap: float | None, min_ess: float | None, per: str
    ) -> tuple[Bools, Floats, Certificate]:
        """What may move, ρ, and the proof that it is nearest to 1. What the direction was not made for stays."""
        check_limits(strength, cap, min_ess)
        kept = self.s[None] if self.kept is None else self.kept
        moving = moving & (kept != 0).any(0)
        if not moving.any():
            raise PatterningError("the direction is the same for every free sample: it cannot change any weight")
        rho, certificate = constrained_weights(
            kept, self.s, self.samples.weight, moving, self.samples.row if per == "row" else None, within,
            what="; ".join(in_words(name, value) for name, value in self.wanted.items()),
            strength=strength, cap=cap, min_ess=min_ess,
        )  # fmt: skip
        return moving, rho, certificate

    def _with_swaps(self, weights: Weights, swapped: Bools) -> Weights:
        if self.data is None or self.data.per_row > 1:
            raise PatterningError("labels are exchanged row by row: the policy swap needs a task with one loss a row")
        whole = np.zeros(self.data.rows, dtype=bool)
        whole[self.samples.row] = swapped
        return replace(weights, swapped=whole)

    def _expected(
        self, rho: Floats, made: Callable[[Floats], Floats], moving: Bools, used: float, policy: str, per: str
    ) -> dict[str, Change]:
        """What these weights do to every row, by linear response, for each unit of the strength `used`.

        They are `made` of s. So that χ is not asked about its own noise, each half of the chains is asked about weights
        that are made in the same way of the direction that the other half gives. Constrained weights, which are not
        made of s alone, are asked about as they are (`rho`).
        """
        q, row = self.samples.weight, self.samples.row
        if not self.folds or not used or policy == "swap":  # an exchange of labels is no weight
            return dict(self.predicted)

        def share(own: Floats) -> Floats:
            """The relative change of each sample's weight, for a unit of strength; rows go as wholes with "row"."""
            own = _row_means(own, q, row) if per == "row" else own
            return (own / (own @ q) - 1) / used

        def carried(s: Floats) -> Floats:
            s = _row_means(s, np.where(moving, q, 0.0), row) if per == "row" else s
            return share(made(s)) if np.ptp(s[moving]) > 0 else np.zeros(len(q))

        if policy == "constrained":
            chains = np.concatenate([fold.response for fold in self.folds])
            changes = changes_of_chains(self.samples.share * (chains * q) @ share(rho))
            return dict(zip(self.predicted, changes, strict=True))
        return _changes(tuple(self.predicted), self.folds, self.samples, carried)

    def needed(self, name: str, change: float) -> float:
        """The strength at which row `name` would move by `change`, by linear response; NaN where it does not move."""
        if name not in self.predicted:
            raise PatterningError(f"χ has no row {name!r}: it has {', '.join(self.predicted)}")
        value = self.predicted[name].value
        return change / value if value else float("nan")

    def _spread(self, rho: Floats, moving: Bools, facts: dict[str, Plain], per: str) -> Weights:
        """ρ of the samples laid out over all rows of the data."""
        data = self.data
        if data is None:
            raise PatterningError("the data is not known here: load the response with its task, load(path, task)")
        whole, free = np.ones((data.rows, data.per_row)), np.zeros((data.rows, data.per_row), dtype=bool)
        whole[self.samples.row, self.samples.position] = rho
        free[self.samples.row, self.samples.position] = moving
        weights = Weights(
            whole if data.per_row > 1 else whole[:, 0], data.ids,
            data.base_weights if data.per_row > 1 else data.base_weights[:, 0],
            free if data.per_row > 1 else free[:, 0], data.fingerprint, facts,
        )  # fmt: skip
        return weights.by_row() if per == "row" else weights


def find_direction(
    rows: Rows,
    samples: Samples,
    data: Data | None,
    n_beta: float,
    wanted: Mapping[str, float],
    hold: Sequence[str],
    *,
    free: Any = None,
    min_reliability: float = MIN_RELIABILITY,
) -> Direction:
    """χ† for the ratios in `wanted` (row → change, in the row's units), with the rows in `hold` held at 0.

    Raises `PatterningError` for names that are no rows and for a target of nothing; a direction that cannot be trusted
    is returned with `refused`.
    """
    target = wished(rows.names, wanted, hold)
    names = list(target)
    picks = [rows.names.index(name) for name in names]
    change, q = np.array(list(target.values())), samples.weight
    change = np.ldexp(change, -np.frexp(np.abs(change).max())[1])  # its ratios alone count, whatever its size
    mask = as_mask("free", free, len(q))
    if not (is_number(min_reliability) and min_reliability < 1):
        raise PatterningError(f"min_reliability is {min_reliability!r}: it must be a number below 1")
    asked = [i for i, value in zip(picks, change, strict=True) if value]
    refused = untrusted(
        {rows.names[i]: rows.reliability[i] for i in asked},
        {rows.names[i]: rows.r_hat[i] for i in picks if rows.r_hat},  # of held rows as well: s is orthogonal to them
        min_reliability,
    )
    zero = {name: Change(0.0, 0.0, 0.0) for name in rows.names}
    try:
        solution = solve(rows.chi[picks], q, change, n_beta, noise=rows.noise[picks], free=mask)
        s = standardise(solution.s, q, mask)
    except PatterningError as error:
        return Direction(np.zeros(len(q)), target, zero, str(error), samples, data)
    folds = _folds(rows, picks, q, change, n_beta, mask)
    predicted = _changes(rows.names, folds, samples, lambda s: s)
    refused = refused or not_held(target, solution.predicted, solution.inverse.spread)
    if samples.share == 0:
        refused = "the probed rows have no base weight: L does not hold them, and weights on them change nothing"
    if refused is None and (wrong := unconfirmed(target, predicted)):
        refused = f"chains that did not choose it do not confirm it: {wrong}; more chains or a larger budget may"
    own = solution.inverse
    theta = own.theta / own.root_mean_square
    kept = np.where(mask, own.basis @ (np.where(mask, rows.chi[picks], 0.0) - own.mean[:, None]), 0.0)
    return Direction(
        s, target, predicted, refused, samples, data, dict(zip(names, theta.tolist(), strict=True)),
        tuple(solution.singular_values.tolist()), solution.noise_floor, solution.rank, folds, kept=kept,
        free=None if free is None else mask,
    )  # fmt: skip


def _folds(rows: Rows, picks: Sequence[int], q: Floats, change: Floats, n_beta: float, mask: Bools) -> tuple[Fold, ...]:
    """Directions chosen on the even and on the odd chains, each with the response of the others."""
    count = len(rows.chains)
    folds = []
    for fit in (np.arange(0, count, 2), np.arange(1, count, 2)):
        rest = np.setdiff1d(np.arange(count), fit)
        if not len(rest):
            continue
        try:
            own = solve(rows.chains[fit].mean(0)[picks], q, change, n_beta, free=mask).s
            s = standardise(own, q, mask)
        except PatterningError:
            s = np.zeros(len(q))
        folds.append(Fold(s, n_beta * rows.chains[rest]))
    return tuple(folds)


def _changes(
    names: Sequence[str], folds: Sequence[Fold], samples: Samples, carried: Callable[[Floats], Floats]
) -> dict[str, Change]:
    """What each row does along `carried(s)` at strength 1, measured on chains that s was not chosen on.

    Samples that were not probed keep their part of the data's weight, and dilute what the others do.
    """
    q = samples.share * samples.weight
    values = [(chain * q) @ carried(fold.s) for fold in folds for chain in fold.response]
    return dict(zip(names, changes_of_chains(np.stack(values)), strict=True))


def _row_means(s: Floats, q: Floats, row: NDArray[np.int64]) -> Floats:
    mass = np.bincount(row, q)
    return (np.bincount(row, q * s) / np.where(mass > 0, mass, 1.0))[row]
