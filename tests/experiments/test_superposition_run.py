"""The whole experiment at a toy size: resumes to the same bits, re-renders, replays, and refuses bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from patterning.core.errors import PatterningError
from patterning.experiments.registry import find_experiment
from patterning.experiments.superposition.experiment import PRESETS
from patterning.experiments.superposition.subject import SuperpositionSubject
from patterning.tasks import superposition as toy

EXPERIMENT = find_experiment("superposition")
SAMPLING = PRESETS["demo"]["sampling"] | {"chains": 8, "steps": 500, "burn_in": 100}
TOY: dict[str, Any] = PRESETS["demo"] | {
    "preset": "toy",
    "train": {"steps": 300},
    "sampling": SAMPLING,
    "pilots": 12,
    "seeds": 10,
    "permuted_draws": 2,
    "force": True,
}
ASKS = {"hexagon": 0.6, "pentagon-3": 0.8}


def run(change: dict[str, Any], folder: Path) -> None:
    EXPERIMENT.run(EXPERIMENT.load(TOY | change, "toy"), folder, workers=1)


def numbers(folder: Path) -> dict:
    results = json.loads((folder / "results.json").read_text())
    results.pop("provenance")
    return results


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    run({}, folder)
    return folder


def test_results_hold_every_arm_with_intervals_and_predictions(finished: Path) -> None:
    results = numbers(finished)
    kinds = [arm["kind"] for arm in results["arms"]]
    asked = ["arm", "control", "control"]
    assert kinds == ["base", *asked, *asked, "heuristic", "partial", "partial", "heuristic", "partial"]
    for row in results["rows"]:
        assert len(row["values"]) == TOY["seeds"]
        assert row["mean"] == np.mean(row["values"])
        assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
    assert {(row["arm"], row["measure"]) for row in results["rows"]} == {
        (arm["name"], name) for arm in results["arms"] for name in ASKS
    }
    for one in results["foretold"]:
        assert [arm["name"] for arm in one["arms"]] == [arm["name"] for arm in results["arms"]]
        assert all(low <= share <= high for share, low, high in (arm["expected"] for arm in one["arms"]))
        assert one["agreement"]["arms"] == 7
    assert len(results["solutions"]) == 7
    # what is drawn is what was counted
    for arm in results["arms"]:
        states = toy.end_states(np.array(results["columns"][arm["name"]]))
        row = next(row for row in results["rows"] if row["arm"] == arm["name"] and row["measure"] == "pentagon-3")
        assert row["values"] == (states == toy.SOLUTIONS.index("pentagon-3")).tolist()


def test_arms_are_what_their_names_say(finished: Path) -> None:
    results = numbers(finished)
    rho = {arm["name"]: np.array([*arm["weight_by_group"].values()]) for arm in results["arms"]}
    gaps = {one["name"]: np.array(one["gap"]) for one in results["directions"]}
    assert len(rho) == 12
    for name, alpha in ASKS.items():
        np.testing.assert_allclose(rho[f"{name}, asked"], 1 + alpha * gaps[name])
        draws = [rho[f"{name}, permuted, draw {draw}"] for draw in (1, 2)]
        for dealt in draws:
            np.testing.assert_allclose(np.sort(dealt), np.sort(1 + alpha * gaps[name]))
            assert not np.allclose(dealt, 1 + alpha * gaps[name])
        assert not np.allclose(*draws)
    half = rho["heuristic: half of feature 3"].reshape(6, 4)
    np.testing.assert_allclose(half[2] / half[0], 0.5)
    np.testing.assert_allclose(rho["pentagon-3, frequencies held"].reshape(6, 4).mean(axis=1), 1)
    ramp = rho["heuristic: ramp towards large μ"] - 1
    rest = rho["hexagon, orthogonal to the ramp"] - 1
    assert ramp @ rest == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(rho["hexagon, orthogonal, reversed"], 1 - rest)
    for weights in rho.values():
        assert weights.mean() == pytest.approx(1)
        assert (weights > 0).all()


def test_predictions_are_on_disk_before_an_arm_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = SuperpositionSubject.train

    def spy(*arguments):
        seen.append(len(list((tmp_path / "run" / "units").glob("forecasts-*"))))
        return real(*arguments)

    monkeypatch.setattr(SuperpositionSubject, "train", spy)
    run({}, tmp_path / "run")
    assert seen == [0, *[1] * 12]  # the pilots before it, twelve arms after it


def test_training_moves_between_solutions_and_weights_change_their_shares() -> None:
    # the claim at a tenth of its size: a ramp makes hexagons, half of a feature kills it
    subject = SuperpositionSubject(("hexagon", "pentagon-3"), 300.0, 0.3, 2500, 200, 0.1)
    half = np.ones((6, 4))
    half[2] = 0.4
    shares = {}
    for name, rho in (("none", np.ones(24)), ("ramp", np.tile([0.4, 0.8, 1.2, 1.6], 6)), ("half", half.ravel())):
        runs = subject.train(rho, range(40), (), Path())
        shares[name] = {measure: values.mean() for measure, values in runs.measures.items()}
    assert 0.3 < shares["none"]["hexagon"] < 0.85
    assert shares["ramp"]["hexagon"] > shares["none"]["hexagon"] + 0.15
    assert shares["half"]["pentagon-3"] > 0.7
    assert shares["none"]["pentagon-3"] < 0.3


def test_page_opens_with_polygons_and_needs_nothing_else(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert len(page) < 2_000_000
    assert page.index("<polygon") < page.index("Predicted against realised")
    first = page[: page.index("Predicted against realised")]
    assert first.count("<polygon") >= 3 * TOY["seeds"]
    for outside in ("<script", "<link", "<img", "src=", "@import", "url("):
        assert outside not in page
    places = set(re.findall(r"https?://[^\s\"'<>)]+", page))
    assert places == {"http://www.w3.org/2000/svg"}  # the name of SVG, which nothing fetches
    assert (finished / "figure.svg").read_text().startswith("<svg")


def test_table_ends_with_two_sentences_and_is_the_same_twice(finished: Path, in_process: Callable) -> None:
    answers = [in_process("report", str(finished)) for _ in range(2)]
    assert answers[0].returncode == 0, answers[0].stderr
    assert answers[0].stdout == answers[1].stdout
    lines = answers[0].stdout.split("┘\n")[1].strip().replace("\n", " ")
    assert lines.count(". The shares under 7 sets of weights") == 1
    page = (finished / "report.html").read_text()
    assert len(numbers(finished)["findings"]) == 2
    for sentence in numbers(finished)["findings"]:
        assert sentence in page.replace("&#39;", "'")


@pytest.mark.long
def test_a_replay_killed_again_and_again_ends_with_the_same_numbers(
    finished: Path, tmp_path: Path, in_process: Callable
) -> None:
    folder, config = tmp_path / "killed", finished / "config.yaml"
    arguments = ["run", "--config", str(config), "--out", str(folder), "--workers"]
    units, done = folder / "units", -1
    for workers in ("2", "1"):
        process = subprocess.Popen(
            [sys.executable, "-m", "patterning.cli", *arguments, workers],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            now = len(list(units.glob("*.safetensors"))) if units.exists() else 0
            if now > done + 1:
                break
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done = len(list(units.glob("*.safetensors")))
        assert not (folder / "results.json").exists()
    assert done >= 2
    answer = in_process(*arguments, "1")
    assert answer.returncode == 0, answer.stderr
    assert numbers(folder) == numbers(finished)
    assert not list(units.glob("*.part"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"strengths": [{"policy": "linear", "alpha": 1.0}]}, r"strengths\.0: .*below 1 for linear weights"),
        ({"directions": ["hexagon", "hexagon"]}, "one is named twice"),
        ({"first_seed": 5}, "no seed may serve two purposes"),
        ({"sampling": SAMPLING | {"seed": 1003}}, "seeds 1000 to 1009 are for claims, and 1003 to 1003 for chains"),
        ({"sampling": SAMPLING | {"burn_in": 450}}, "at least 20 draws"),
        ({"n_beta": -1}, "n_beta"),
        ({"extra": 1}, "extra"),
    ],
)
def test_bad_configurations_name_the_field(change: dict, says: str) -> None:
    with pytest.raises(PatterningError, match=says):
        EXPERIMENT.load(TOY | change, "toy")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"directions": ["square"]}, "unknown directions square: there are hexagon, pentagon-1"),
        ({"force": False}, "hexagon, pentagon-3: the chains around the .* do not agree"),
        (
            {"n_beta": 100.0, "sampling": SAMPLING | {"localization": 0.1, "step_size": 2e-3, "steps": 2500}},
            r"only \d of 8 chains stayed at their solution \(.*: at the ",
        ),
        ({"sampling": SAMPLING | {"step_size": 0.05}}, r"only \d of 8 chains .* lower the step size"),
        (
            {"train": {"learning_rate": 0.99}, "n_beta": 2.0, "sampling": SAMPLING | {"localization": 2e3}},
            r"training runs overflowed: lower train\.learning_rate",
        ),
    ],
)
def test_what_cannot_be_trusted_is_refused(change: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(PatterningError, match=says) as error:
        run(change, tmp_path / "run")
    assert len(str(error.value).splitlines()) == 1


def test_bad_commands_get_one_sentence(
    tmp_path: Path, finished: Path, in_process: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(yaml.safe_load((finished / "config.yaml").read_text()) | {"seeds": 11}))
    for arguments, says in (
        (["run", "superposition", "--preset", "huge"], "unknown preset 'huge'"),
        (["run", "--config", str(other), "--out", str(finished)], "another configuration"),
    ):
        answer = in_process(*arguments)
        assert answer.returncode == 2
        assert says in answer.stderr
        assert len(answer.stderr.strip().splitlines()) == 1


def test_every_preset_is_valid() -> None:
    assert EXPERIMENT.default == "demo"
    for name in PRESETS:
        assert EXPERIMENT.preset(name).preset == name
