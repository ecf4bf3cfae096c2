"""Rows of equal length cut from a split, mixed by stated shares of the domains."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patterning.core.errors import PatterningError
from patterning.core.rng import Stream, generator
from patterning.tasks.text.corpus import Split

FEW_DOCUMENTS = 5
"""So many have few orders to be joined in: later passes over them start at another token as well."""


@dataclass(frozen=True)
class Rows:
    """`tokens` int64 (n, context); `domains` uint8 (n,); `documents` int64 (n,): of the row's first token."""

    tokens: NDArray[np.int64]
    domains: NDArray[np.uint8]
    documents: NDArray[np.int64]

    def __repr__(self) -> str:
        """How many rows of how many tokens."""
        return f"Rows({len(self.tokens):,} rows of {self.tokens.shape[1]} tokens)"


def mixed_rows(
    split: Split,
    context: int,
    shares: Mapping[str, float],
    rows: int,
    seed: int,
    domain_names: Sequence[str],
    repeat: bool = False,
) -> Rows:
    """`rows` rows of `context` tokens, shuffled, with the stated share of each domain (rounded to whole rows).

    A domain's documents are put in a random order and joined, and the stream is cut into rows without overlap. A row
    may hold the end of one document and the start of the next (a separator stands between); the rest of less than one
    row is left out. Of these rows a random part is taken. When a domain has too few, that is a `PatterningError`
    that says how many there are, unless `repeat`: then its documents are joined again in another order (fewer than 5
    of them from another token on), as often as needed. Shares are relative; a domain that is not named has share 0.
    """
    counts = _counts(context, shares, rows, domain_names)
    pieces = []
    for number, (name, count) in enumerate(zip(domain_names, counts, strict=True)):
        left, turn = count, 0
        while left > 0:
            rng = generator(seed, Stream.DATA, replica=number, step=turn)
            piece = _one_pass(split, number, context, rng, turn)
            available = len(piece.tokens)
            if available == 0 or (left > available and not repeat):
                raise PatterningError(
                    f"the domain {name!r} has {available} rows of {context} tokens, {count} were asked for: "
                    "ask for fewer rows or a smaller share, use a larger corpus, or allow repeats"
                )
            pieces.append(Rows(piece.tokens[:left], piece.domains[:left], piece.documents[:left]))
            left, turn = left - available, turn + 1
    order = generator(seed, Stream.DATA, replica=len(domain_names)).permutation(rows)
    return Rows(
        *(np.concatenate([getattr(p, key) for p in pieces])[order] for key in ("tokens", "domains", "documents"))
    )


def _counts(context: int, shares: Mapping[str, float], rows: int, names: Sequence[str]) -> list[int]:
    """Whole rows by domain that sum to `rows`: floors, then one more where the remainder is largest."""
    if context < 2 or rows < 1:
        raise PatterningError(
            f"context {context} and rows {rows}: a row needs two tokens at least, and there must be one"
        )
    if unknown := sorted(set(shares) - set(names)):
        raise PatterningError(f"unknown domain {', '.join(unknown)}: the corpus has {', '.join(names)}")
    share = np.array([shares.get(name, 0.0) for name in names])
    if not (np.isfinite(share).all() and (share >= 0).all() and share.sum() > 0):
        raise PatterningError(f"shares {dict(shares)}: they must be non-negative, finite and not all zero")
    exact = rows * share / share.sum()
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: rows - counts.sum()]:
        counts[index] += 1
    return counts.tolist()


def _one_pass(split: Split, domain: int, context: int, rng: np.random.Generator, turn: int) -> Rows:
    """All rows of a domain, in random order; in another `turn` they are cut elsewhere."""
    order = rng.permutation(np.flatnonzero(split.domains == domain))
    lengths = np.diff(split.starts)[order]
    total = int(lengths.sum())
    count = total // context
    if count == 0:
        empty = np.zeros(0, dtype=np.int64)
        return Rows(np.zeros((0, context), dtype=np.int64), empty.astype(np.uint8), empty)
    stream = np.concatenate([split.tokens[split.starts[i] : split.starts[i + 1]] for i in order])
    chosen = rng.permutation(count)
    first = turn * _stride(context) % total if len(order) < FEW_DOCUMENTS else 0
    owner = np.searchsorted(np.cumsum(lengths), (first + np.arange(count) * context) % total, side="right")
    tokens = np.roll(stream, -first)[: count * context].reshape(count, context)[chosen].astype(np.int64)
    return Rows(tokens, np.full(count, domain, dtype=np.uint8), order[owner[chosen]])


def _stride(context: int) -> int:
    """Tokens whose multiples fall on every place of a row, far apart at first: about the golden section of it."""
    return next(step for step in range(max(1, round(0.618 * context)), 2 * context) if math.gcd(step, context) == 1)
