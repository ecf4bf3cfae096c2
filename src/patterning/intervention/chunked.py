r"""Inversion of χ that does not fit in memory: chunks of samples go by twice, and s is written as they go.

The first time they leave the triangular factors of χ and of its noise (`intervention.factor`), from which the solution
follows in the coordinates of the k rows, θ. The second time each chunk gives its samples' s = θ (χ - mean). Memory: one
chunk and its reader. Where chunks hold χ of each chain, the change that weights make is estimated on chains that took
no part in choosing them, as `intervention.direction` does: for that, k × k products of chains are summed as well.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from patterning.core.arrays import Bools, Floats, as_mask
from patterning.core.errors import PatterningError
from patterning.intervention.change import Change, changes_of_chains
from patterning.intervention.factor import Factor, Inverse, invert_factor
from patterning.intervention.solve import add_checked, check_wish


class Chunk(NamedTuple):
    """m samples: `chi` (k, m), `noise` (k, m) as for `solve` (None: nothing is cut), base weights `q` (m,).

    q need not sum to 1. `free` (m,) bool: which may move (None: all). `chains` (c, k, m): χ of each chain, if known.
    """

    chi: Any
    noise: Any
    q: Any
    free: Any = None
    chains: Any = None


Chunks = Callable[[], Iterable[Any]]
"""Gives the chunks (`Chunk`, or tuples of its first fields) from the beginning, in the same order at every call."""


@dataclass(frozen=True)
class ChunkedSolution:
    """`inverse`: the solution in the coordinates of the rows. `total`: Σ q of all samples, `samples`: how many.

    `changes` (k,): what each row does for each unit of strength (s with root mean square 1), by chains that did not
    choose s, with 95 % intervals; empty where the chunks hold no chains.
    """

    inverse: Inverse
    total: float
    samples: int
    changes: tuple[Change, ...] = ()

    def scores(self, chunks: Chunks) -> Iterator[Floats]:
        """s (m,) of each chunk, with root mean square 1 under q over the free samples; 0 where q is 0 or not free."""
        for part in chunks():
            chunk = _checked(Chunk(*part), len(self.inverse.theta))
            s, place = np.empty(len(chunk.q)), chunk.free & (chunk.q > 0)
            for block, own in self.inverse.blocks(chunk.chi, place):
                s[block] = own
            del part, chunk  # else two chunks are held while the next is read
            yield s / self.inverse.root_mean_square


def invert_chunks(chunks: Chunks, target: Any, n_beta: float) -> ChunkedSolution:
    """The fundamental equation for `target` dμ (k,), as `solve` gives it, from chunks that go by once.

    Against the singular value decomposition of all of χ, s differs by rounding: 1e-14 or less of its largest entry,
    times the condition number of what is kept, times |mean| / spread of a row where that is above 1.
    Raises `PatterningError` as `solve` does.
    """
    wanted = np.asarray(target, dtype=np.float64)
    sums = _Sums(len(wanted))
    check_wish(wanted, len(wanted), n_beta)
    for part in chunks():
        sums.add(_checked(Chunk(*part), len(wanted)))
        del part
    if not sums.samples:
        raise PatterningError("there is no chunk: chunks() must give them from the beginning at every call")
    if not sums.chi.weight > 0:
        raise PatterningError("no free sample has a base weight: nothing can move")
    noise = sums.noise if sums.noise.samples else None
    inverse = invert_factor(sums.chi, wanted, n_beta, sums.total, noise)
    return ChunkedSolution(inverse, sums.total, sums.samples, sums.changes(wanted, n_beta))


class _Sums:
    """What the first pass leaves."""

    def __init__(self, rows: int) -> None:
        self.rows, self.total, self.samples = rows, 0.0, 0
        self.chi, self.noise = Factor(rows), Factor(rows)
        self.halves = (Factor(rows), Factor(rows))
        self.products, self.means = np.zeros((0, rows, rows)), np.zeros((0, rows))

    def add(self, chunk: Chunk) -> None:
        """One chunk, checked."""
        q = np.where(chunk.free, chunk.q, 0.0)
        why = "holds NaN or infinite entries: a chain diverged"
        add_checked(self.chi, chunk.chi, q, chunk.free, f"χ {why} or an observable is undefined")
        if self.samples and (chunk.noise is None) != (self.noise.samples == 0):
            raise PatterningError("some chunks hold noise and some do not: give it for all samples or for none")
        if chunk.noise is not None:
            add_checked(self.noise, chunk.noise, q, chunk.free, f"the noise of χ {why}")
        self.total += float(chunk.q.sum())
        self.samples += len(q)
        if chunk.chains is not None:
            self._add_chains(chunk.chains, q, chunk.free)

    def _add_chains(self, chains: Floats, q: Floats, free: Bools) -> None:
        """Factors of the even and the odd chains' means; products of each chain with the half it is not in."""
        known = chains if free.all() else np.where(free, chains, 0.0)
        if not len(self.products):
            self.products = np.zeros((len(chains), self.rows, self.rows))
            self.means = np.zeros((len(chains), self.rows))
        for half, factor in enumerate(self.halves):
            fit = known[half::2].mean(0)
            add_checked(factor, fit, q, free, "χ of a chain holds NaN or infinite entries")
            weighted = fit * q
            for c in range(1 - half, len(chains), 2):
                self.products[c] += weighted @ known[c].T
        self.means += known @ q

    def changes(self, target: Floats, n_beta: float) -> tuple[Change, ...]:
        """As `direction.find_direction` estimates them."""
        if len(self.products) < 2:
            return ()
        table = np.zeros((len(self.products), self.rows))
        for half, factor in enumerate(self.halves):
            try:
                own = invert_factor(factor, target, n_beta, self.total)
            except PatterningError:
                continue
            theta = own.theta / own.root_mean_square
            for c in range(1 - half, len(table), 2):
                table[c] = theta @ (self.products[c] - np.outer(own.mean, self.means[c])) * n_beta / self.total
        return tuple(changes_of_chains(table))


def _checked(chunk: Chunk, rows: int) -> Chunk:
    """A chunk of float64 arrays that fit together, without a copy of what is float64 already."""
    chi, q = (np.asarray(part, dtype=np.float64) for part in (chunk.chi, chunk.q))
    noise, chains = (None if x is None else np.asarray(x, dtype=np.float64) for x in (chunk.noise, chunk.chains))
    if q.ndim != 1 or not (np.isfinite(q).all() and (q >= 0).all()):
        raise PatterningError(f"base weights of a chunk must be numbers >= 0, one a sample (got shape {q.shape})")
    shape = (rows, len(q))
    if chi.shape != shape or (noise is not None and noise.shape != shape):
        other = "" if noise is None else f" and noise {noise.shape}"
        raise PatterningError(f"a chunk has χ {chi.shape}{other}: for {rows} rows and {len(q)} samples it is {shape}")
    if chains is not None and (chains.ndim != 3 or chains.shape[1:] != shape):
        raise PatterningError(f"χ by chain of a chunk has shape {chains.shape}: it must be (chains, {rows}, {len(q)})")
    return Chunk(chi, noise, q, as_mask("free", chunk.free, len(q)), chains)
