r"""Modes of the susceptibility matrix: which components move together, on which samples ([SI] §3).

Rows are standardised over samples, the mean over components is taken from each column (the uniform mode), then

.. math:: \chi = \sum_a \sigma_a u_a v_a^T

with loadings u_a on components and scores v_a on samples. Scores have mean square 1 over samples, so that σ_a does not
depend on n and :math:`\sum_a \sigma_a^2` is the total variance.

Which way is "more induction"? A mode is turned so that induction tokens score positive. χ_j(φ_C) < 0 means that weight
on token j lowers ⟨φ_C⟩: around w* the loss rises less when chains move component C, and ℓ_j rises with L, so C serves
token j (in the words of Baker et al., C expresses j). Induction heads are expected to express induction tokens:
χ < 0 there, so with positive scores their loadings should be **negative** (below the mean of all components, as the
uniform mode is gone). `ModeChoice.direction` is +score: weight onto induction tokens, and by the response equation onto
tokens of negative χ on the heads with negative loadings: by this reading "more induction", and -direction less. Whether
training agrees is for retraining to decide. `expressed` is False where the loadings have the other sign: then the
two readings of "more" point in opposite directions, which a report must say.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from patterning.core.arrays import as_floats, ranks
from patterning.core.errors import PatterningError, check_whole
from patterning.core.rng import Stream, generator

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Transform = Literal["none", "rank"]


@dataclass(frozen=True)
class Modes:
    """Modes by falling singular value; m = k - 1 with the uniform mode removed, else k.

    `loadings` (k, m), columns of norm 1; `scores` (m, n), mean 0 and mean square 1; the largest |loading| of a mode is
    positive (the sign of a mode means nothing by itself). `singular_values`, `shares` of variance (m,). `noise_floor`:
    the largest singular value of the Monte Carlo error; `permutation_floor` (m,): the 95 % point of each singular value
    when every component keeps its χ but on shuffled samples. `stability_loadings`, `stability_scores` (m,): |cosine|
    between the matching modes of the two halves, each from half of the chains; `stability_subspace` (m,): mean cos² of
    the angles between the halves' spaces of the first 1..m loadings, which stays near 1 up to a pair of modes that
    rotate into each other because their singular values are near. NaN without halves.
    """

    components: tuple[str, ...]
    loadings: Floats
    scores: Floats
    singular_values: Floats
    shares: Floats
    noise_floor: float
    permutation_floor: Floats
    stability_loadings: Floats
    stability_scores: Floats
    stability_subspace: Floats

    @property
    def above_noise(self) -> Bools:
        """(m,): modes over the noise floor.

        It is one draw of the noise: a mode just over it may be noise as well, with `stability_scores` near 0.
        """
        return self.singular_values > self.noise_floor


def find_modes(
    chi: Floats,
    halves: Floats | None,
    components: Sequence[str],
    noise: Floats | None = None,
    *,
    uniform: bool = False,
    transform: Transform = "none",
    permutations: int = 20,
    seed: int = 0,
) -> Modes:
    """Modes of `chi` (k, n) of `components`, with the noise from two independent `halves` (2, k, n) of the chains.

    `noise` (k, n) is an error sample of χ and replaces half the difference of the halves. `uniform` keeps the uniform
    mode. `transform` "rank" turns each row into Gaussian scores of its ranks first (the halves through the same
    monotone map): χ is heavy-tailed, and a few samples would otherwise make the modes. Raises `PatterningError` for
    shapes that do not fit, NaN, a constant row, or when neither halves nor noise are given.
    """
    chi = as_floats("χ", chi, 2)
    halves = None if halves is None else as_floats("halves", halves)
    noise = None if noise is None else as_floats("noise", noise)
    k, n = chi.shape
    if len(components) != k or k < 2 or n < 3:
        raise PatterningError(f"χ is {chi.shape} for {len(components)} components: modes need 2 of them and 3 samples")
    if len(set(components)) < k:
        raise PatterningError(f"components must be named once each (got {', '.join(components)})")
    check_whole("permutations", permutations, 0)
    if halves is None and noise is None:
        raise PatterningError("modes need the two halves of the chains, or a noise sample: without, no floor is known")
    if transform not in get_args(Transform):
        raise PatterningError(f"transform {transform!r} is not one of {', '.join(get_args(Transform))}")
    for name, matrix, shape in (("halves", halves, (2, k, n)), ("noise", noise, (k, n))):
        if matrix is not None and matrix.shape != shape:
            raise PatterningError(f"{name} has shape {matrix.shape}: it must be {shape}")
    if not all(np.isfinite(matrix).all() for matrix in (chi, halves, noise) if matrix is not None):
        raise PatterningError("χ, its halves or its noise hold NaN or infinite entries: a chain diverged")
    if flat := [name for name, row in zip(components, chi, strict=True) if np.ptp(row) == 0]:
        raise PatterningError(f"χ of {', '.join(flat)} is the same for every sample: leave it out")
    if transform == "rank":
        noise = None if noise is None else (_throughranks(chi, chi + noise) - _throughranks(chi, chi - noise)) / 2
        halves = None if halves is None else np.stack([_throughranks(chi, half) for half in halves])
        chi = _throughranks(chi, chi)
    spread = chi.std(axis=1, keepdims=True)

    def prepare(matrix: Floats) -> Floats:
        rows = (matrix - matrix.mean(1, keepdims=True)) / (spread * np.sqrt(n))
        return rows if uniform else rows - rows.mean(0)

    prepared = prepare(chi)
    m = min(k if uniform else k - 1, n - 1)
    u, singular, v = _svd(prepared, m)
    stability = [np.full(m, np.nan)] * 3
    if halves is not None:
        stability = _stability(u, v, [_svd(prepare(half), m) for half in halves])
        noise = (halves[0] - halves[1]) / 2 if noise is None else noise
    assert noise is not None
    return Modes(
        components=tuple(components),
        loadings=u,
        scores=v * np.sqrt(n),
        singular_values=singular,
        shares=singular**2 / (prepared**2).sum(),
        noise_floor=float(_singular_values(prepare(noise))[0]),
        permutation_floor=_permutation_floor(chi, prepare, m, permutations, seed),
        stability_loadings=stability[0],
        stability_scores=stability[1],
        stability_subspace=stability[2],
    )


def _throughranks(chi: Floats, values: Floats) -> Floats:
    """`values` (k, n) through the monotone map that turns each row of `chi` into Gaussian scores."""
    mapped = []
    for row, value in zip(chi, values, strict=True):
        scores = ndtri((ranks(row) - 0.5) / len(row))
        known, first = np.unique(row, return_index=True)
        mapped.append(np.interp(value, known, scores[first]))
    return np.stack(mapped)


def _svd(matrix: Floats, m: int) -> tuple[Floats, Floats, Floats]:
    """The first m modes, with the largest |loading| of each positive."""
    u, singular, v = np.linalg.svd(matrix, full_matrices=False)
    sign = np.sign(u[np.abs(u).argmax(0), np.arange(u.shape[1])])
    return (u * sign)[:, :m], singular[:m], (v * sign[:, None])[:m]


def _singular_values(matrix: Floats) -> Floats:
    """By the Gram matrix of the few rows: exact enough for a floor, and quick for millions of samples."""
    return np.sqrt(np.maximum(np.linalg.eigvalsh(matrix @ matrix.T)[::-1], 0))


def _permutation_floor(
    chi: Floats, prepare: Callable[[Floats], Floats], m: int, permutations: int, seed: int
) -> Floats:
    if not permutations:
        return np.full(m, np.nan)
    rng = generator(seed, Stream.CONTROL)
    found = [_singular_values(prepare(rng.permuted(chi, axis=1)))[:m] for _ in range(permutations)]
    return np.quantile(found, 0.95, axis=0)


def _stability(u: Floats, v: Floats, halves: list[tuple[Floats, Floats, Floats]]) -> list[Floats]:
    """|cosine| of loadings and of scores between the halves' modes that match each mode, and of subspaces."""
    from scipy.optimize import linear_sum_assignment

    places = []
    for u_half, _, v_half in halves:
        likeness = np.abs(u.T @ u_half) * np.abs(v @ v_half.T)
        places.append(linear_sum_assignment(likeness, maximize=True)[1])
    (ua, _, va), (ub, _, vb) = halves
    cosines = ua.T @ ub
    spans = [float((cosines[:a, :a] ** 2).sum() / a) for a in range(1, len(cosines) + 1)]
    return [
        np.abs((ua[:, places[0]] * ub[:, places[1]]).sum(0)),
        np.abs((va[places[0]] * vb[places[1]]).sum(1)),
        np.array(spans),
    ]


