"""The whole experiment at a toy size: resumes to the same numbers, re-renders, replays, and refuses bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from patterning.core.errors import PatterningError
from patterning.core.store import RunFolder, strict_json
from patterning.experiments.parentheses.config import ParenthesesConfig, load_config
from patterning.experiments.parentheses.present import read_results
from patterning.experiments.parentheses.presets import PRESETS, preset_config
from patterning.experiments.parentheses.run import run_parentheses

TOY = {
    "preset": "toy",
    "task": {"max_length": 10, "draws": 1000, "layers": 1, "heads": 2, "width": 32, "test_strings": 100},
    "train": {"steps": 150, "batch_size": 64, "learning_rate": 5e-3, "weight_decay": 1e-3},
    "seeds": 3,
    "pilot_seeds": 3,
    "sampling": {
        "n_beta": 30.0,
        "rise": 0.02,
        "chains": 2,
        "draws": 8,
        "burn_in": 10,
        "steps_between_draws": 2,
        "batch_size": 64,
        "pilot_steps": 50,
    },
    "early": {"steps": [20], "burn_in": 4, "draws": 8, "runs": 2},
    "sweep": {"seeds": 1, "policies": ["rank"], "alphas": [1.0]},
    "directions": ["gap", "ood", "runs", "early-first-order", "retraining"],
    "retraining": {"seeds_per_split": 1, "step": 0.5},
    "permuted": ["ood"],
    "adaptive": {"marks": [20, 40], "chains": 2, "draws": 8, "burn_in": 4, "policy": "rank", "alpha": 1.0},
    "solution_accuracy": 0.45,
    "force": True,
}


def numbers(folder: Path) -> dict:
    """Everything in the results that is a measurement, not a timing or a date."""
    results = json.loads((folder / "results.json").read_text())
    results.pop("provenance")
    for arm in results["arms"]:
        for key in list(arm["notes"]):
            if key.startswith("seconds"):
                del arm["notes"][key]
    return results


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    run_parentheses(load_config(TOY, "toy"), folder, workers=1)
    return folder


def test_results_hold_every_arm_with_intervals(finished: Path) -> None:
    results = numbers(finished)
    arms = {arm["name"]: arm for arm in results["arms"]}
    assert {"unweighted", "oracle-nested", "oracle-equal_count", "adaptive-nested", "gap-nested"} <= set(arms)
    assert {"permuted-ood-nested", "permuted-adaptive-equal_count"} <= set(arms)
    for name, arm in arms.items():
        assert len(arm["measures"]["ood_accuracy"]) == TOY["seeds"]
        if name != "unweighted":
            effect = arm["effect"]["ood_accuracy"]
            assert effect["low"] <= effect["difference"] <= effect["high"]
    # TRUE strings are frozen in every weighted arm
    assert all(abs(a["weight_by_class"]["TRUE"] - 1) < 1e-9 for a in results["arms"] if a["weight_by_class"])


def test_page_is_self_contained(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "Which algorithm does it learn?" in page
    assert "<script src=" not in page
    assert "<link" not in page


def test_a_run_killed_again_and_again_ends_with_the_same_numbers(
    finished: Path, tmp_path: Path, in_process: Callable
) -> None:
    """With one direction's arms only: a third of the time."""
    folder, file = tmp_path / "killed", tmp_path / "some.yaml"
    some = load_config(TOY | {"directions": ["gap"], "permuted": [], "adaptive": None, "early": None}, "toy")
    file.write_text(yaml.safe_dump(some.model_dump(mode="json")))
    arguments = ["run", "--config", str(file), "--out", str(folder), "--workers"]
    units, done = folder / "units", -1
    for workers in ("2", "1"):
        process = subprocess.Popen(
            [sys.executable, "-m", "patterning.cli", *arguments, workers],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            now = len(list(units.glob("*.safetensors"))) if units.exists() else 0
            if now > done + 1:
                break
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done = len(list(units.glob("*.safetensors")))
        assert not (folder / "results.json").exists()
    assert done >= 2
    answer = in_process(*arguments, "1")
    assert answer.returncode == 0, answer.stderr
    again, whole = numbers(folder), numbers(finished)
    for arm in (*again["arms"], *whole["arms"]):
        del arm["simultaneous"]  # an interval that depends on how many arms there are
    named = {arm["name"]: arm for arm in whole["arms"]}
    names = [arm["name"] for arm in again["arms"]]
    assert {"unweighted", "oracle-nested", "oracle-equal_count", "gap-nested", "gap-equal_count"} == set(names)
    for arm in again["arms"]:
        assert arm == named[arm["name"]]
    assert not list(units.glob("*.part"))


def test_report_renders_again_from_the_results(finished: Path, in_process: Callable) -> None:
    page = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    assert in_process("report", str(finished)).returncode == 0
    again = (finished / "report.html").read_text()
    figures = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")  # plotly names its elements at random
    assert figures.sub("", again) == figures.sub("", page)


def test_json_is_all_that_is_printed(finished: Path, in_process: Callable) -> None:
    again = ["run", "--config", str(finished / "config.yaml"), "--out", str(finished), "--workers", "1"]
    for arguments in (["report", str(finished)], again):
        answer = in_process(*arguments, "--json")
        assert answer.returncode == 0, answer.stderr
        assert json.loads(answer.stdout) == strict_json(json.loads((finished / "results.json").read_text()))
        assert answer.stderr == ""


HOLD = """
import sys
from pathlib import Path
from patterning.core.store import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_use_is_left_alone(finished: Path, in_process: Callable) -> None:
    line = [sys.executable, "-c", HOLD, str(finished)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for arguments in (
            ["report", str(finished)],
            ["run", "--config", str(finished / "config.yaml"), "--out", str(finished)],
        ):
            answer = in_process(*arguments)
            assert answer.returncode == 2
            assert f"is in use by process {holder.pid}" in answer.stderr
            assert len(answer.stderr.strip().splitlines()) == 1
        assert holder.poll() is None  # left by closing its standard input


def test_a_page_that_fails_costs_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a figure")

    before = numbers(finished)
    monkeypatch.setattr("patterning.experiments.parentheses.run.write_page", broken)
    says = r"table and page could not be made \(KeyError: 'a figure'\); the result is whole in .*results\.json"
    with pytest.raises(PatterningError, match=says):
        run_parentheses(load_config(TOY, "toy"), finished)
    assert numbers(finished) == before


def test_results_that_were_changed_are_not_shown(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    text = (finished / "results.json").read_text()
    path.write_text(text)
    read_results(RunFolder(tmp_path))
    for change in (text.replace("0.", "1.", 1), text[: len(text) // 2], "[]", "{}", "null", "\xff"):
        path.write_text(change, encoding="latin-1")
        with pytest.raises(PatterningError, match="run the experiment again, it resumes"):
            read_results(RunFolder(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "parentheses", "--preset", "huge"], "unknown preset 'huge'"),
        (["run", "circles"], "unknown experiment 'circles'"),
        (["run"], "name an experiment"),
        (["run", "--config", "missing.yaml"], "cannot be read"),
        (["report", "nowhere"], "is not a folder"),
        (["report", "."], "holds no config.yaml"),
        (["run", "parentheses", "--wrong-flag"], "No such option"),
    ],
)
def test_bad_commands_get_one_sentence_and_exit_code_2(
    arguments: list[str], says: str, tmp_path: Path, in_process: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = in_process(*arguments)
    assert answer.returncode == 2
    assert says in answer.stderr
    assert "Traceback" not in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": TOY["task"] | {"max_length": 9}}, "max_length is 9"),
        ({"task": TOY["task"] | {"max_length": 1000}}, "max_length is 1000"),
        ({"task": TOY["task"] | {"heads": 3}}, "not a multiple"),
        ({"solution_accuracy": 1.0, "train": TOY["train"] | {"steps": 41}}, "reached ID accuracy"),
    ],
)
def test_bad_settings_are_named_before_the_expensive_part(change: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(PatterningError, match=says):
        run_parentheses(load_config(TOY | change, "toy"), tmp_path / "run")


def test_configuration_errors_name_the_field() -> None:
    with pytest.raises(PatterningError, match=r"sampling\.chains"):
        load_config(TOY | {"sampling": TOY["sampling"] | {"chains": 1}}, "toy")
    with pytest.raises(PatterningError, match="extra"):
        load_config(TOY | {"extra": 1}, "toy")


def resumed(finished: Path, folder: Path, config: ParenthesesConfig, *, without: str = "nothing") -> None:
    """Run into a folder that holds the finished run's units, but for those whose name begins with `without`."""
    (folder / "units").mkdir()
    for unit in (finished / "units").iterdir():
        if not unit.name.startswith(without):
            shutil.copy(unit, folder / "units")
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run_parentheses(config, folder)


def test_unreliable_chi_is_refused_with_the_numbers(finished: Path, tmp_path: Path) -> None:
    config = load_config(TOY | {"force": False, "min_reliability": 1.0}, "toy")
    with pytest.raises(PatterningError, match=r"too unreliable to invert.*llc around nested: -?\d"):
        resumed(finished, tmp_path, config)


def test_diverged_chains_are_refused_by_name(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from patterning.experiments.parentheses import units

    monkeypatch.setattr(units, "LOSS_BAND", 0.0)  # every chain is past a band of zero
    with pytest.raises(PatterningError, match=r"diverged \(chain 0: mean minibatch loss"):
        resumed(finished, tmp_path, load_config(TOY, "toy"), without="chain")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, finished: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PatterningError, match="is not a run folder"):
        run_parentheses(load_config(TOY, "toy"), tmp_path)
    with pytest.raises(PatterningError, match="another configuration"):
        run_parentheses(load_config(TOY | {"seeds": 4}, "toy"), finished)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_valid(name: str) -> None:
    assert isinstance(preset_config(name), ParenthesesConfig)
