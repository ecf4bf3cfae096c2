"""Token classes: against definitions written out token by token, and on text read by eye."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from patterning.core.errors import PatterningError
from patterning.tasks.text import CLASSES, token_classes
from patterning.tasks.text.tokenizer import encode, token_bytes, train_tokenizer

TEXT = 'def naïve_sum(values):\n    """It\'s a sum, see ``sum``."""\n    return sum(values[1:20]) != 0.5 -- “done”\n\n'


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT * 3 + "the sums of the values, don't return; it's naïve\n"], 300)


def literal(row: list[int], tokens: list[bytes]) -> dict[str, list[bool]]:
    """The definitions of docs/data.md, one prediction at a time."""
    text = [item.decode("utf-8", "replace") for item in tokens]
    out: dict[str, list[bool]] = {name: [] for name in CLASSES}

    def letters(i: int) -> bool:
        return text[row[i]].lstrip().isalpha()

    def contraction(i: int) -> bool:
        return text[row[i]].startswith("'") and text[row[i]][1:].isalpha()

    def continues(i: int) -> bool:
        starts = (letters(i) and text[row[i]][0].isalpha()) or contraction(i)
        return starts and (letters(i - 1) or contraction(i - 1))

    for t in range(len(row) - 1):
        y = text[row[t + 1]]
        sign = y.strip() != "" and not any(c.isalnum() or c.isspace() or c == "\ufffd" for c in y.lstrip())
        apart = sign and all(c in "()[]{}<>'\"`“”‘’«»,;:.!?" for c in y.lstrip())
        out["word start"].append(letters(t + 1) and not continues(t + 1))
        out["word part"].append(continues(t + 1))
        out["word end"].append(continues(t + 1) and t + 2 < len(row) and not continues(t + 2))
        out["spacing"].append(y != "" and y.strip() == "")
        out["numeric"].append(y.lstrip().isnumeric())
        out["delimiter"].append(apart)
        out["formatting"].append(sign and not apart)
        out["induction"].append(any(row[s] == row[t] and row[s + 1] == row[t + 1] for s in range(t)))
    return out


@given(st.lists(st.lists(st.integers(0, 299), min_size=7, max_size=7), min_size=1, max_size=5), st.booleans())
def test_against_the_literal_definitions(tokenizer: Tokenizer, rows: list[list[int]], few: bool) -> None:
    tokens = np.array(rows) % (4 if few else 300) + (76 if few else 0)  # few ids: repeats
    tokens = np.minimum(tokens, 299)
    found = token_classes(tokens, tokenizer)
    assert tuple(found) == CLASSES
    table = token_bytes(tokenizer)
    for number, row in enumerate(tokens.tolist()):
        for name, labels in literal(row, table).items():
            assert found[name][number].tolist() == labels, name


def test_real_text_against_the_literal_definitions(tokenizer: Tokenizer) -> None:
    (ids,) = encode([TEXT * 2], tokenizer)
    found = token_classes(ids[None], tokenizer)
    for name, labels in literal(ids.tolist(), token_bytes(tokenizer)).items():
        assert found[name][0].tolist() == labels, name
        assert any(labels), name
    forms = sum(found[name].astype(int) for name in CLASSES if name not in ("word end", "induction"))
    assert forms.max() == 1
    assert not (found["word end"] & ~found["word part"]).any()


def test_examples_read_by_eye(tokenizer: Tokenizer) -> None:
    ids = {item: number for number, item in enumerate(token_bytes(tokenizer))}

    def classes_of(*pieces: bytes) -> set[str]:
        """Of the second piece, after the first and before the third if there is one."""
        found = token_classes(np.array([[ids[piece] for piece in pieces]]), tokenizer)
        return {name for name, labels in found.items() if labels[0, 0]}

    assert classes_of(b"(", b"a") == {"word start"}
    assert classes_of(b"\n", b"a") == {"word start"}
    assert classes_of(b"a", b"b") == {"word part"}  # whether the word ends is not known
    assert classes_of(b"a", b"b", b",") == {"word part", "word end"}
    assert classes_of(b"a", b"b", b"c") == {"word part"}
    assert classes_of(b"a", b"'") == {"delimiter"}
    assert classes_of(b"_", b"_") == {"formatting"}
    assert classes_of(b"a", b"_") == {"formatting"}
    assert classes_of(b"a", b"7") == {"numeric"}
    assert classes_of(b"a", b"\n") == {"spacing"}
    assert classes_of(b"a", b"\xc3") == set()
    assert classes_of(b"a", b"") == set()


def test_induction_takes_any_earlier_occurrence(tokenizer: Tokenizer) -> None:
    def labels(*row: int) -> list[bool]:
        return token_classes(np.array([row]), tokenizer)["induction"][0].tolist()

    assert labels(5, 6, 5, 7, 5, 6) == [False, False, False, False, True]  # not only the last occurrence of 5
    assert labels(5, 5, 5) == [False, True]  # overlapping
    assert labels(5, 6, 0, 5, 6) == [False, False, False, True]  # across a separator
    both = token_classes(np.array([[5, 6, 7], [5, 6, 7]]), tokenizer)["induction"]
    assert not both.any()  # rows know nothing of each other


def test_errors(tokenizer: Tokenizer) -> None:
    for tokens, message in (
        (np.array([[1, 300]]), "vocabulary has 0 to 299"),
        (np.array([[1, -1]]), "vocabulary has 0 to 299"),
        (np.array([1, 2]), "rows of two or more"),
        (np.array([[1.0, 2.0]]), "integer ids"),
    ):
        with pytest.raises(PatterningError, match=message):
            token_classes(tokens, tokenizer)