@dataclass(frozen=True)
class Candidate:
    """One mode seen from both sides, with its sign as in `Modes` (before orientation).

    `loading_correlation`: Pearson, of its loadings with the heads' prefix-matching scores. `difference`: mean score of
    induction tokens minus mean of the others, in standard deviations of the score; `enrichment`: the same in standard
    errors, clustered by row; `auc`: the chance that an induction token scores above another one.
    """

    index: int
    share: float
    above_noise: bool
    loading_correlation: float
    difference: float
    enrichment: float
    auc: float


@dataclass(frozen=True)
class ModeChoice:
    """The chosen mode; multiplied by `sign`, its scores are higher on induction tokens.

    `loading_agreement` (with prefix matching, expected negative: see the top) and `enrichment` (positive) are
    those of the turned mode. `agrees`: both signs pick this mode among those above the noise; where not, `index` has
    the best sum of the two ranks, the enrichment deciding ties. `candidates`: all modes.
    """

    index: int
    sign: float
    loading_agreement: float
    enrichment: float
    agrees: bool
    above_noise: bool
    candidates: tuple[Candidate, ...]

    @property
    def expressed(self) -> bool:
        """Whether heads that match prefixes have the lower χ on induction tokens."""
        return self.loading_agreement < 0

    def direction(self, modes: Modes) -> Floats:
        """s (n,) towards "more induction" (see the top): mean 0, mean square 1."""
        return self.sign * modes.scores[self.index]

    def loadings(self, modes: Modes) -> Floats:
        """Loadings (k,) of the turned mode."""
        return self.sign * modes.loadings[:, self.index]


