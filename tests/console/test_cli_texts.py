"""The page of `patterning measure` shows samples as they are: pictures, or texts by `--decode`."""

import re
from pathlib import Path

import pytest

FILE = """
import torch
from torch import nn
import patterning as pt

x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
y = (torch.arange(40) % 3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        return self.head(x.flatten(1))


def task():
    model = Net()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    loss = lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none")
    return pt.Task(model, loss, (x, y))


def said(row, position):
    return f"class {int(row[1])} of brightness {row[0].mean():.3f}"


number = 3
"""
SETTINGS = ["--n-beta", "60", "--localization", "60", "--step-size", "1e-3", "--estimator", "first-order",
            "--components", "full", "--workers", "1"]  # fmt: skip


def samples_of(folder: Path) -> str:
    page = (folder / "report.html").read_text()
    return page[page.index("<body") :]


def test_pictures_of_the_task_and_texts_of_decode(tmp_path: Path, in_process) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    line = ["measure", f"{tmp_path}/mine.py:task", *SETTINGS, "--out", f"{tmp_path}/chi"]
    in_process(*line)
    assert "data:image/png" in samples_of(tmp_path / "chi")
    again = in_process(*line, "--decode", f"{tmp_path}/mine.py:said")
    assert again.returncode == 0, again.stderr
    said = re.findall(r"class \d of brightness 0\.\d{3}", samples_of(tmp_path / "chi"))
    assert len(set(said)) >= 6
    page = samples_of(tmp_path / "chi")
    in_process("report", f"{tmp_path}/chi")
    assert samples_of(tmp_path / "chi") == page


@pytest.mark.parametrize("change", ["moved", "changed"])
def test_report_without_the_task_says_why_it_shows_numbers(change: str, tmp_path: Path, in_process) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    in_process("measure", f"{file}:task", *SETTINGS, "--out", f"{tmp_path}/chi")
    before = samples_of(tmp_path / "chi")
    print(in_process("report", f"{tmp_path}/chi"))
    assert samples_of(tmp_path / "chi") == before
    if change == "moved":
        file.unlink()
    else:
        file.write_text(FILE.replace("% 3", "% 2"))
    told = in_process("report", f"{tmp_path}/chi", "--json").stdout
    says = "a file that exists" if change == "moved" else "is another task by now"
    assert f"samples by their numbers: {file}:task" in told
    assert says in told
    assert "data:image/png" not in samples_of(tmp_path / "chi")


def test_what_is_no_decode_is_refused_before_sampling(tmp_path: Path, in_process) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    line = ["measure", f"{tmp_path}/mine.py:task", *SETTINGS, "--out", f"{tmp_path}/chi", "--decode"]
    done = in_process(*line, f"{tmp_path}/mine.py:number")
    assert done.returncode == 2
    assert "is a int: it must be a tokenizer" in done.stderr
    assert not (tmp_path / "chi").exists()
