"""A newcomer's scripts, of at most thirty lines: measure, top examples, invert, weights, train, verify."""

import runpy
import sys
from pathlib import Path

import pytest

for library in ("transformers", "datasets", "accelerate"):
    pytest.importorskip(library)

SCRIPTS = Path(__file__).parent / "scripts"
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "llama", "gpt_neox")]


def run(script: str, monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> dict:
    path = SCRIPTS / script
    monkeypatch.chdir(folder)  # a trainer makes its output folder
    assert sum(bool(line) for line in path.read_text(encoding="utf-8").splitlines()) <= 30
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    return runpy.run_path(str(path), run_name="__main__")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("architecture", ["gpt2", *SLOW])
def test_a_language_model_learns_what_it_was_asked_to(
    architecture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = run("language.py", monkeypatch, tmp_path, architecture)
    printed = capsys.readouterr().out
    assert "train_runtime" not in printed  # the trainer is quiet
    assert printed.count("b'") + printed.count('b"') >= 6  # the texts behind the numbers
    chi = state["chi"].rows().chi[0]
    assert chi[1::2].mean() < chi[::2].mean()  # every other row is a speech, which teaches speeches
    arm = next(arm for arm in state["check"].arms if arm.name == "speeches")
    assert arm.beyond["speeches"].difference < 0  # less loss on test speeches than under the same weights permuted


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_classifier_learns_what_it_was_asked_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = run("classifier.py", monkeypatch, tmp_path)
    assert "b'" in capsys.readouterr().out
    assert state["check"].effect("more of class 2").difference < 0
