"""Ctrl-C and kill, sent to real processes: the exit status, the sentence, and workers that leave at once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from patterning.console.stopping import Stopped, stoppable
from patterning.response.store import open_response

FILE = """
import os, time
from pathlib import Path
import torch
from torch import nn
from torch.nn import functional as F
from patterning.core.task import Task

HERE = Path(__file__).parent
def loss(call, b):
    (HERE / f"pid-{os.getpid()}").touch()
    if (HERE / "slow").exists():
        time.sleep(0.02)
    return F.cross_entropy(call(b[0]), b[1], reduction="none")
def task():
    torch.manual_seed(0)
    data = (torch.randn(16, 3), torch.randint(2, (16,)))
    return Task(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), loss, data)
"""
SENTENCE = "stopped: the same command goes on from here"


def command(folder: Path, workers: int) -> list[str]:
    settings = ["--n-beta", "30", "--localization", "100", "--step-size", "1e-4", "--draws", "40", "--batch-size", "4",
                "--estimator", "covariance"]  # fmt: skip
    return [
        sys.executable, "-m", "patterning.cli", "response", str(folder / "mine.py:task"), *settings, "--rounds", "1",
        "--components", "0.weight,0.bias,1.weight", "--out", str(folder / "run"), "--workers", str(workers),
    ]  # fmt: skip


def begin(folder: Path, line: list[str]) -> subprocess.Popen[str]:
    """Start, and wait until chains are being sampled."""
    (folder / "mine.py").write_text(FILE)
    (folder / "slow").touch()
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    wanted = 2 if line[-1] == "2" else 1  # the parent makes the task, and tries it
    while len([pid for pid in sampling(folder) if pid != process.pid or line[-1] == "1"]) < wanted:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    return process


def sampling(folder: Path) -> set[int]:
    return {int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")}


def assert_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + 3
    for pid in pids:
        while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z":
            assert time.monotonic() < deadline, f"process {pid} goes on"
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "group", "status", "workers"),
    [
        (signal.SIGINT, True, 130, 1),
        pytest.param(signal.SIGINT, False, 130, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, 143, 2, marks=pytest.mark.long),
    ],
)
def test_a_stop_says_so_and_everything_leaves(
    number: signal.Signals, group: bool, status: int, workers: int, tmp_path: Path
) -> None:
    process = begin(tmp_path, command(tmp_path, workers))
    begun = time.monotonic()
    (os.killpg if group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < 5
    assert process.returncode == status
    assert err.strip().splitlines()[-1] == SENTENCE
    assert "Traceback" not in err
    assert out == ""
    assert_gone(sampling(tmp_path))


@pytest.mark.long
def test_a_second_ctrl_c_neither_hangs_nor_complains(tmp_path: Path) -> None:
    process = begin(tmp_path, command(tmp_path, 2))
    for _ in range(20):
        try:
            os.killpg(process.pid, signal.SIGINT)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert_gone(sampling(tmp_path))


BUSY = """
import hashlib, sys
from patterning.console.shell import Output, main_of
def command():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes outside of Python, where no handler runs
sys.exit(main_of(command, Output()))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_does_not_wait_for_what_is_not_python(number: int, status: int) -> None:
    line = [sys.executable, "-c", BUSY]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    time.sleep(0.2)
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)  # at once: the same, sent twice
    time.sleep(0.8)
    assert process.poll() is None
    begun = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - begun < 5
    assert process.returncode == status
    assert "Traceback" not in err


@pytest.mark.long
def test_a_stopped_command_goes_on_and_ends_with_the_same_numbers(tmp_path: Path, in_process: Callable) -> None:
    """In a shell, where nothing after it runs; then again, beside a run that was never stopped."""
    (tmp_path / "stopped").mkdir()
    (tmp_path / "whole").mkdir()
    folder = tmp_path / "stopped"
    words = " ".join(f"'{word}'" for word in command(folder, 2))
    process = begin(folder, ["bash", "-c", f"{words} && touch {folder}/next", "2"])
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert not (folder / "next").exists()
    assert not (folder / "run" / "chi.zarr").exists()
    (folder / "slow").unlink()
    (tmp_path / "whole" / "mine.py").write_text(FILE)
    for place, workers in ((folder, 2), (tmp_path / "whole", 1)):
        done = in_process(*command(place, workers)[3:])
        assert done.returncode == 0, done.stderr
    chis = [
        open_response(tmp_path / name / "run" / "chi.zarr")["susceptibility"]["chi"] for name in ("stopped", "whole")
    ]
    np.testing.assert_array_equal(*chis)


def test_signals_raise_and_handlers_are_put_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with pytest.raises(Stopped) as found, stoppable():
            signal.raise_signal(number)
        assert found.value.status == status
        assert {number: signal.getsignal(number) for number in before} == before


def test_what_the_shell_made_deaf_stays_deaf() -> None:
    """SIGINT is ignored in a job that a script puts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
