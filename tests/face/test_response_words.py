"""What a response says in words: signs, warnings, shapes that are none."""

import numpy as np
import pytest
import torch
from torch import nn

import patterning as pt
from patterning.face.response_table import cautions
from patterning.face.signs import TITLE, WHICH_SIGN, in_words


@pytest.mark.parametrize(
    ("components", "observables", "names"),
    [
        (["0.*", "2.*"], None, ("0.*", "2.*")),
        (["0.*"], None, ("0.*",)),
        (["0.*", "2.*"], ["a"], ("0.*", "2.*")),
        (["0.*"], ["a", "b"], ("a", "b")),
        (["0.*", "2.*"], ["a", "b"], ("0.*: a", "0.*: b", "2.*: a", "2.*: b")),
    ],
)
def test_names_say_no_more_than_they_must(components: list, observables: list | None, names: tuple) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    data = (torch.randn(12, 3), torch.randint(2, (12,)))
    task = pt.Task(net, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"), data)
    functions = {
        name: lambda m, name=name: m[0].weight.sum() + ord(name) * m[2].bias.sum() for name in observables or []
    }
    chi = pt.measure(task, functions or None, components, sampler=pt.SGLD(30, 300, 1e-4), estimator="first-order")
    assert chi.names == names
    assert chi.chi.shape == (len(names), 12)


def test_which_sign_is_said_in_one_place() -> None:
    flat = " ".join(pt.Response.__doc__.split())
    assert TITLE in flat
    assert all(" ".join(part.split()) in flat for part in WHICH_SIGN)
    assert "invert({'l1h3': -1})" in in_words("l1h3", "l1h3", "component loss")
    assert "Positive χ (blue): weighting this sample up raises ⟨8s⟩" in in_words("8s", "full", "8s")


def test_warnings_are_grouped_worst_first_and_said_once() -> None:
    lines = [
        "reliability of χ under 0.5, mostly noise: a, b",
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
