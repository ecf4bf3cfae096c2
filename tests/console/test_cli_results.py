"""What `response`, `llc` and `report` leave behind: χ first, then numbers, table and page, all to be made again."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from patterning.cli import main
from patterning.console import response
from patterning.core import user_code
from patterning.core.errors import PatterningError
from patterning.face.response_page import spectrum
from patterning.response.store import open_response

FILE = """
import os
from functools import partial
from pathlib import Path
import torch
from torch import nn
from torch.nn import functional as F
from patterning.core.task import Task
from patterning.core.supervised import ModuleTask

def data():
    torch.manual_seed(0)
    return torch.randn(24, 3), torch.randint(2, (24,))
def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
def module_task():  # as in README.md
    return ModuleTask(net(), partial(F.cross_entropy, reduction="none"), *data())
def with_lambda():
    return Task(net(), lambda call, b: F.cross_entropy(call(b[0]), b[1], reduction="none"), data())
def dead():
    module = net()
    module[0].bias.detach().fill_(-100.0)
    return ModuleTask(module, partial(F.cross_entropy, reduction="none"), *data())
def zero_last():
    module = net()
    module[2].weight.detach().zero_()
    return ModuleTask(module, partial(F.cross_entropy, reduction="none"), *data())
def patched():
    return Task(net(), lambda call, b: F.of_mine * F.cross_entropy(call(b[0]), b[1], reduction="none"), data())
F.of_mine = 0.5 if (Path(__file__).parent / "patch").exists() else 1.0  # in another module
def elsewhere():
    Path("other").mkdir(exist_ok=True)
    os.chdir("other")
    return module_task()
def noisy():
    print("loading")
    return module_task()
