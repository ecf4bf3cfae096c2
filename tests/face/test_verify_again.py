"""`verify` again in the same folder: after a kill, with other wishes, with another train."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from zoo.known_training import along, train

import patterning as pt

SCRIPT = """
import os, signal, sys
from pathlib import Path
import numpy as np
import patterning as pt

HERE = Path(sys.argv[1])

def train(weights, seed):
    with (HERE / "calls").open("a") as file:
        file.write("x")
    if (HERE / "die").exists() and len((HERE / "calls").read_text()) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(np.random.default_rng(seed).standard_normal() + weights.rho[0])

weights = pt.Weights.of_rows([1.5, 1.0, 0.5])
evidence = pt.verify(train, {"up": weights}, {"y": lambda result: result}, range(6), out=HERE / "run")
evidence.to_json(HERE / "evidence.json")
"""


@pytest.mark.long
def test_killed_in_the_middle_it_goes_on_to_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    monkeypatch.setattr(sys, "argv", ["mine.py", str(whole)])
    runpy.run_path(str(script))
    (killed / "die").touch()
    line = [sys.executable, str(script), str(killed)]
    assert subprocess.run(line, check=False, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert len(list((killed / "run" / "units").glob("*.safetensors"))) == 9
    assert not (killed / "evidence.json").exists()
    os.remove(killed / "die")
    assert subprocess.run(line, check=False, stderr=subprocess.DEVNULL).returncode == 0
    assert len((killed / "calls").read_text()) == 21  # 18 runs, the first once more in each call, and the one that died
    assert (killed / "evidence.json").read_bytes() == (whole / "evidence.json").read_bytes()


FACTORS = {"scale": 1.0, "shift": 0.0}


def scaled(weights: pt.Weights, seed: int) -> float:
    return train(weights, seed)["tilt"] * FACTORS["scale"] + FACTORS["shift"]


def test_other_wishes_cost_no_run_and_another_train_says_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    units, reads = tmp_path / "run" / "units", lambda run: run
    for wanted in ({}, {"up": {"y": 1}}, {"up": {"y": -1}}):
        measure = pt.Measure(reads, unit="nats" if wanted else "")
        found = pt.verify(scaled, {"up": along(0.8)}, {"y": measure}, range(6), out=tmp_path / "run", wanted=wanted)
        assert len(list(units.iterdir())) == 18 + 1  # the first is made once more
    assert found.verdicts["up", "y"].finding == "steers the other way"
    assert caplog.messages == []
    monkeypatch.setitem(FACTORS, "scale", 2.0)
    pt.verify(scaled, {"up": along(0.8)}, {"y": reads}, range(6), out=tmp_path / "run")
    assert len(list(units.iterdir())) == 38
    (said,) = caplog.messages
    assert "nothing of the finished work" in said
    assert "(19 pieces) fits this call" in said
    assert "what differs from the last call: train → FACTORS['scale']. What is there is kept" in said
