"""`patterning response` and `patterning llc` on a user's file: results, page, resume after kill -9, errors."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import patterning as pt
from patterning.console.request import load_task
from patterning.response.store import open_response

FILE = """
import torch
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.core.task import Task

def task():
    torch.manual_seed(0)
    tokens = torch.randint(7, (12, 6))
    return Task(LanguageModel(LanguageConfig(7, 6, 2, 2, 8)), next_token_losses, tokens)

def one_layer():
    torch.manual_seed(0)
    tokens = torch.randint(7, (12, 6))
    return Task(LanguageModel(LanguageConfig(7, 6, 1, 2, 8)), next_token_losses, tokens)

def number():
    return 3
"""
SETTINGS = ["--n-beta", "30", "--localization", "1000", "--step-size", "1e-4", "--draws", "8", "--burn-in", "4",
            "--batch-size", "4", "--rounds", "1"]  # fmt: skip


@pytest.fixture
def where(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FILE)
    return f"{tmp_path / 'mine.py'}:task"


@pytest.mark.long
def test_response_of_every_component_killed_and_resumed(where: str, tmp_path: Path, in_process: Callable) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    line = ["response", where.replace(":task", ":one_layer"), *SETTINGS, "--probes", "5"]
    answer = in_process(*line, "--out", str(first), "--workers", "1")
    assert answer.returncode == 0, answer.stderr
    assert "l0h1" in answer.stdout
    tree = open_response(first / "chi.zarr")["susceptibility"]
    assert tree["chi"].shape == (5, 1, 25)  # embed, 2 heads, an MLP, unembed; 5 rows of 5 tokens
    assert sorted(set(tree["row"].values.tolist())) == [0, 2, 4, 7, 9]
    page = (first / "report.html").read_text()
    assert "<script src=" not in page
    assert "Spectrum and its noise floor" in page
    assert "antithetic chains" in page  # the default
    assert open_response(first / "chi.zarr")["susceptibility"].attrs["chains_antithetic"] == 1
    assert json.loads((first / "results.json").read_text())["table"][0]["component"] == "embed"

    process = subprocess.Popen(
        [sys.executable, "-m", "patterning.cli", *line, "--out", str(again), "--workers", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300  # against hanging for ever: a loaded machine is slow
    while process.poll() is None and len(list((again / "units").glob("*.safetensors"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (again / "chi.zarr").exists()
    answer = in_process(*line, "--out", str(again), "--workers", "2")
    assert answer.returncode == 0, answer.stderr
    np.testing.assert_array_equal(open_response(again / "chi.zarr")["susceptibility"]["chi"], tree["chi"])


def test_llc_and_a_dry_run(where: str, tmp_path: Path, in_process: Callable) -> None:
    settings = SETTINGS[:-2]
    answer = in_process(
        "llc", where, *settings, "--out", str(tmp_path / "llc"), "--workers", "1", "--components", "full,l0h0",
        "--steps-between-draws", "0",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "±" in answer.stdout
    assert "steps between draws, the median of full" in answer.stdout
    results = json.loads((tmp_path / "llc" / "results.json").read_text())
    steps = [one["steps"] for one in results["spacing"]]
    assert len(steps) == 2
    assert results["request"]["steps_between_draws"] == int(np.median(steps)) >= 1
    answer = in_process(
        "response", where, *SETTINGS, "--out", str(tmp_path / "dry"), "--dry-run", "--components", "l0h0",
        "--steps-between-draws", "0",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "all components:" in answer.stdout
    assert "assumed here: 4" in answer.stdout
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["response", "nowhere.py:task", *SETTINGS], "does not name a function"),
        (["response", "{}:missing", *SETTINGS], "has no function missing"),
        (["response", "{}:number", *SETTINGS], "returned a int: it must return a Task"),
        (["response", "{}:task", *SETTINGS, "--components", "l7h0"], "2 layers of 2 heads"),
        (["response", "{}:task", *SETTINGS, "--probes", "99"], "there are 12 rows"),
        (["response", "{}:task", *SETTINGS, "--estimator", "magic"], "'magic' is not one of"),
        (["response", "{}:task", *SETTINGS, "--phi", "magic"], "'magic' is not one of probes, data"),
        (
            ["response", "{}:task", *SETTINGS, "--phi", "data", "--estimator", "covariance"],
            "as the pathwise estimator alone can",
        ),
        (["llc", "{}:task", "--n-beta", "30", "--localization", "0", "--step-size", "1"], "localization is 0"),
    ],
)
def test_bad_requests_get_one_sentence_and_exit_code_2(
    arguments: list[str], says: str, where: str, tmp_path: Path, in_process: Callable
) -> None:
    file = where.rpartition(":")[0]
    answer = in_process(*[part.format(file) for part in arguments], "--out", str(tmp_path / "run"))
    assert answer.returncode == 2
    assert says in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


@pytest.mark.long
def test_settings_are_calibrated_and_a_first_look_samples_nothing(
    where: str, tmp_path: Path, in_process: Callable
) -> None:
    """The same numbers as from Python, to the last bit."""
    task = load_task(where.replace(":task", ":one_layer"))
    out = tmp_path / "look"
    line = ["measure", where.replace(":task", ":one_layer"), "--components", "l0h1", "--sampler", "calibrate"]
    answer = in_process(*line, "--estimator", "first-order", "--probes", "5", "--out", str(out), "--workers", "1")
    assert answer.returncode == 0, answer.stderr
    assert "calibrated: nβ" in answer.stderr
    stored = pt.load(out)
    request = json.loads((out / "results.json").read_text())["request"]
    sampler = pt.SGLD(request["n_beta"], request["localization"], request["step_size"])
    look = pt.measure(
        task, components="l0h1", sampler=sampler, estimator="first-order", probes=[0, 2, 4, 7, 9], progress=False
    )
    assert np.array_equal(stored.chi, look.chi)
    assert f"γ {request['localization']:.3g}" in stored.calibration
    assert "it seems untrained" in stored.warnings[0]
    again = in_process(*line, "--estimator", "first-order", "--probes", "5", "--out", str(out), "--workers", "1")
    assert again.returncode == 0, again.stderr
    assert "calibrated: nβ" not in again.stderr  # χ is there: nothing is looked for again


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--sampler", "calibrate", "--n-beta", "3"], "leave --n-beta"),
        (["--n-beta", "3"], "--sampler calibrate finds them"),
        (["--sampler", "nuts"], "not one of sgld, calibrate"),
    ],
)
def test_a_sampler_without_its_numbers_is_refused(
    where: str, tmp_path: Path, in_process: Callable, given: list[str], said: str
) -> None:
    answer = in_process("measure", where, *given, "--out", str(tmp_path / "out"))
    assert answer.returncode == 2
    assert said in " ".join(answer.stderr.split())
