"""What the eighth round of ordinary inputs found."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import patterning as pt
from faults.test_chain_bias import exact_chi_of_w0, measured, regression, step_size

GENERATOR = torch.Generator().manual_seed(0)
X, LABELS = torch.randn(24, 4, generator=GENERATOR), torch.randint(3, (24,), generator=GENERATOR)


def mean_square(module: nn.Module, batch) -> torch.Tensor:
    return (module(batch[0])[:, 0] - batch[1]).square()


@pytest.mark.parametrize("size", [1, 2])
def test_the_noise_of_one_or_two_rows_is_said_about_as_large_as_it_is(size: int) -> None:
    """The share of the rise that minibatches make, against the rise of chains that see all rows at each step."""
    task, design, residual = regression()
    epsilon, rows = step_size(design, 0.05), len(residual)
    alone, noisy = (measured(task, epsilon, batch_size=count) for count in (rows, size))
    rise = [float(chi.data["rise"].values.ravel()[0]) for chi in (alone, noisy)]
    true = 1 - rise[0] / rise[1]
    assert true > 0.25
    (said,) = [line for line in noisy.warnings if "minibatches are small" in line]
    share, error = (int(part) / 100 for part in re.findall(r"about (\d+)% \(± (\d+)%\) of the rise", said)[0])
    assert abs(share - true) < 0.2, (share, error, true)
    exact = exact_chi_of_w0(design, residual)
    assert float(noisy.chi[0] @ exact / (exact @ exact)) > 1.2


@pytest.mark.parametrize(
    "loss",
    [
        lambda m, b: cross_entropy(m(b[0]), b[1], reduction="none").double(),
        lambda m, b: (
            torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)[b[1]] * cross_entropy(m(b[0]), b[1], reduction="none")
        ),
    ],
)
def test_losses_may_be_float64(loss) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Linear(4, 3)
    settings = {"sampler": pt.SGLD(20, 300, 3e-4), "estimator": "first-order", "progress": False}
    chis = [
        pt.measure(pt.Task(module, own, (X, LABELS)), {"w": lambda m: m.weight.square().sum()}, **settings).chi
        for own in (loss, lambda m, b: loss(m, b).float())
    ]
    np.testing.assert_allclose(*chis, rtol=1e-4, atol=1e-6 * np.abs(chis[0]).max())


@pytest.mark.parametrize(
    "rows",
    [
        [(x, y) for x, y in zip(X, LABELS, strict=True)],
        [(x, float(y)) for x, y in zip(X, LABELS, strict=True)],
        list(zip(X.tolist(), LABELS.tolist(), strict=True)),
        [{"x": x, "y": y} for x, y in zip(X, LABELS, strict=True)],
        list(X),
    ],
    ids=["pairs", "numbers", "lists", "dicts", "tensors"],
)
def test_a_list_of_rows_is_told_from_columns(rows: list) -> None:
    with pytest.raises(pt.PatterningError, match=r"a list of 24 is taken as 24 columns. If they are rows, .*torch"):
        pt.Task(nn.Linear(4, 1), mean_square, rows)


def test_columns_in_a_list_stay_columns() -> None:
    assert len(pt.Task(nn.Linear(4, 1), mean_square, [X, LABELS.float()]).ids) == 24
    several = [X, LABELS.float(), LABELS.float(), LABELS.float()]
    assert len(pt.Task(nn.Linear(4, 1), mean_square, several).ids) == 24


def test_a_loss_of_outputs_and_targets_is_told_how_losses_are_called() -> None:
    with pytest.raises(pt.PatterningError, match=r"it is called as loss\(module, batch\)"):
        pt.Task(nn.Linear(4, 3), nn.CrossEntropyLoss(reduction="none"), (X, LABELS))


@pytest.mark.parametrize("groups", [np.array([0.0, 1.0, np.nan]), pd.Series(["a", None, "b"]), [0, 1, None]])
def test_rows_without_a_label_are_named(groups) -> None:
    labels = dict.fromkeys((0, 1, "a", "b"), 1.0)
    row = 1 if isinstance(groups, pd.Series) else 2
    with pytest.raises(
        pt.PatterningError, match=rf"no label \(NaN or None\) in 1 rows, the first is row {row}: .*fillna"
    ):
        pt.Weights.of_groups(groups, labels)


def test_tuples_are_labels() -> None:
    weights = pt.Weights.of_groups([("x", 1), ("y", 2), ("x", 1)], {("x", 1): 1, ("y", 2): 4})
    np.testing.assert_allclose(weights.rho, [0.5, 2, 0.5])
    with pytest.raises(pt.PatterningError, match=r"groups are \(3, 2\): give one label for each row"):
        pt.Weights.of_groups(np.zeros((3, 2)), {0: 1})


def test_a_first_look_at_one_sample_says_that_there_is_nothing_to_compare() -> None:
    task = pt.Task(nn.Linear(4, 1), mean_square, (X, LABELS.float()))
    with pytest.raises(
        pt.PatterningError, match=r"a single sample is probed, and χ is relative to the mean .*probe several"
    ):
        pt.measure(
            task, {"w": lambda m: m.weight.sum() * 1}, sampler=pt.SGLD(20, 300, 3e-4), probes=[3],
            estimator="first-order", progress=False,
        )  # fmt: skip
