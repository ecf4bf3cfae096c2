"""`patterning report` on every folder and file that the Python interface writes, and on what is not finished."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import patterning as pt
from patterning import cli
from patterning.cli import main
from patterning.core.terminal import make_console

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    before, sys.argv = sys.argv, ["patterning", "report", *map(str, arguments)]
    status = 0
    try:
        main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.argv = before
    found = capsys.readouterr()
    return status, found.out, found.err


def losses(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    torch.manual_seed(0)
    task = pt.Task(nn.Linear(3, 2), losses, (X, Y))
    chi = pt.measure(
        task, {"all": lambda model: cross_entropy(model(X), Y)}, sampler=pt.SGLD(30, 300, 1e-3), draws=4, burn_in=2,
        budget=1, batch_size=4, progress=False, out=folder / "chi",
    )  # fmt: skip
    chi.save(folder / "head.zarr")
    rho = chi.invert({"all": -1}).weights(0.25, force=True)
    rho.save_card(folder / "card")
    rho.to_parquet(folder / "rho.parquet")

    def train(weights: pt.Weights, seed: int) -> float:
        return float(np.random.default_rng(seed).standard_normal() + weights.rho @ np.arange(24))

    pt.verify(train, {"lower": rho}, {"all": lambda run: run}, range(3), out=folder / "proof")
    return folder


@pytest.mark.parametrize(
    ("name", "says", "page"),
    [
        ("chi", "all", "chi/report.html"),
        ("head.zarr", "all", "head.zarr.report.html"),
        ("proof", "3 paired seeds", "proof/report.html"),
        ("card", "lower all (-1)", ""),
        ("rho.parquet", "lower all (-1)", ""),
    ],
)
def test_report_of_what_python_wrote(
    place: Path, name: str, says: str, page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(cli._output, "out", make_console())  # the command makes it when it starts
    status, out, err = report(capsys, place / name)
    assert (status, err) == (0, "")
    assert says in out
    assert max(len(line) for line in out.splitlines() if "page: " not in line and "card: " not in line) <= 80
    if page:
        assert "<html" in (place / page).read_text()
        assert f"page: {place / page}" in out


def test_a_chi_of_measure_is_replaced_by_the_next_and_opens(place: Path) -> None:
    assert pt.load(place / "chi" / "chi.zarr").names == ("all",)


def test_what_is_unfinished_or_unknown_has_its_own_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    units = tmp_path / "proof" / "units"
    units.mkdir(parents=True)
    (units / "train-up-0123456789abcdef.safetensors").touch()
    (tmp_path / "empty").mkdir()
    for name, says in (
        ("proof", "run the script that calls verify(..., out=...), again"),
        ("empty", "is not a folder that this package wrote"),
    ):
        status, _, err = report(capsys, tmp_path / name)
        assert status == 2
        assert says in err
        assert len(err.splitlines()) == 1
