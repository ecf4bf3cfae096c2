"""Parentheses strings: generators, labels and the rules a model may learn (Li et al., arXiv 2507.06445).

Strings are held as arrays of steps `+1` for "(" and `-1` for ")", one row a string, zero-padded on the right.
"""

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.int8]
Lengths = NDArray[np.int64]


def depths(steps: Steps) -> NDArray[np.int64]:
    """Running depth (openings minus closings so far) after each symbol, shape (n, length); constant over padding."""
    return np.cumsum(steps, axis=1, dtype=np.int64)


def is_equal_count(steps: Steps) -> NDArray[np.bool_]:
    """Rule EQUAL-COUNT: as many "(" as ")"; shape (n,)."""
    return steps.sum(axis=1, dtype=np.int64) == 0


def dips(steps: Steps) -> NDArray[np.bool_]:
    """True where the running depth falls below zero somewhere; shape (n,)."""
    return depths(steps).min(axis=1, initial=0) < 0


def is_nested(steps: Steps) -> NDArray[np.bool_]:
    """Rule NESTED: balanced, that is equal counts and never below zero; shape (n,)."""
    return is_equal_count(steps) & ~dips(steps)


def is_first_symbol(steps: Steps) -> NDArray[np.bool_]:
    """Rule FIRST-SYMBOL: the string starts with "("; shape (n,)."""
    return steps[:, 0] == 1


RULES = {"nested": is_nested, "equal_count": is_equal_count, "first_symbol": is_first_symbol}


def draw_lengths(rng: np.random.Generator, count: int, max_length: int) -> Lengths:
    """Even lengths 2 + 2 Binomial(max_length/2 - 1, 1/2); at max_length 40 the paper's law, with mean 21."""
    return 2 + 2 * rng.binomial(max_length // 2 - 1, 0.5, size=count).astype(np.int64)


def draw_balanced(rng: np.random.Generator, lengths: Lengths, max_length: int) -> Steps:
    """Uniformly random balanced strings of the given lengths, shape (n, max_length).

    At depth r with k symbols left the string closes with probability r (k + r + 2) / (2 k (r + 1)), the ballot-number
    ratio that makes every balanced string of a length equally likely (Li et al., arXiv 2507.06445).
    """
    steps = np.zeros((len(lengths), max_length), dtype=np.int8)
    depth = np.zeros(len(lengths), dtype=np.int64)
    for position in range(max_length):
        left = lengths - position
        alive = left > 0
        k = np.where(alive, left, 1)
        close = rng.random(len(lengths)) < depth * (k + depth + 2) / (2 * k * (depth + 1))
        step = np.where(close, -1, 1) * alive
        steps[:, position] = step
        depth += step
    return steps


def draw_uniform(rng: np.random.Generator, lengths: Lengths, max_length: int) -> Steps:
    """Independent uniform symbols, shape (n, max_length)."""
    signs = rng.integers(0, 2, size=(len(lengths), max_length), dtype=np.int8) * 2 - 1
    return (signs * (np.arange(max_length) < lengths[:, None])).astype(np.int8)


def draw_permuted(rng: np.random.Generator, lengths: Lengths, max_length: int) -> Steps:
    """Random permutations of equally many "(" and ")", shape (n, max_length)."""
    inside = np.arange(max_length) < lengths[:, None]
    order = np.argsort(np.where(inside, rng.random((len(lengths), max_length)), 2.0), axis=1, kind="stable")
    signs = np.where(np.arange(max_length) < lengths[:, None] // 2, 1, -1)
    steps = np.zeros((len(lengths), max_length), dtype=np.int8)
    np.put_along_axis(steps, order, (signs * inside).astype(np.int8), axis=1)
    return steps


def render(row: Steps) -> str:
    """One row as text."""
    return "".join("(" if s > 0 else ")" for s in row if s)
