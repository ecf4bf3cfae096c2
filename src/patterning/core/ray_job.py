"""What runs on the machines of a Ray cluster: one job, and what a machine must have in common with the driver.

This module is imported there by `ray_cluster`'s remote functions, which bring the driver's import path with them.
"""

import logging
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from patterning.core.cluster import OTHER
from patterning.core.code import code_version
from patterning.core.pieces import Bytes
from patterning.core.store import Arrays, RunFolder, Work, perform
from patterning.core.worker import Notes, answer

EVERY = 1.0
"""Seconds between two reports of progress from one job: hundreds of them may report to one driver."""
_log = logging.getLogger("patterning")


@cache
def versions() -> dict[str, str]:
    """What must be the same where jobs are made and where they run, or numbers and pickles differ."""
    import torch

    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "torch": torch.__version__,
        "numpy": np.__version__.partition(".")[0],
        "patterning": code_version(),
    }


def difference(wanted: Mapping[str, str]) -> str | None:
    """In words, what this machine has in another version than the driver; None where there is nothing."""
    here = versions()
    other = [name for name in wanted if here[name] != wanted[name]]
    if not other:
        return None
    words = [f"{name} {here[name]} there, {wanted[name]} here" for name in other if name != "patterning"]
    words += ["another version of patterning there"] if "patterning" in other else []
    return f"{', '.join(words)}: install the same on all machines"


def perform_job(
    frame: bytes, pieces: Mapping[str, Bytes], wanted: Mapping[str, str], hear: Callable[[float], None],
    folder: str | None,
) -> tuple[Sequence[str], tuple[Any, ...]]:  # fmt: skip
    """Notes of the package, and how it went (`worker.answer`); the result is among it unless `folder` is given.

    `folder`: the run folder, on a disk that this machine shares; the result is written there.
    """
    import torch

    from patterning.core.shipping import load

    if (why := difference(wanted)) is not None:
        return (), (OTHER, why)
    torch.set_num_threads(1)
    notes: list[str] = []
    handler = Notes(notes.append)
    before, _log.propagate = _log.propagate, False
    _log.addHandler(handler)
    try:
        message = answer(lambda: load(frame, pieces), lambda unit: _result(unit, folder), _seldom(hear))
    finally:
        _log.removeHandler(handler)
        _log.propagate = before
    return notes, message


def _result(unit: Work, folder: str | None) -> Arrays | None:
    if folder is not None:
        RunFolder(Path(folder)).compute(unit)
        return None
    with tempfile.TemporaryDirectory(prefix="patterning-") as scratch:
        return perform(unit, Path(scratch) / "state")


def _seldom(hear: Callable[[float], None]) -> Callable[[float], None]:
    """The first report at once, others as far as they come `EVERY` so often."""
    due = 0.0

    def heard(fraction: float) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + EVERY
            hear(fraction)

    return heard


def remote_code() -> tuple[Any, Any, Any]:
    """What machines run: functions inside of a function are sent by value, and import nothing to begin with."""

    def follow(origin: tuple[list[str], list[str], str]) -> None:
        """Import what the driver would, from where it would, as far as that is on this machine."""
        import os
        import sys

        path, arguments, folder = origin
        there = [entry for entry in path if os.path.exists(entry)]
        sys.path[:] = there + [entry for entry in sys.path if entry not in there]
        sys.argv[:] = arguments
        if os.path.isdir(folder):
            os.chdir(folder)

    def job(origin, number, frame, wanted, folder, board, names, *pieces):
        import ray  # pyright: ignore[reportMissingImports] (these machines have it)

        follow(origin)
        from patterning.core.ray_job import perform_job

        def hear(fraction: float) -> None:
            board.say.remote(number, fraction)

        notes, message = perform_job(frame, dict(zip(names, pieces, strict=True)), wanted, hear, folder)
        return ray.get_runtime_context().get_node_id(), notes, message

    def probe(origin, wanted, token):
        follow(origin)
        import os

        from patterning.core.ray_job import difference

        if token is not None and not os.path.exists(token):
            return f"it does not see {token}: with shared=True the run folder must be on a disk that all machines share"
        return difference(wanted)

    class Board:
        """Fractions of jobs in work, by number, until the driver takes them."""

        def __init__(self) -> None:
            self.news: dict[int, float] = {}

        def say(self, number: int, fraction: float) -> None:
            self.news[number] = fraction

        def take(self) -> dict[int, float]:
            news, self.news = self.news, {}
            return news

    return job, probe, Board