"""
SETTINGS = ["--n-beta", "30", "--localization", "100", "--step-size", "1e-4", "--draws", "8", "--burn-in", "4",
            "--batch-size", "4", "--components", "0.*,2.*", "--workers", "1"]  # fmt: skip
PLOTLY_NAMES = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(user_code._known, "current", None)  # to be put back
    return tmp_path


def patterning(*arguments: str) -> int:
    """The command in this process; its exit status."""
    before, sys.argv = sys.argv, ["patterning", *arguments]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def ask(task: str, out: str, *more: str, command: str = "response") -> int:
    return patterning(command, f"mine.py:{task}", *SETTINGS, "--out", out, *more)


@pytest.mark.parametrize("task", ["module_task", pytest.param("with_lambda", marks=pytest.mark.slow)])
def test_two_workers_give_the_same_bits_as_one(task: str) -> None:
    assert ask(task, "one", "--rounds", "1") == 0
    assert ask(task, "two", "--rounds", "1", "--workers", "2") == 0
    chis = [open_response(Path(name) / "chi.zarr")["susceptibility"]["chi"] for name in ("one", "two")]
    np.testing.assert_array_equal(*chis)
    assert float(chis[0].std()) > 0


@pytest.mark.parametrize(
    ("task", "more", "flat", "why"),
    [
        ("dead", (), ["0.*"], "the component does not move what is measured, nothing"),
        (
            "zero_last",
            (),
            ["0.*"],
            "the component does not move what is measured, nothing that the component does reaches",
        ),
        ("module_task", ("--probes", "1"), ["0.*", "2.*"], "a single sample is probed"),
    ],
)
@pytest.mark.parametrize("estimator", ["covariance", "pathwise"])
def test_rows_without_spread_are_left_out_and_named(
    task: str, more: tuple[str, ...], flat: list[str], why: str, estimator: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(task, "run", "--rounds", "1", "--estimator", estimator, *more) == 0
    sentence = f"χ without spread, left out of correlations and spectrum: {', '.join(flat)} ({why}"
    assert sentence in " ".join(capsys.readouterr().out.split())
    assert sentence in Path("run/report.html").read_text()
    tree = open_response(Path("run/chi.zarr"))
    values, floor = spectrum(tree)
    assert len(values) == len(floor) == 2 - len(flat)
    assert np.isfinite(values).all()
    results = json.loads(Path("run/results.json").read_text())
    assert [row["component"] for row in results["table"] if not row["spread"]] == flat
    assert results["table"][0]["reliability"] is None  # JSON has no NaN
    assert ask(task, "run", "--rounds", "1", "--estimator", estimator, *more) == 0  # the command again, and again done


@pytest.mark.long
def test_what_a_file_changes_elsewhere_is_changed_in_workers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn import functional

    monkeypatch.setattr(functional, "of_mine", None, raising=False)  # to be taken back
    chis = []
    for out, workers in (("plain", "1"), ("one", "1"), ("two", "2")):
        assert ask("patched", out, "--rounds", "1", "--workers", workers) == 0
        chis.append(open_response(Path(out) / "chi.zarr")["susceptibility"]["chi"].values)
        Path("patch").touch()
    np.testing.assert_array_equal(chis[1], chis[2])
    # χ is a covariance of two losses, each of them halved
    assert np.abs(chis[1]).sum() == pytest.approx(np.abs(chis[0]).sum() / 4, rel=0.1)


def test_a_file_that_changes_folder_does_not_take_the_result_along(folder: Path) -> None:
    assert ask("elsewhere", "run", "--rounds", "1") == 0
    assert (folder / "run" / "chi.zarr").exists()
    assert not (folder / "other" / "run").exists()


def test_results_are_numbers_and_say_what_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("module_task", "run", "--rounds", "1", command="response") == 0
    results = json.loads(Path("run/results.json").read_text())
    assert results["request"]["step_size"] == 1e-4
    assert "nβ 30, γ 100, ε 0.0001" in capsys.readouterr().out
    for row in results["table"]:
        for name in ("rise", "llc", "llc_standard_error", "r_hat", "ess", "reliability", "share_not_zero"):
            assert isinstance(row[name], float), name
        assert isinstance(row["free_coordinates"], int)
    chi = open_response(Path("run/chi.zarr"))["susceptibility"]
    assert [row["reliability"] for row in results["table"]] == chi["reliability"][:, 0].values.tolist()


def test_a_page_that_fails_costs_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object, **__: object) -> str:
        raise np.linalg.LinAlgError("SVD did not\nconverge")

    with monkeypatch.context() as patch:
        patch.setattr(response, "response_page", broken)
        assert ask("module_task", "run", "--rounds", "1") == 2
    err = capsys.readouterr().err
    assert err == (
        "error: table and page could not be made (LinAlgError: SVD did not converge); the result is whole in "
        "run/chi.zarr, and `patterning report run` makes them again\n"
    )
    assert open_response(Path("run/chi.zarr"))["susceptibility"].sizes["component"] == 2
    assert not Path("run/report.html").exists()
    assert patterning("report", "run") == 0
    assert "page: run/report.html" in capsys.readouterr().out
    assert Path("run/report.html").exists()


def test_report_makes_the_same_table_and_page_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("module_task", "run", "--steps-between-draws", "0", command="llc") == 0
    first = capsys.readouterr().out
    assert "steps between draws, the median of 0.*" in first
    files = {name: Path("run", name).read_text() for name in ("results.json", "report.html")}
    for name in files:
        Path("run", name).unlink()
    assert patterning("report", "run") == 0
    assert capsys.readouterr().out == first
    for name, text in files.items():
        assert PLOTLY_NAMES.sub("", Path("run", name).read_text()) == PLOTLY_NAMES.sub("", text)


def test_a_run_killed_after_chi_was_stored_only_needs_its_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask("module_task", "run", "--rounds", "1") == 0
    Path("run/results.json").unlink()
    Path("run/report.html").unlink()
    monkeypatch.setattr(response, "component_response", lambda *_, **__: pytest.fail("sampled again"))
    assert ask("module_task", "run", "--rounds", "1") == 0
    assert Path("run/results.json").exists()
    assert Path("run/report.html").exists()
    capsys.readouterr()
    for task, more in (("module_task", ("--seed", "5")), ("dead", ()), ("module_task", ("--rounds", "2"))):
        assert ask(task, "run", "--rounds", "1", *more) == 2  # another request
        assert "exists, of another request: name another folder" in capsys.readouterr().err


def test_a_damaged_chi_is_refused_and_sampling_goes_on_from_its_units(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("module_task", "run", "--rounds", "1") == 0
    chi = open_response(Path("run/chi.zarr"))["susceptibility"]["chi"].values
    chunk = Path("run/chi.zarr/susceptibility/chi/0.0.0")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    for command in (lambda: patterning("report", "run"), lambda: ask("module_task", "run", "--rounds", "1")):
        capsys.readouterr()
        assert command() == 2
        err = capsys.readouterr().err
        assert "susceptibility/chi/0.0.0 has changed since it was written: delete it and give the command" in err
    shutil.rmtree("run/chi.zarr")  # as it says
    assert ask("module_task", "run", "--rounds", "1") == 0
    np.testing.assert_array_equal(open_response(Path("run/chi.zarr"))["susceptibility"]["chi"], chi)


def test_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("noisy", "run", "--rounds", "1", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(Path("run/results.json").read_text())
    assert "loading" in err
    assert ask("noisy", "llc", "--json", command="llc") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["component"] for row in found["table"]] == ["0.*", "2.*"]
    assert patterning("report", "llc", "--json") == 0
    assert json.loads(capsys.readouterr().out) == found
    assert ask("noisy", "dry", "--json", "--dry-run") == 0
    costs = json.loads(capsys.readouterr().out)
    assert [cost["free_coordinates"] for cost in costs["costs"]] == [16, 10]
    assert not Path("dry").exists()
    assert ask("nothing", "run", "--json") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "has no function nothing" in err


def test_folders_of_something_else_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes").mkdir()
    Path("notes/x.txt").write_text("mine")
    Path("run").mkdir()
    Path("run/config.yaml").write_text("experiment: parentheses\n")
    Path("file").write_text("x")
    Path("link").symlink_to("nowhere")
    for out, says in (
        ("notes", "exists and is not the folder of a response"),
        ("run", "holds a run of `patterning run`"),
        ("file", "there is a file of that name"),
        ("file/x", "a part of its path is a file"),
        ("link", "it is a link to nowhere"),
    ):
        assert ask("module_task", out) == 2
        err = capsys.readouterr().err
        assert says in err
        assert len(err.splitlines()) == 1
    assert [path.name for path in Path("notes").iterdir()] == ["x.txt"]


def test_report_of_what_is_not_there_yet(capsys: pytest.CaptureFixture[str]) -> None:
    Path("begun/units").mkdir(parents=True)
    for place, says in (
        ("begun", "has no chi.zarr yet: give the command, or run the script, that began it again; it resumes"),
        (".", ". is not a folder that this package wrote: name the folder of patterning run"),
        ("nowhere", "nowhere does not exist"),
        ("mine.py", "mine.py is a file"),
    ):
        assert patterning("report", place) == 2
        assert says in capsys.readouterr().err


def test_more_workers_than_cpus_are_not_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from patterning.console import where

    asked = []

    def sample(*arguments: object) -> dict:
        asked.append(arguments[2])
        raise PatterningError("enough")

    monkeypatch.setattr(where, "default_workers", lambda: 3)
    monkeypatch.setattr(response, "sample_to", sample)
    for count, used in ((0, 3), (1, 1), (12, 12), (100_000, 12)):
        assert ask("module_task", "run", "--workers", str(count)) == 2
        assert asked[-1] == used
        assert ("this machine has 3 CPUs, 12 workers are used" in capsys.readouterr().err) == (count > 12)
