"""Data, weights and answers of a loss that cannot serve: one sentence each, which says what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from tests.faults.common import CE, TOKENS, X, Y, classify, language_model, seeded


def linear(data: object = (X, Y), loss: Callable[..., Any] = classify, weights: object = None) -> Task:
    return Task(seeded(nn.Linear(6, 3)), loss, data, weights)


def with_entry(values: torch.Tensor, place: Any, entry: float) -> torch.Tensor:
    other = values.clone()
    other[place] = entry
    return other


def failing(_model, _batch) -> torch.Tensor:
    raise KeyError("input_ids")


def next_token(model, b):
    return CE(model(b)[:, :-1].transpose(1, 2), b[:, 1:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear(loss=lambda m, b: None), "returned NoneType: it must return a tensor of losses"),
        (lambda: linear(loss=lambda m, b: [1.0]), "returned list: it must return"),
        (lambda: linear(loss=lambda m, b: {"loss": m(b[0])}), "returned dict: it must return"),
        (lambda: linear(loss=lambda m, b: m(b[0])[:, 0] * 1j), "returned numbers of type torch.complex64"),
        (lambda: linear(loss=lambda m, b: classify(m, b).to_sparse()), "it must return an ordinary one"),
        (lambda: linear(loss=lambda m, b: F.cross_entropy(m(b[0]), b[1])), "one loss a row"),
        (lambda: linear(loss=failing), r"cannot run on the data \(KeyError: 'input_ids'\)"),
        (lambda: linear((X[:0], Y[:0])), "n > 0 rows"),
        (lambda: linear((X, Y[:5])), r"found shapes \(128, 6\), \(5,\)"),
        (lambda: linear({"x": X, "text": ["a"] * 128}), r"data\['text'\]: data must be tensors"),
        (lambda: linear((X, with_entry(Y, 77, 7))), r"row 77 of the data \(label 7\).*class labels must be 0 to"),
        (lambda: linear((X, with_entry(Y, 64, -1))), r"row 64 of the data \(label -1\)"),
        (lambda: linear((X, Y.float())), "class labels must be whole numbers"),
        (lambda: linear((X.long(), Y)), r"use x.float\(\)"),
        (lambda: linear((with_entry(X, (101, 2), torch.nan), Y)), "the loss of row 101 is NaN or infinite"),
        (lambda: Task(language_model(), next_token, with_entry(TOKENS, (5, 3), 99)), "row 5 .*size of the vocabulary"),
        (lambda: Task(language_model(), next_token, TOKENS.float()), "token numbers must be whole numbers"),
        (lambda: linear((X.to_sparse(), Y)), r"a sparse_coo tensor.*to_dense\(\)"),
        (lambda: linear((X.to(torch.complex64), Y)), "view_as_real"),
        (lambda: linear(x for x in X), "found generator.*torch.stack"),
        (lambda: linear(DataLoader(TensorDataset(X, Y))), "found DataLoader.*one tensor"),
        (
            lambda: linear((X, torch.arange(128, dtype=torch.float64) + 2**24)),
            "which cannot tell such numbers apart.*as int64",
        ),
        (lambda: linear(weights=[-1.0] + [1.0] * 127), "row 0 has -1"),
        (lambda: linear(weights=[1.0] * 127 + [torch.nan]), "row 127 has nan"),
        (lambda: linear(weights=[1.0] * 5), r"must be 128 numbers, one a row \(got shape \(5,\)\)"),
        (lambda: linear(weights="many"), r"must be 128 numbers, one a row \(got str\)"),
        (lambda: linear(weights=[0.0] * 128), "all 0"),
    ],
)
def test_what_cannot_serve_is_said_in_one_sentence(make: Callable[[], Task], message: str) -> None:
    with pytest.raises(PatterningError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused() -> None:
    with pytest.raises(PatterningError, match=r"nested tensor.*to_padded_tensor"):
        linear((torch.nested.nested_tensor([X[0], X[1, :3]]), Y))


def test_bad_rows_are_found_wherever_they_lie_in_large_data() -> None:
    """The last of 20,000 rows; and of 2 million a spread part is looked at, which a note says."""
    x, y = torch.randn(20_000, 6), torch.zeros(20_000, dtype=torch.int64)
    with pytest.raises(PatterningError, match="row 19999 is NaN"):
        linear((with_entry(x, (-1, 0), torch.inf), y))
    assert linear((x, y)).notes == ()
    many = linear((x.repeat(100, 1), y.repeat(100)))
    assert "of 2000000 rows, evenly spread" in many.notes[0]
