"""`patterning llc`: what λ̂ depends on stands beside it, a w* that is no minimum is said, `--check` varies γ and ε."""

import json
from pathlib import Path

import pytest

from patterning.cli import main
from patterning.core.progress import listening, portion, report_progress

FILE = """
import torch
from patterning.core.task import Task

class Point(torch.nn.Module):
    def __init__(self, at):
        super().__init__()
        self.w = torch.nn.Parameter(torch.full((3,), float(at)))

    def forward(self, x):
        return (self.w * x).sum(1)

def loss(model, batch):
    return model(batch[0] * 1.0).square() + 0.0 * batch[1]

def data():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(32, 3, generator=rng), torch.zeros(32)

def minimum():
    return Task(Point(0.0), loss, data())

def slope():
    return Task(Point(1.0), loss, data())
"""
SETTINGS = ["--n-beta", "30", "--localization", "10", "--step-size", "1e-3", "--draws", "40", "--batch-size", "32",
            "--workers", "1"]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def run(file: Path, name: str, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[str, dict]:
    import sys

    arguments = ["patterning", "llc", f"{file}:{name}", *SETTINGS, "--out", str(out), *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        main()
    return capsys.readouterr().out, json.loads((out / "results.json").read_text())


def test_n_beta_gamma_and_epsilon_stand_beside_the_coefficient(file, tmp_path, capsys) -> None:
    printed, results = run(file, "minimum", tmp_path / "out", capsys)
    flat = " ".join(printed.split())
    assert "nβ 30, γ 10, ε 0.001" in flat
    assert "nβ 30, γ 10, ε 0.001" in (tmp_path / "out" / "report.html").read_text()
    (row,) = results["table"]
    assert row["llc"] == pytest.approx(1.5, rel=0.25)  # three quadratic directions, less what γ holds
    assert not any("no minimum" in line for line in results["warnings"])
    assert results["check"] is None


def test_a_point_that_is_no_minimum_is_said(file, tmp_path, capsys) -> None:
    printed, results = run(file, "slope", tmp_path / "out", capsys)
    assert results["table"][0]["llc"] < -1
    assert any("w* is no minimum" in line and "no learning coefficient" in line for line in results["warnings"])
    assert "w* is no minimum" in printed


def test_check_varies_gamma_and_the_step(file, tmp_path, capsys) -> None:
    _, results = run(file, "minimum", tmp_path / "out", capsys, "--check", "--chains", "2", "--draws", "12")
    rows = results["check"]["rows"]
    assert [row["localization"] for row in rows] == [10, 10, 100, 1]
    assert rows[1]["step_size"] == rows[0]["step_size"] / 2
    assert rows[2]["coefficient"] < rows[0]["coefficient"]  # a stronger pull leaves less room
    assert results["check"]["verdicts"]
    assert "Does λ̂ hold?" in (tmp_path / "out" / "report.html").read_text()


def test_progress_moves_within_a_component() -> None:
    heard: list[float] = []
    with listening(heard.append), portion(0.5, 1.0), portion(0.0, 0.5):
        report_progress(1.0)
    assert heard == [0.75]
    from tests.faults.common import PAIRED, chi, linear_task

    heard.clear()
    with listening(heard.append):
        chi(linear_task(), chains=PAIRED, estimator="pathwise")
    assert heard
    assert heard[-1] == 1.0
    assert heard == sorted(heard)
