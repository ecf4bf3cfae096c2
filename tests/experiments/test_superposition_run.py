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

import numpy as np
import pytest
import yaml

from patterning.core.errors import PatterningError
from patterning.experiments import superposition
from patterning.experiments.registry import find_experiment
from patterning.experiments.superposition import PRESETS, load_config, plan_arms, preset_config, run_superposition
from patterning.experiments.superposition_text import verdict
from patterning.tasks import superposition as toy

TOY = {
    "preset": "toy",
    "train": {"steps": 300},
    "sampling": {"chains": 8, "steps": 500, "burn_in": 100, "steps_between_draws": 10},
    "pilot_seeds": 12,
    "seeds": 10,
    "permuted": 2,
    "force": True,
}


def numbers(folder: Path) -> dict:
    results = json.loads((folder / "results.json").read_text())
    results.pop("provenance")
    return results


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    run_superposition(load_config(TOY, "toy"), folder, workers=1)
    return folder


def test_results_hold_every_arm_with_intervals_and_predictions(finished: Path) -> None:
    results = numbers(finished)
    kinds = [arm["kind"] for arm in results["arms"]]
    assert kinds == [
        "unweighted",
        "ask",
        "ask",
        *["permuted"] * 4,
        "heuristic",
        "partial",
        "partial",
        "heuristic",
        "partial",
    ]
    for arm in results["arms"]:
        rho = np.array(arm["rho"])
        assert rho.mean() == pytest.approx(1)
        assert (rho > 0).all()
        assert len(arm["states"]) == TOY["seeds"]
        for name in ("hexagon", "pentagon-3"):
            outcome = arm["outcomes"][name]
            assert outcome["share"] == np.mean(np.array(arm["states"]) == toy.SOLUTIONS.index(name))
            assert 0 <= outcome["low"] <= outcome["share"] <= outcome["high"] <= 1
            assert outcome["predicted"]["low"] <= outcome["predicted"]["share"] <= outcome["predicted"]["high"]
    assert [fit["arms"] for fit in results["agreement"]] == [7, 7]
    assert len(results["solutions"]) == 7


def test_arms_are_what_their_labels_say() -> None:
    rng = np.random.default_rng(0)
    s = rng.normal(size=24)
    s = (s - s.mean()) / np.abs(s - s.mean()).max()
    arms = plan_arms(preset_config("demo"), {"hexagon": s, "pentagon-3": -s})
    by_label = {arm.label: arm.rho for arm in arms}
    assert len(arms) == 14
    np.testing.assert_allclose(by_label["hexagon, asked"], 1 + 0.6 * s)
    np.testing.assert_allclose(by_label["pentagon-3, asked"], 1 - 0.8 * s)
    for draw in (1, 2, 3):
        dealt = by_label[f"hexagon, permuted, draw {draw}"]
        np.testing.assert_allclose(np.sort(dealt), np.sort(1 + 0.6 * s))
        assert not np.allclose(dealt, 1 + 0.6 * s)
    half = by_label["heuristic: half of feature 3"].reshape(6, 4)
    np.testing.assert_allclose(half[2] / half[0], 0.5)
    held = by_label["pentagon-3, frequencies held"].reshape(6, 4)
    np.testing.assert_allclose(held.mean(axis=1), 1)
    ramp = by_label["heuristic: ramp towards large μ"] - 1
    rest = by_label["hexagon, orthogonal to the ramp"] - 1
    assert ramp @ rest == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(by_label["hexagon, orthogonal, reversed"], 1 - rest)
    for rho in by_label.values():
        assert rho.mean() == pytest.approx(1)


def test_predictions_are_on_disk_before_an_arm_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = superposition.train_unit

    def spy(**arguments):
        seen.append(len(list((tmp_path / "run" / "units").glob("predictions-*"))))
        return real(**arguments)

    spy.__qualname__, spy.__module__ = real.__qualname__, real.__module__
    monkeypatch.setattr(superposition, "train_unit", spy)
    run_superposition(load_config(TOY, "toy"), tmp_path / "run", workers=1)
    assert seen == [0, 0, *[1] * 12]  # two pilot units before it, twelve arms after it


def test_training_moves_between_solutions_and_weights_change_their_shares() -> None:
    # the claim at a tenth of its size: a ramp makes hexagons, half of a feature kills it
    train = superposition.TrainSettings(steps=2500).model_dump()
    half = np.ones((6, 4))
    half[2] = 0.4
    shares = {}
    for name, rho in (("none", np.ones(24)), ("ramp", np.tile([0.4, 0.8, 1.2, 1.6], 6)), ("half", half.ravel())):
        unit = superposition.train_unit(rho=rho, n_beta=300.0, train=train, seeds=range(40), scratch=Path())
        shares[name] = np.bincount(unit["states"], minlength=8) / 40
    assert 0.3 < shares["none"][0] < 0.85
    assert shares["ramp"][0] > shares["none"][0] + 0.15
    assert shares["half"][3] > 0.7
    assert shares["none"][3] < 0.3


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
    assert lines.count(". The shares under all 7 sets of weights") == 1
    page = (finished / "report.html").read_text()
    for sentence in verdict(numbers(finished)):
        assert sentence in page.replace("&#39;", "'")


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
        ({"asks": [{"target": "square", "alpha": 0.5}]}, r"asks\.0\.target"),
        ({"asks": [{"target": "hexagon", "alpha": 1.0}]}, r"asks\.0\.alpha"),
        ({"asks": [{"target": "hexagon", "alpha": 0.5}] * 2}, "different targets"),
        ({"first_seed": 5}, "pilot runs must not be counted again"),
        ({"sampling": TOY["sampling"] | {"seed": 1003}}, "must not be the seed of a training run"),
        ({"sampling": TOY["sampling"] | {"burn_in": 450}}, "at least 20 draws"),
        ({"n_beta": -1}, "n_beta"),
        ({"extra": 1}, "extra"),
    ],
)
def test_bad_configurations_name_the_field(change: dict, says: str) -> None:
    with pytest.raises(PatterningError, match=says):
        load_config(TOY | change, "toy")


def settings(**sampling: float) -> dict:
    return TOY["sampling"] | sampling


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"force": False}, "do not agree"),
        (
            {"n_beta": 100.0, "sampling": settings(localization=0.1, step_size=2e-3, steps=2500)},
            r"only \d of 8 chains stayed at their solution \(.*: at the ",
        ),
        ({"sampling": settings(step_size=0.05)}, r"only \d of 8 chains .* lower the step size"),
        (
            {"train": {"learning_rate": 0.99}, "n_beta": 2.0, "sampling": settings(localization=2e3, step_size=1e-4)},
            r"training runs overflowed: lower train\.learning_rate",
        ),
    ],
)
def test_what_cannot_be_trusted_is_refused(change: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(PatterningError, match=says):
        run_superposition(load_config(TOY | change, "toy"), tmp_path / "run")


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


def test_registry_serves_a_single_file() -> None:
    experiment = find_experiment("superposition")
    assert experiment.default == "demo"
    assert experiment.run is run_superposition
    for name in PRESETS:
        assert experiment.preset(name).preset == name
