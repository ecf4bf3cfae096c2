"""One thread for each process, and hypothesis examples that are the same on every machine.

Seeds are stated in each test.
"""

import gc
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy is imported: its threads wait in a loop that costs a core

import signal
import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

os.environ["PATTERNING_CHECK_SHAPES"] = "1"  # before the package is imported

import torch
from hypothesis import settings

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script: tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("patterning", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("patterning")


def pytest_collection_finish() -> None:
    """What imports have made stays to the end. Garbage collections leave it out, which took 0.3 s each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., CompletedProcess]:
    """`patterning …` in this process, which saves the seconds that a process takes to import torch."""
    from patterning.cli import main

    def run(*arguments: str) -> CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["patterning", *arguments])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capsys.readouterr()
        try:
            status = main() or 0
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return CompletedProcess(arguments, status, out, err)

    return run
