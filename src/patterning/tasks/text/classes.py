"""Classes of tokens: what kind of prediction a sample is (definitions with examples in docs/data.md).

A label belongs to the predicted token y_t = tokens[:, t + 1], so every array is (n, t - 1). The classes of form exclude
each other, but that a word end is also a word part; "induction" cuts across them.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tokenizers import Tokenizer

from patterning.core.errors import PatterningError
from patterning.tasks.text.tokenizer import token_bytes

CLASSES = ("word start", "word part", "word end", "induction", "spacing", "delimiter", "numeric", "formatting")
DELIMITERS = frozenset("()[]{}<>'\"`“”‘’«»,;:.!?")

Labels = NDArray[np.bool_]


class _Kind(IntEnum):
    """What a token is by itself; whitespace in front is allowed where the name does not say otherwise."""

    OTHER = 0  # the separator, bytes that are no whole character, mixtures
    SPACED_LETTERS = 1  # whitespace, then letters
    LETTERS = 2  # letters from the first character on
    CONTRACTION = 3  # an apostrophe, then letters
    SPACING = 4  # whitespace only
    NUMERIC = 5
    DELIMITER = 6  # only signs of DELIMITERS
    FORMATTING = 7  # other signs, at least one


def token_classes(tokens: ArrayLike, tokenizer: Tokenizer) -> dict[str, Labels]:
    """Labels of the predicted tokens tokens[:, 1:], each bool (n, t - 1), by the names of `CLASSES`.

    `tokens` is (n, t) integer. The first token is no prediction but is looked at as context. Raises `PatterningError`
    when it is not a matrix or an id is outside of the vocabulary.
    """
    table = np.array([_kind(item) for item in token_bytes(tokenizer)], dtype=np.uint8)
    rows = np.asarray(tokens)
    if rows.ndim != 2 or rows.shape[1] < 2 or rows.dtype.kind not in "iu":
        raise PatterningError(f"token classes need rows of two or more integer ids: got {rows.dtype} {rows.shape}")
    if rows.size and not (rows.min() >= 0 and rows.max() < len(table)):
        raise PatterningError(f"token ids from {rows.min()} to {rows.max()}: the vocabulary has 0 to {len(table) - 1}")
    kinds = table[rows]
    before, kind = kinds[:, :-1], kinds[:, 1:]
    after_letter = np.isin(before, (_Kind.SPACED_LETTERS, _Kind.LETTERS, _Kind.CONTRACTION))
    part = after_letter & np.isin(kind, (_Kind.LETTERS, _Kind.CONTRACTION))
    last = np.zeros_like(part)  # what follows the last token of a row is not known: no word end there
    last[:, :-1] = ~part[:, 1:]
    return {
        "word start": (kind == _Kind.SPACED_LETTERS) | ((kind == _Kind.LETTERS) & ~after_letter),
        "word part": part,
        "word end": part & last,
        "induction": induction_labels(rows),
        "spacing": kind == _Kind.SPACING,
        "delimiter": kind == _Kind.DELIMITER,
        "numeric": kind == _Kind.NUMERIC,
        "formatting": kind == _Kind.FORMATTING,
    }


def induction_labels(tokens: NDArray[np.integer]) -> Labels:
    """Whether the pair (tokens[t], tokens[t + 1]) stands earlier in the row: (n, t) → bool (n, t - 1).

    True at t where some s < t has tokens[s] = tokens[t] and tokens[s + 1] = tokens[t + 1]: any earlier occurrence, also
    in a document before a separator, also overlapping (s + 1 = t).
    """
    rows = tokens.astype(np.int64)
    pairs = rows[:, :-1] * (int(rows.max(initial=0)) + 1) + rows[:, 1:]
    order = np.argsort(pairs, axis=1, kind="stable")  # equal pairs become neighbours, the earliest first
    ordered = np.take_along_axis(pairs, order, axis=1)
    repeated = np.zeros(pairs.shape, dtype=np.bool_)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    labels = np.empty_like(repeated)
    np.put_along_axis(labels, order, repeated, axis=1)
    return labels


def _kind(token: bytes) -> _Kind:
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return _Kind.OTHER
    core = text.lstrip()
    tests = (
        (text.isalpha(), _Kind.LETTERS),
        (core.isalpha(), _Kind.SPACED_LETTERS),
        (text[:1] == "'" and text[1:].isalpha(), _Kind.CONTRACTION),
        (text.isspace(), _Kind.SPACING),
        (core.isnumeric(), _Kind.NUMERIC),
        (not core or any(c.isalnum() or c.isspace() for c in core), _Kind.OTHER),
        (DELIMITERS.issuperset(core), _Kind.DELIMITER),
    )
    return next((kind for holds, kind in tests if holds), _Kind.FORMATTING)
