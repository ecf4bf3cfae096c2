"""The whole induction experiment at a toy size: resumes to the same numbers, re-renders, and refuses bad input."""

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
import torch
import yaml

from patterning.cli import main
from patterning.core.errors import PatterningError
from patterning.experiments.induction.config import load_config
from patterning.experiments.induction.presets import PRESETS, preset_config
from patterning.experiments.induction.run import run_induction
from patterning.models.language import LanguageModel

TINY = {"preset": "tiny", **PRESETS["tiny"]}


def numbers(folder: Path) -> dict:
    """Everything in the results that is a measurement, not a timing or a date."""
    results = json.loads((folder / "results.json").read_text())
    results.pop("provenance")
    return results


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    run_induction(load_config(TINY, "tiny"), folder)
    return folder


def test_results_hold_every_arm_paired(finished: Path) -> None:
    results = numbers(finished)
    arms = {arm["name"]: arm for arm in results["arms"]}
    assert {
        "unweighted",
        "structure-less",
        "structure-more",
        "mode-less",
        "mode-more",
        "permuted-less",
        "permuted-more",
        "random",
        "random-smooth",
    } <= set(arms)
    assert {"one-run", "first-mode", "heuristic-less", "heuristic-more", "gzip", "remove-code", "double-prose"} <= set(
        arms
    )
    base = arms.pop("unweighted")
    for arm in arms.values():
        pairs = len(arm["seeds"])
        leads = arm["name"] in {"structure-less", "structure-more", "permuted-less", "permuted-more"}
        assert pairs == (1 if arm["kind"] == "domain" else TINY["seeds"] if leads else TINY["other_seeds"])
        for i in range(pairs):  # same seed, same start: what is measured before the first step is the same
            assert arm["curves"][i]["loss"][0] == base["curves"][i]["loss"][0]
            assert arm["curves"][i]["loss"][-1] != base["curves"][i]["loss"][-1]
        effect = arm["effect"]["loss"]
        difference = np.mean(arm["measures"]["loss"]) - np.mean(base["measures"]["loss"][:pairs])
        assert effect["difference"] == pytest.approx(difference)
    # the same histogram of weights, dealt otherwise
    for name in ("permuted-more", "gzip"):
        assert arms[name]["notes"]["largest"] == pytest.approx(arms["structure-more"]["notes"]["largest"], rel=1e-6)
    for name in ("one-run", "structure-less"):  # ranked otherwise, at the same strength; ties share a rank
        assert arms[name]["notes"]["largest"] == pytest.approx(arms["structure-more"]["notes"]["largest"], rel=1e-3)
    assert [reading["stage"] for reading in results["readings"]] == ["before", "between", "after"]
    assert {row["domain"] for row in results["domains"]} == {"code", "docs", "prose"}
    assert {(row["direction"], row["alpha"]) for row in results["sweep"]} >= {("structure", 1.0), ("mode", 0.5)}
    assert {row["alpha"] for row in results["sweep"] if row["direction"] == "mode"} == {0.5}
    read = {one["name"]: one["readings"] for one in results["directions"] if "readings" in one}
    places = {name: [(one["seed"], one["step"]) for one in some] for name, some in read.items()}
    assert len({seed for seed, _ in places["structure"]}) >= 2
    assert [place for place in places["structure"] if place[0] == places["structure"][0][0]] == places["one-run"]


def test_page_is_self_contained_and_made_from_the_results_alone(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (finished / "report.html").read_text()
    assert "Write a circuit into a language model" in page
    assert "<script src=" not in page
    assert "<link" not in page
    (finished / "report.html").unlink()
    monkeypatch.setattr(sys, "argv", ["patterning", "report", str(finished)])
    main()
    names = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")  # plotly names its elements at random
    assert names.sub("", (finished / "report.html").read_text()) == names.sub("", page)


def test_a_run_killed_in_between_ends_with_the_same_numbers(
    finished: Path, tmp_path: Path, in_process: Callable
) -> None:
    """Of every stage, with the first direction's arms only: half of the time."""
    folder, file = tmp_path / "killed", tmp_path / "some.yaml"
    some = load_config(TINY | {"directions": ["structure"], "controls": ["permuted"]}, "tiny")
    file.write_text(yaml.safe_dump(some.model_dump(mode="json")))
    arguments = ["run", "--config", str(file), "--out", str(folder), "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "patterning.cli", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(folder.glob("units/*.safetensors"))) >= 12:
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "results.json").exists()
    answer = in_process(*arguments[:-1], "1")
    assert answer.returncode == 0, answer.stderr
    again, whole = numbers(folder), numbers(finished)
    for key in ("text", "pilot", "readings"):
        assert again[key] == whole[key]
    assert again["strengths"]["structure"] == whole["strengths"]["structure"]
    named = {arm["name"]: arm for arm in whole["arms"]}
    assert len(again["arms"]) == 5  # unweighted, two of the structure, two permuted
    for arm in again["arms"]:
        assert arm == named[arm["name"]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": TINY["model"] | {"heads": 3}}, "not a multiple"),
        ({"corpus": TINY["corpus"] | {"shares": {"poems": 1.0}}}, "poems"),
        ({"corpus": TINY["corpus"] | {"folder": "missing"}}, "missing is not a corpus"),
        ({"corpus": TINY["corpus"] | {"rows": 20_000, "repeat": False}}, "20000|rows of 24 tokens"),
        ({"domain_seeds": 4}, "domain_seeds"),
        ({"extra": 1}, "extra"),
        ({"other_seeds": 4}, "other_seeds"),
        ({"sweep": {"alphas_of": {"mode": []}}}, "alphas_of.mode"),
        ({"sweep": {"alphas": [-1.0]}}, "alphas.0: input should be greater than 0"),
    ],
)
def test_bad_settings_are_named_before_the_expensive_part(change: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(PatterningError, match=says):
        run_induction(load_config(TINY | change, "tiny"), tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("experiment: circles\n", "unknown experiment 'circles'"),
        ("experiment: induction\npreset: x\n", "corpus: field"),
    ],
)
def test_bad_files_get_one_sentence_and_exit_code_2(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["patterning", "run", "--config", "config.yaml"])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert says in error
    assert len(error.strip().splitlines()) == 1


def test_a_predictor_under_the_stated_r2_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "units").symlink_to(finished / "units")  # what was computed is found again
    (tmp_path / "corpus").symlink_to(finished / "corpus")
    only = {"directions": ("mode", "full"), "min_r2": 1.0}
    config = load_config(TINY | {"force": False} | only, "tiny")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with pytest.raises(PatterningError, match=r"no direction can be used .*induction mode, before: .*full χ†, after: "):
        run_induction(config, tmp_path)


def test_paper_preset_has_the_papers_parameter_count() -> None:
    with torch.device("meta"):
        model = LanguageModel(preset_config("paper").language)
    assert sum(p.numel() for p in model.parameters()) == 3_355_016


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_valid(name: str) -> None:
    assert preset_config(name).preset == name
