"""Generators against brute-force enumeration, rules against a parser that reads text."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom, chisquare

from patterning.tasks import strings

P_MIN = 1e-3  # a fixed seed: a right law fails here once in a thousand choices of the seed


def every_text(length: int) -> list[str]:
    return ["".join(symbols) for symbols in itertools.product("()", repeat=length)]


def is_balanced(text: str) -> bool:
    stack: list[str] = []
    for symbol in text:
        if symbol == "(":
            stack.append(symbol)
        elif stack:
            stack.pop()
        else:
            return False
    return not stack


def as_steps(texts: list[str]) -> np.ndarray:
    width = max(map(len, texts))
    return np.array(
        [[1 if c == "(" else -1 for c in text] + [0] * (width - len(text)) for text in texts], dtype=np.int8
    )


def uniformity(rows: np.ndarray, support: list[str]) -> float:
    """p-value of `rows` being uniform over `support`; a row outside it fails at once."""
    seen = Counter(strings.render(row) for row in rows)
    assert set(seen) <= set(support)
    return float(chisquare([seen[text] for text in support]).pvalue)


@pytest.mark.parametrize(("length", "catalan"), [(2, 1), (4, 2), (6, 5), (8, 14), (10, 42)])
def test_balanced_strings_are_uniform(length: int, catalan: int) -> None:
    support = [text for text in every_text(length) if is_balanced(text)]
    assert len(support) == catalan
    rows = strings.draw_balanced(np.random.default_rng(length), np.full(20_000, length), 12)
    assert (rows[:, length:] == 0).all()
    if catalan > 1:
        assert uniformity(rows, support) > P_MIN
    else:
        assert strings.render(rows[0]) == "()"


def test_balanced_strings_of_mixed_lengths_are_uniform_given_the_length() -> None:
    lengths = np.tile([4, 8, 6], 10_000)
    rows = strings.draw_balanced(np.random.default_rng(0), lengths, 8)
    np.testing.assert_array_equal(np.count_nonzero(rows, axis=1), lengths)
    for length in (4, 6, 8):
        support = [text for text in every_text(length) if is_balanced(text)]
        assert uniformity(rows[lengths == length], support) > P_MIN


@pytest.mark.parametrize("length", [4, 6])
def test_uniform_strings_are_uniform(length: int) -> None:
    rows = strings.draw_uniform(np.random.default_rng(1), np.full(20_000, length), 8)
    assert (rows[:, length:] == 0).all()
    assert uniformity(rows, every_text(length)) > P_MIN


@pytest.mark.parametrize("length", [4, 6, 8])
def test_permuted_strings_are_uniform_over_equal_counts(length: int) -> None:
    support = [text for text in every_text(length) if text.count("(") == text.count(")")]
    rows = strings.draw_permuted(np.random.default_rng(2), np.full(20_000, length), 10)
    assert (rows[:, length:] == 0).all()
    assert uniformity(rows, support) > P_MIN


@pytest.mark.parametrize("max_length", [6, 12, 40])
def test_lengths_are_two_plus_twice_a_binomial(max_length: int) -> None:
    lengths = strings.draw_lengths(np.random.default_rng(3), 20_000, max_length)
    tries = max_length // 2 - 1
    expected = 20_000 * binom.pmf(np.arange(tries + 1), tries, 0.5)
    seen = np.bincount((lengths - 2) // 2, minlength=tries + 1)
    assert (lengths % 2 == 0).all()
    assert len(seen) == tries + 1
    common = expected >= 5
    cells = np.append(seen[common], seen[~common].sum())
    law = np.append(expected[common], expected[~common].sum())
    keep = law > 0
    assert chisquare(cells[keep], law[keep]).pvalue > P_MIN
    if max_length == 40:
        assert lengths.mean() == pytest.approx(21, abs=4 * lengths.std() / np.sqrt(len(lengths)))


def test_rules_agree_with_a_parser_on_every_string_up_to_length_8() -> None:
    texts = [text for length in range(1, 9) for text in every_text(length)]
    steps = as_steps(texts)
    lowest = [min(itertools.accumulate(1 if c == "(" else -1 for c in text)) for text in texts]
    np.testing.assert_array_equal(strings.is_nested(steps), [is_balanced(t) for t in texts])
    np.testing.assert_array_equal(strings.is_equal_count(steps), [t.count("(") == t.count(")") for t in texts])
    np.testing.assert_array_equal(strings.is_first_symbol(steps), [t.startswith("(") for t in texts])
    np.testing.assert_array_equal(strings.dips(steps), [depth < 0 for depth in lowest])
    assert [strings.render(row) for row in steps] == texts
