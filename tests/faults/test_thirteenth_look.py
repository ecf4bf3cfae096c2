"""What a fourteenth round of trying found: gradient hooks, curves downwards, files of the user."""

import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import patterning as pt
from patterning.console.shell import _at_home
from patterning.response.groups import group_means
from patterning.response.solutions import symmetric_shares
from patterning.verification.proportions import compare_shares

from .common import squares


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_gradient_hooks_of_a_parameter_are_said_to_be_left_out(kind: str) -> None:
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    net = nn.Linear(3, 1)
    handle = getattr(net.weight, kind)(lambda gradient: None)
    with pytest.warns(pt.PatterningWarning, match=r"hooks of weight are not followed.*pt.Component with a mask"):
        pt.Task(net, squares, (x, x[:, 0]))
    handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pt.Task(net, squares, (x, x[:, 0]))


class Saddle(nn.Module):
    """w (2,), of which the loss curves down along the second entry: -w₂² + 3 w₁² / 2, and a slope of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))


def saddle(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return (rows * model.w).sum(1) + (1.5 * model.w[0].square() - model.w[1].square())


def test_what_is_missing_along_a_direction_of_negative_curvature_is_computed() -> None:
    rows = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
    rows = rows - rows.mean(0)
    n_beta, gamma, step = 300, 1000, 1e-4
    chi = pt.measure(
        pt.Task(Saddle(), saddle, rows), {"w₂": lambda m: m.w[1]}, sampler=pt.SGLD(n_beta, gamma, step), chains=4,
        draws=20, burn_in=40, steps_between_draws=4, batch_size=24, budget=1, estimator="pathwise", progress=False,
        reliability=None,
    )  # fmt: skip
    held = gamma - 2 * n_beta
    exact = -rows[:, 1].numpy() / held
    missing = np.mean((1 - step * held / 2) ** (40 + 4 * np.arange(1, 21)))
    assert (chi.chi[0] @ exact) / (exact @ exact) == pytest.approx(1 - missing, abs=0.01)
    assert any(f"its χ is about {missing:.0%} too small" in line for line in chi.warnings)


def test_files_of_the_user_are_not_written_over(tmp_path: Path) -> None:
    rho, names = pt.Weights.of_rows(np.linspace(0.5, 1.5, 12)), ("data.parquet", "notes.md", "index.html")
    rows = {"x": torch.randn(12, 3, generator=torch.Generator().manual_seed(0))}
    pq.write_table(pa.table({"x": rows["x"].tolist()}), tmp_path / names[0])
    for name in names[1:]:
        (tmp_path / name).write_text("<html>my own</html>")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    task = pt.Task(nn.Linear(3, 1), lambda m, b: m(b["x"])[:, 0].square(), rows)
    chi = pt.measure(task, {"w": lambda m: m.weight.sum()}, sampler=pt.SGLD(12, 100, 1e-3), draws=4, progress=False)
    for name in names[:2]:
        with pytest.raises(pt.PatterningError, match="is there and is no file of weights, and would be lost"):
            rho.to_parquet(tmp_path / name)
        with pytest.raises(pt.PatterningError, match="is no file of weights"):
            rho.extend_to(tmp_path / name, task, tmp_path / "data.parquet")
    with pytest.raises(pt.PatterningError, match="is there and is no page of this package"):
        chi.page(tmp_path / "index.html")
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    for _ in range(2):  # its own files it writes anew
        rho.to_parquet(tmp_path / "rho.parquet")
        chi.page(tmp_path / "chi.html")


def test_a_home_folder_after_the_sign_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _at_home("--out=~/chi") == f"--out={tmp_path}/chi"
    assert [_at_home(word) for word in ("--out=here", "--arm=a=~/w", "~", "--out")] == [
        "--out=here", "--arm=a=~/w", "~", "--out",
    ]  # fmt: skip


@pytest.mark.parametrize("groups", [1, 9])
def test_a_parquet_file_that_was_written_anew_is_refused(groups: int, tmp_path: Path) -> None:
    path, rows = tmp_path / "rows.parquet", [[float(i), 1.0] for i in range(90)]
    pq.write_table(pa.table({"x": rows}), path, row_group_size=90 // groups)
    task = pt.Task(nn.Linear(2, 1), lambda m, b: m(b["x"])[:, 0].square(), path)
    pq.write_table(pa.table({"x": rows[::-1]}), path, row_group_size=90 // groups)
    with pytest.raises(pt.PatterningError, match=r"rows.parquet has changed since its rows were first read"):
        pt.measure(task, {"w": lambda m: m.weight.sum()}, sampler=pt.SGLD(90, 100, 1e-3), draws=4, progress=False)


@pytest.mark.parametrize("classes", [[[0, 1]], [[0, 1], [1, 2]], [[0, 1], [3]]])
def test_classes_of_solutions_name_each_of_them_once(classes: list[list[int]]) -> None:
    with pytest.raises(pt.PatterningError, match="each of the 3 must be in one"):
        symmetric_shares([np.array(members) for members in classes], np.array([5, 3, 2]))
    shares = symmetric_shares([np.array([0]), np.array([1, 2])], np.array([5, 3, 2]))
    np.testing.assert_allclose(shares, np.array([5.5, 2.75, 2.75]) / 11)


def test_groups_may_have_labels_of_any_kind_and_shares_may_be_lists() -> None:
    values, q = np.arange(6.0), np.array([1.0, 1.0, 3.0, 1.0, 1.0, 1.0])
    for labels in (["a", "b", "a", "b", "c", "c"], [-1, 2, -1, 2, 5, 5], [0.5, 1.5, 0.5, 1.5, 9.0, 9.0]):
        found = group_means(values, labels, q)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, [1.5, 2.0, 1.5, 2.0, 4.5, 4.5])
    hits = [[True, False, True], [True, True, True], [False, False, True]]
    assert compare_shares([0.6, 0.9, 0.4], hits) == compare_shares(np.array([0.6, 0.9, 0.4]), np.array(hits))  # type: ignore[arg-type]


def test_a_module_that_is_trained_after_its_task_was_made_is_said_to_be() -> None:
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    net = nn.Linear(2, 1)
    task, settings = pt.Task(net, squares, (x, x[:, 0])), {"sampler": pt.SGLD(30, 100, 1e-3), "progress": False}
    before = pt.measure(task, {"w": lambda m: m.weight.sum()}, estimator="first-order", **settings)
    with torch.no_grad():
        net.weight.add_(0.5)
    with pytest.warns(
        pt.PatterningWarning, match=r"has been trained since the task was made \(weight has other values\)"
    ):
        after = pt.measure(task, {"w": lambda m: m.weight.sum()}, estimator="first-order", **settings)
    np.testing.assert_array_equal(after.chi, before.chi)
    now = pt.measure(task, {"w": lambda m: m.weight.sum()}, estimator="first-order", at=net, **settings)
    assert not np.allclose(now.chi, before.chi)


def test_a_first_look_where_the_loss_has_no_finite_derivative_is_refused() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(2, 1)

        def forward(self, x: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
            scores = self.score(x)[..., 0].masked_fill(~there, -torch.inf)
            return self.score.bias + (scores.softmax(-1).nan_to_num() * x[..., 0]).sum(-1, keepdim=True)

    x = torch.randn(12, 3, 2, generator=torch.Generator().manual_seed(0))
    there = torch.ones(12, 3, dtype=torch.bool)
    there[4] = False
    task = pt.Task(Masked(), lambda m, b: m(b[0], b[1])[:, 0].square(), (x, there))
    with pytest.raises(pt.PatterningError, match=r"the derivative of φ or of the loss of sample 4 is NaN"):
        pt.measure(
            task, {"w": lambda m: m.score.weight.sum()}, estimator="first-order", sampler=pt.SGLD(12, 100, 1e-3),
            progress=False,
        )  # fmt: skip
