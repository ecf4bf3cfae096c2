"""Inputs of a fourth round of trials: what was silent is said, or refused by name."""

import runpy
import sys

import numpy as np
import pytest
import torch
from torch import nn

import patterning as pt
from patterning.core.errors import PatterningError
from patterning.verification.suspicion import notes_on_jumps
from patterning.verification.verify import _key

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
SETTINGS = {"sampler": pt.SGLD(30, 100, 1e-3), "chains": 2, "draws": 8, "burn_in": 4, "batch_size": 40, "budget": 1,
            "progress": False}  # fmt: skip


def task() -> pt.Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pt.Task(nn.Linear(3, 1), lambda m, b: m(b)[:, 0].square(), X)


def test_a_probed_part_says_what_chi_is_relative_to(tmp_path) -> None:
    part = pt.measure(task(), probes=range(10), **SETTINGS)
    assert str(part).startswith("χ: 1 row, 10 samples in 10 of 40 rows, relative to whose mean χ is, nβ 30")
    part.page(tmp_path / "page.html")
    assert "10 samples in 10 of 40 rows, relative to whose mean χ is" in (tmp_path / "page.html").read_text()
    assert "relative" not in str(pt.measure(task(), **SETTINGS)).splitlines()[0]


def test_one_number_is_no_set_of_rows() -> None:
    with pytest.raises(PatterningError, match=r"probes is 20: it must be row numbers, range\(20\) for so many"):
        pt.measure(task(), probes=20, **SETTINGS)  # type: ignore[arg-type]


def test_functions_that_a_loop_made_alike_are_refused() -> None:
    phis = {f"weight {i}": lambda model: model.weight[0, i] for i in range(3)}  # noqa: B023
    with pytest.raises(PatterningError, match="'weight 0' and 'weight 1' are the same at w\\* and beside it"):
        pt.measure(task(), phis, **SETTINGS)
    bound = {f"weight {i}": lambda model, i=i: model.weight[0, i] for i in range(3)}
    assert pt.measure(task(), bound, **SETTINGS).names == tuple(bound)


def test_shares_of_rows_may_agree() -> None:
    phis = {name: lambda model: (model(X)[:, 0] > 0).float().mean() for name in ("train", "test")}
    assert pt.measure(task(), phis, estimator="covariance", **SETTINGS).names == ("train", "test")


def test_what_train_makes_depends_on_the_default_type() -> None:
    weights = pt.Weights.of_rows([0.5, 1.0, 1.5])
    single = _key("code", weights, 0)
    torch.set_default_dtype(torch.float64)
    try:
        assert _key("code", weights, 0) != single
    finally:
        torch.set_default_dtype(torch.float32)
    assert _key("code", weights, 0) == single


def test_the_package_is_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["patterning", "--version"])
    runpy.run_module("patterning", run_name="__main__")
    assert capsys.readouterr().out == f"patterning {pt.__version__}\n"


@pytest.mark.parametrize(("jumps", "told"), [([], False), ([3], True), ([3, 6], True), ([0, 2, 4, 6], False)])
def test_runs_that_jump_now_and_then_are_named(jumps: list[int], told: bool) -> None:
    noise = np.random.default_rng(0).normal(size=(2, 8)) / 100
    noise[1, jumps] -= 1
    notes = notes_on_jumps({"unweighted": {"loss": noise[0]}, "mine": {"loss": noise[1]}}, "unweighted", ["loss"])
    assert bool(notes) is told
    assert all(f"'loss' under mine: {len(jumps)} of 8 pairs" in note for note in notes)
