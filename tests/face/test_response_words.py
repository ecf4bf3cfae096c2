"""What a response says in words: signs, warnings, shapes that are none."""

import numpy as np
import pytest

import patterning as pt
from patterning.face.response_table import cautions
from patterning.face.signs import TITLE, WHICH_SIGN, in_words


def test_which_sign_is_said_in_one_place() -> None:
    flat = " ".join(pt.Response.__doc__.split())
    assert TITLE in flat
    assert all(" ".join(part.split()) in flat for part in WHICH_SIGN)
    assert "invert({'l1h3': -1})" in in_words("l1h3", "l1h3", "component loss")
    assert "Positive χ (blue): weighting this sample up raises ⟨8s⟩" in in_words("8s", "full", "8s")


def test_warnings_are_grouped_worst_first_and_said_once() -> None:
    lines = [
        "reliability under 0.5, mostly noise: a, b",
        "left out, diverged: a, chain 3: it left",
        "a: chains disagree on component loss (R-hat 1.64): raise burn_in and draws",
        "b: chains disagree on component loss (R-hat 1.71): raise burn_in and draws",
        "c has no result: every chain left",
        "something else",
    ]
    groups = cautions(lines)
    assert [group.title for group in groups] == [
        "No result", "Chains that are not to be trusted yet", "Mostly noise", "Left out", "Other notes",
    ]  # fmt: skip
    assert groups[1].lines == [
        "a, b: chains disagree on component loss (R-hat 1.64): raise burn_in and draws (numbers of a; the others are "
        "alike)"
    ]
    assert cautions([]) == []


def test_shapes_of_the_face_are_checked_in_the_tests() -> None:
    from patterning.core.shapes import Chi, shaped

    @shaped
    def transposed(chi: np.ndarray) -> Chi:
        return chi.sum(0)

    with pytest.raises(TypeError, match="is annotated"):
        transposed(np.ones((2, 3)))
