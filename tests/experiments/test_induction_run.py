"""The whole induction experiment at a toy size: resumes to the same numbers, re-renders, and refuses bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from patterning.cli import main
from patterning.core.errors import PatterningError
from patterning.experiments.induction.settings import PRESETS
from patterning.experiments.registry import find_experiment

TINY = {"preset": "tiny", **PRESETS["tiny"]}
INDUCTION = find_experiment("induction")
SOME = TINY | {"directions": ["structure"], "controls": []}


def numbers(folder: Path) -> dict:
    """Everything in the results that is a measurement, not a timing or a date."""
    results = json.loads((folder / "results.json").read_text())
    results.pop("provenance")
    return results


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    INDUCTION.run(INDUCTION.preset("tiny"), folder, workers=1)
    return folder


@pytest.mark.long
def test_results_hold_every_arm_paired(finished: Path) -> None:
    results = numbers(finished)
    lead = {f"structure → {way} induction{end}" for way in ("more", "less") for end in ("", ", permuted")}
    beside = {
        "mode → more induction", "mode → less induction", "random direction", "random function of activations",
        "structure of one run", "largest other mode", "induction label → more", "induction label → less",
        "compressible rows (gzip)",
    }  # fmt: skip
    domains = {f"{change} {name}" for change in ("remove", "double") for name in ("code", "docs", "prose")}
    arms = {arm["name"]: arm for arm in results["arms"]}
    assert {"unweighted", *lead, *beside, *domains} <= set(arms)
    rows = {(row["arm"], row["measure"]): row for row in results["rows"]}
    base = arms.pop("unweighted")
    for name, arm in arms.items():
        pairs = len(arm["seeds"])
        assert pairs == (TINY["seeds"] if name in lead else 1)
        guard = results["subject"]["guarded"]
        for i in range(pairs):  # same seed, same start: what is measured before the first step is the same
            assert arm["curves"][guard][i][0] == base["curves"][guard][i][0]
            assert arm["curves"][guard][i][-1] != base["curves"][guard][i][-1]
    for name in lead:
        values, other = rows[name, "loss"]["values"], rows["unweighted", "loss"]["values"]
        found = rows[name, "loss"]["against_unweighted"]["difference"]
        assert found == pytest.approx(np.mean(np.subtract(values, other)))
    size = arms["structure → more induction"]["facts"]["effective_sample_size"]
    for name in ("compressible rows (gzip)", "random direction", "structure → more induction, permuted"):
        assert arms[name]["facts"]["effective_sample_size"] == pytest.approx(size, rel=1e-6)
    more = arms["structure → more induction"]
    assert more["controls"] == ["structure → more induction, permuted"]
    assert (more["wanted"]["gap_area"], more["wanted"]["onset"]) == (1.0, -1.0)  # more induction is sooner
    assert arms["structure → less induction"]["wanted"]["onset"] == 1.0


@pytest.mark.long
def test_results_hold_what_was_read(finished: Path) -> None:
    results = numbers(finished)
    read = {one["name"]: one for one in results["directions"]}
    places = [(one["seed"], one["step"]) for one in read["structure"]["readings"]]
    assert len({seed for seed, _ in places}) >= 2
    assert len(places) == 2 * len({seed for seed, _ in places})
    assert {(row["direction"], row["strength"]) for row in results["strengths"]} == {
        ("structure", "rank-tilt 0.5"), ("structure", "rank-tilt 1")
    }  # fmt: skip
    (after,) = results["components"]
    assert after["stage"] == "after"
    assert after["names"] == ["embed", "l0h0", "l0h1", "l1h0", "l1h1", "unembed"]
    assert {row["group"] for row in results["domains"]} == {"code", "docs", "prose"}
    shifts = {row["arm"]: row for row in results["percent"] if row["against"] == "unweighted"}
    onset = {row["arm"]: row["values"] for row in results["rows"] if row["measure"] == "onset"}
    name = "structure → less induction"
    wanted = 100 * (np.divide(onset[name], onset["unweighted"]) - 1)
    assert shifts[name]["onset"]["difference"] == pytest.approx(wanted.mean())


@pytest.mark.long
def test_page_is_self_contained_and_made_from_the_results_alone(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (finished / "report.html").read_text()
    for heading in ("When induction comes", "Modes of χ", "χ by domain against retraining", "Text coloured"):
        assert heading in page
    assert "<script" not in page
    assert "<link" not in page
    (finished / "report.html").unlink()
    monkeypatch.setattr(sys, "argv", ["patterning", "report", str(finished)])
    main()
    assert (finished / "report.html").read_text() == page


@pytest.mark.long
def test_a_run_killed_in_between_ends_with_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    """With the first direction's arms only, which do not depend on what else is asked for."""
    folder, file = tmp_path / "killed", tmp_path / "some.yaml"
    some = INDUCTION.load(SOME, "tiny")
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
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "results.json").exists()
    stored = {path.name: path.stat().st_mtime_ns for path in folder.glob("units/*.safetensors")}
    assert len(stored) >= 12
    INDUCTION.run(some, folder, workers=1)
    again, whole = numbers(folder), numbers(finished)
    assert again["pilots"] == whole["pilots"]
    assert again["strengths"] == whole["strengths"]
    assert again["directions"] == [one for one in whole["directions"] if one["name"] == "structure"]
    assert len(again["arms"]) == 5  # unweighted, two of the structure, two permuted
    for key, name in (("arms", "name"), ("rows", "arm")):
        named = {arm["name"] for arm in again["arms"]}
        assert again[key] == [one for one in whole[key] if one[name] in named]
    every = {path.name: path.stat().st_mtime_ns for path in folder.glob("units/*.safetensors")}
    assert len(stored) < len(every)
    assert stored.items() <= every.items()  # what was finished was not computed again
    assert not [name for name in every if name.startswith(("component", "predict"))]  # χ of none was asked for
    assert again["components"] == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"corpus": TINY["corpus"] | {"shares": {"poems": 1.0}}}, "poems"),
        ({"corpus": TINY["corpus"] | {"folder": "missing"}}, "missing is not a corpus"),
        ({"corpus": TINY["corpus"] | {"rows": 20_000, "repeat": False}}, "20000|rows of 24 tokens"),
        ({"directions": ["structure", "sideways"]}, "unknown directions sideways"),
    ],
)
def test_bad_text_is_named_before_the_expensive_part(change: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(PatterningError, match=says):
        INDUCTION.run(INDUCTION.load(TINY | change, "tiny"), tmp_path / "run", workers=1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("experiment: circles\n", "unknown experiment 'circles'"),
        ("experiment: induction\npreset: x\n", "field required"),
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


@pytest.mark.long
def test_a_predictor_under_the_stated_r2_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "units").symlink_to(finished / "units")  # what was computed is found again
    (tmp_path / "corpus").symlink_to(finished / "corpus")
    config = INDUCTION.load(TINY | {"force": False, "directions": ("mode", "full"), "min_r2": 1.0}, "tiny")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with pytest.raises(PatterningError, match=r"no reading gives a direction \(mode: .*; full: .*\); --force"):
        INDUCTION.run(config, tmp_path, workers=1)