def induction_mode(
    modes: Modes,
    prefix_matching: Mapping[str, float],
    induction: Bools,
    rows: NDArray[np.int64] | None = None,
) -> ModeChoice:
    """The induction mode among those above the noise (all of them where none is: `above_noise` then is False).

    `prefix_matching`: component name → score; components without one (embed, unembed) are left out of the
    correlation. `induction` (n,) labels the samples, `rows` (n,) says which samples share a text (None: none do).
    Raises `PatterningError` with fewer than 3 scored components, equal scores, or labels all alike.
    """
    induction = np.asarray(induction, dtype=bool)
    if induction.shape != (modes.scores.shape[1],):
        raise PatterningError(f"{induction.shape} induction labels for {modes.scores.shape[1]} samples")
    if induction.all() or not induction.any():
        raise PatterningError("the induction labels are all alike: no mode can be told by them")
    if rows is not None and rows.shape != induction.shape:
        raise PatterningError(f"{rows.shape} row numbers for {len(induction)} samples")
    scored = [i for i, name in enumerate(modes.components) if name in prefix_matching]
    known = np.array([prefix_matching[modes.components[i]] for i in scored], dtype=np.float64)
    if len(scored) < 3 or not np.isfinite(known).all() or np.ptp(known) == 0:
        raise PatterningError(
            f"prefix-matching scores are known of {len(scored)} of the components ({', '.join(modes.components)}): "
            "the induction mode needs 3 or more finite ones that differ"
        )
    candidates = []
    for a, (score, above) in enumerate(zip(modes.scores, modes.above_noise, strict=True)):
        difference, error = _clustered_difference(score, induction, rows)
        candidates.append(
            Candidate(
                index=a,
                share=float(modes.shares[a]),
                above_noise=bool(above),
                loading_correlation=_correlation(modes.loadings[scored, a], known),
                difference=difference,
                enrichment=difference / error,
                auc=_auc(score, induction),
            )
        )
    pool = [c for c in candidates if c.above_noise] or candidates
    loading_rank = ranks([-abs(c.loading_correlation) for c in pool])
    score_rank = ranks([-abs(c.enrichment) for c in pool])
    best = int(np.lexsort((score_rank, loading_rank + score_rank))[0])
    chosen = pool[best]
    sign = 1.0 if chosen.enrichment >= 0 else -1.0
    return ModeChoice(
        index=chosen.index,
        sign=sign,
        loading_agreement=sign * chosen.loading_correlation,
        enrichment=sign * chosen.enrichment,
        agrees=bool(loading_rank[best] == 1 and score_rank[best] == 1),
        above_noise=chosen.above_noise,
        candidates=tuple(candidates),
    )


def _correlation(a: Floats, b: Floats) -> float:
    """Pearson; 0 where the loadings do not differ."""
    return 0.0 if np.ptp(a) == 0 else float(np.corrcoef(a, b)[0, 1])


def _clustered_difference(score: Floats, label: Bools, rows: NDArray[np.int64] | None) -> tuple[float, float]:
    """Difference of the two means and its standard error, with samples of a row as one unit (cluster-robust)."""
    inside, outside = score[label].mean(), score[~label].mean()
    influence = np.where(label, (score - inside) / label.sum(), -(score - outside) / (~label).sum())
    if rows is not None:
        _, place = np.unique(rows, return_inverse=True)
        influence = np.bincount(place, influence)
    units = len(influence)
    error = np.sqrt((influence**2).sum() * units / max(units - 1, 1))
    return float(inside - outside), float(max(error, np.finfo(np.float64).tiny))


def _auc(score: Floats, label: Bools) -> float:
    """Area under the ROC curve, ties counted half."""
    inside = int(label.sum())
    return float((ranks(score)[label].sum() - inside * (inside + 1) / 2) / (inside * (len(label) - inside)))
