"""Fifty kills at random moments of `patterning response`; each resumed run ends with the same χ. By hand: -m slow."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from patterning.response.store import open_response

FILE = """
import torch
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.core.task import Task

def task():
    torch.manual_seed(0)
    tokens = torch.randint(7, (12, 6))
    return Task(LanguageModel(LanguageConfig(7, 6, 2, 2, 8)), next_token_losses, tokens)
"""
KILLS = 50


@pytest.mark.slow
def test_fifty_kills(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    arguments = ["response", f"{tmp_path / 'mine.py'}:task", "--n-beta", "30", "--localization", "1000",
                 "--step-size", "1e-4", "--draws", "20", "--burn-in", "10", "--batch-size", "4", "--workers", "1",
                 "--rounds", "1"]  # fmt: skip

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "patterning.cli", *arguments, "--out", str(out)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    begun = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    whole = time.monotonic() - begun
    truth = open_response(tmp_path / "whole" / "chi.zarr")["susceptibility"]["chi"].values
    rng = np.random.default_rng(0)
    kills, run = 0, 0
    while kills < KILLS:
        out = tmp_path / f"run{run}"
        process = start(out)
        try:
            assert process.wait(timeout=whole * rng.uniform(0.3, 1.1)) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            if not (out / "chi.zarr").exists():  # else it was killed after its work was done
                continue
        np.testing.assert_array_equal(open_response(out / "chi.zarr")["susceptibility"]["chi"].values, truth)
        run += 1
    assert start(tmp_path / f"run{run}").wait() == 0
    last = open_response(tmp_path / f"run{run}" / "chi.zarr")["susceptibility"]["chi"].values
    np.testing.assert_array_equal(last, truth)
