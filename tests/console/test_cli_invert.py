"""From a task file to weights and a proof on the command line: measure, invert, verify, doctor."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from patterning.cli import main
from patterning.console.doctor import print_examination
from patterning.core.user_code import load_object
from patterning.face.load import load
from patterning.intervention.data_weights import Weights

FILE = """
import torch
from torch import nn
import patterning as pt

x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
y = torch.where(torch.arange(60) < 30, x[:, 0], x[:, 1])


def loss(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square()


def task():
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, 0.5, 0.0]]))
        model.bias.zero_()
    return pt.Task(model, loss, (x, y))


observables = {"first": lambda model: model.weight[0, 0]}


def train(weights, seed):
    torch.manual_seed(seed)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(60):
        rows = torch.randint(60, (20,))
        optimizer.zero_grad()
        weights.loss(loss(model, (x[rows], y[rows])), rows).backward()
        optimizer.step()
    return model


def measures():
    return {"first": lambda model: model.weight[0, 0].item()}


def broken():
    raise KeyError("nothing")
"""
SETTINGS = ["--n-beta", "60", "--localization", "60", "--step-size", "1e-3", "--draws", "24", "--burn-in", "40",
            "--batch-size", "20", "--steps-between-draws", "8", "--rounds", "1", "--components", "full",
            "--workers", "1"]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path


def test_measure_invert_verify(place: Path, in_process) -> None:
    mine = str(place / "mine.py")
    chi, rho, proof = place / "chi", place / "rho.parquet", place / "proof"
    done = in_process(
        "measure", f"{mine}:task", "--observables", f"{mine}:observables", *SETTINGS, "--out", str(chi)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "first" in (chi / "report.html").read_text()
    done = in_process(
        "invert", str(chi), "--task", f"{mine}:task", "--want", "first=1", "--out", str(rho), "--strength", "0.8",
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["weights"]["target"] == {"first": 1.0}
    weights = Weights.from_parquet(rho)
    first, second = weights.rho[:30].mean(), weights.rho[30:].mean()
    assert first > second  # the first half follows the first input
    done = in_process(
        "verify", f"{mine}:train", "--measures", f"{mine}:measures", "--arm", f"first rule={rho}", "--seeds", "0-7",
        "--out", str(proof), "--workers", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "steers" in done.stdout
    results = json.loads((proof / "results.json").read_text())
    rows = {row["arm"]: row for row in results["rows"]}
    assert rows["first rule"]["against_unweighted"]["low"] > 0
    assert np.isfinite(rows["first rule, permuted"]["mean"])
    page = (proof / "report.html").read_text()
    assert "first rule" in page
    (proof / "report.html").unlink()
    done = in_process("report", str(proof))
    assert done.returncode == 0, done.stderr
    assert (proof / "report.html").read_text() == page


def _mean_of_first(rho: np.ndarray, n_beta: float, localization: float) -> float:
    """The first weight's mean under the tempered posterior of the task above, whose loss is quadratic: exact."""
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).double()
    y = torch.where(torch.arange(60) < 30, x[:, 0], x[:, 1])
    inputs, anchor = torch.cat([x, torch.ones(60, 1)], 1), torch.tensor([0.5, 0.5, 0.0, 0.0]).double()
    weighted = 2 * n_beta * torch.from_numpy(rho)[:, None] / 60 * inputs
    precision = weighted.T @ inputs + localization * torch.eye(4)
    return torch.linalg.solve(precision, weighted.T @ y + localization * anchor)[0].item()


def test_weights_of_a_part_of_the_data_promise_the_change_of_all_of_it(place: Path, in_process) -> None:
    mine = str(place / "mine.py")
    done = in_process(
        "measure", f"{mine}:task", "--observables", f"{mine}:observables", *SETTINGS, "--probes", "15",
        "--out", str(place / "chi"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = in_process(
        "invert", str(place / "chi"), "--task", f"{mine}:task", "--want", "first=1", "--out", str(place / "rho"),
        "--strength", "0.1", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rho = Weights.from_parquet(place / "rho").rho
    assert (rho == 1).sum() >= 45
    change = _mean_of_first(1 + (rho - 1) / 100, 60, 60) - _mean_of_first(np.ones(60), 60, 60)
    promised = json.loads(done.stdout)["weights"]["predicted_per_strength"]["first"]["value"]
    assert promised == pytest.approx(change * 1000, rel=0.1)
    measured = load(place / "chi", load_object(f"{mine}:task")())
    assert (measured.data.attrs["rows_probed"], measured.data.attrs["data_rows"]) == (15, 60)


INVERT = ["invert", "{folder}", "--task", "{mine}:task", "--out", "x"]
VERIFY = ["verify", "{mine}:train", "--arm", "a=b", "--out", "o", "--measures"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*INVERT, "--want", "first"], "write the name of a row and a sign"),
        ([*INVERT, "--want", "first=1"], "holds no susceptibilities"),
        ([*VERIFY, "{mine}:loss"], "loss"),
        ([*VERIFY, "{mine}:measures"], "b"),
        ([*VERIFY, "{mine}:measures", "--seeds", "x"], "--seeds 'x': write \"0-7\""),
    ],
)
def test_bad_requests_are_one_sentence(place: Path, in_process, arguments: list[str], sentence: str) -> None:
    mine = place / "mine.py"
    done = in_process(*(part.format(mine=mine, folder=place) for part in arguments))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_tries_a_task(place: Path, in_process) -> None:
    done = in_process("doctor", f"{place / 'mine.py'}:task", "--json")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert told["task"]["works"]
    assert told["task"]["rows"] == 60
    assert told["packages"]["torch"]
    done = in_process("doctor", f"{place / 'mine.py'}:broken")
    assert "the task does not work" in done.stdout
    assert "nothing" in done.stdout


def test_remedies_keep_the_names_of_extras(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("transformer_lens", "devinterp")
    found = {"patterning": "1", "python": "3", "platform": "x", "cpus": 1, "gpus": [], "packages": {}, "task": None}
    print_examination({**found, "optional": dict.fromkeys(names)}, Console(width=120))
    printed = capsys.readouterr().out
    assert "pip install 'patterning[lens]'" in printed  # in brackets, which are no markup here
    broken = {"works": False, "why": "losses have shape [3]: give [bold] one a row"}
    print_examination({**found, "optional": {}, "task": broken}, Console(width=120))
    assert broken["why"] in capsys.readouterr().out


def test_a_task_file_may_change_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(
        "import os\nos.chdir(os.path.dirname(__file__))\nimport torch, patterning as pt\n"
        "x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))\n"
        "def task():\n    torch.manual_seed(0)\n"
        "    return pt.Task(torch.nn.Linear(2, 1), lambda m, b: m(b[0])[:, 0].square(), (x,))\n"
        "observables = {'bias': lambda m: m.bias.sum()}\n"
    )
    words = ["--n-beta=20", "--localization=100", "--step-size=1e-3", "--rounds=1", "--workers=1", "--out=chi"]
    for command in (
        ["measure", "code/mine.py:task", "--observables=code/mine.py:observables", *words],
        ["invert", "chi", "--task=code/mine.py:task", "--want=bias=1", "--out=rho.parquet", "--force"],
        ["report", "chi"],
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["patterning", *command])
        main()  # anything but success ends it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chi", "code", "rho.parquet"]
