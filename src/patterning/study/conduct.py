"""The run folder of an experiment: opened, kept from others, filled with results that say where they come from."""

import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from patterning.core.errors import PatterningError
from patterning.core.executors import Executor
from patterning.core.locks import NAME, cannot_use
from patterning.core.plain import Document
from patterning.core.settings import C, Settings
from patterning.core.store import RunFolder, as_json, write_json, write_whole
from patterning.core.workers import Progress, one_thread


def check_folder(config: Settings, folder: Path, read: Callable[[Path], Any]) -> None:
    """Raise `PatterningError` where `folder` holds a run of another configuration, or something else."""
    path = folder / "config.yaml"
    if path.exists():
        if read(path).model_copy(update={"force": config.force}) != config:
            raise PatterningError(f"{folder} holds a run of another configuration: name another folder with --out")
    elif folder.exists() and (not folder.is_dir() or _holds_something(folder)):
        raise PatterningError(f"{folder} exists and is not a run folder: name another one with --out")


def _holds_something(folder: Path) -> bool:
    """Whether there is more in the folder than the lock of a run that was killed before it began."""
    try:
        return any(entry.name != NAME and entry.suffix != ".part" for entry in folder.iterdir())
    except OSError as error:
        raise cannot_use(folder, error) from None


def conduct(
    config: C,
    folder: str | Path,
    read: Callable[[Path], C],
    stages: Callable[[C, RunFolder, Executor | int, Progress | None], Document],
    where: Executor | int,
    progress: Progress | None,
) -> tuple[RunFolder, Document]:
    """Open the folder, run the `stages` of an experiment in it, and write `results.json` with its provenance.

    No other process may use the folder meanwhile.
    """
    folder = Path(folder)
    check_folder(config, folder, read)  # before a lock is laid into a folder that is something else
    run = RunFolder(folder)
    with run.lock(), one_thread():
        check_folder(config, folder, read)  # someone else may have begun a run in it just now
        run.create()
        write_whole(run.path / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
        begun = time.perf_counter()
        results = stages(config, run, where, progress)
        results["provenance"] = provenance(time.perf_counter() - begun, where)
        results["provenance"]["sha256"] = _digest(results)
        write_json(run.path / "results.json", results)
    return run, results


def _digest(results: Document) -> str:
    """A hash of results as a file holds them, all but the hash itself."""
    plain = json.loads(as_json(results))
    plain["provenance"].pop("sha256", None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@contextmanager
def keeping_results(folder: Path, stored: Path) -> Iterator[None]:
    """An error inside this context, where table and page are made of what is `stored`, says that nothing is lost."""
    try:
        yield
    except Exception as error:
        words = " ".join(str(error).split())
        reason = words if isinstance(error, PatterningError) else f"{type(error).__name__}: {words}"
        raise PatterningError(
            f"table and page could not be made ({reason}); the result is whole in {stored}, and "
            f"`patterning report {folder}` makes them again"
        ) from error


def read_json_results(run: RunFolder, experiment: str, needs: Callable[[Document], bool]) -> Document:
    """The results of a finished run of `experiment`; raises `PatterningError` when it has none or they are damaged.

    `needs` says whether results hold what this version writes.
    """
    path = run.path / "results.json"
    if not path.is_file():
        raise PatterningError(
            f"{run.path} has no results yet: finish it with "
            f"patterning run --config {run.path / 'config.yaml'} --out {run.path}"
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if results["experiment"] != experiment:
            raise PatterningError(f"{path} is of another experiment: {results['experiment']}")
        if not needs(results):
            raise PatterningError(f"{path} was written by an older version: run the experiment again, it resumes")
        stored = results["provenance"].get("sha256")  # an older run has none
        if stored is not None and stored != _digest(results):
            raise PatterningError(f"{path} has changed since it was written: run the experiment again, it resumes")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise PatterningError(f"{path} is damaged ({error}): run the experiment again, it resumes") from None
    return results


def provenance(seconds: float, where: Executor | int) -> Document:
    """Date, commit, machine and versions of this call."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "seconds_of_last_call": round(seconds, 1),
        "workers": int(str(where)) if str(where).isdigit() else str(where),
        "machine": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def provenance_line(results: Document) -> str:
    """`provenance` as a sentence for the page."""
    origin, config = results["provenance"], results["config"]
    return (
        f"patterning run {results['experiment']} --preset {config['preset']} · {origin['date']} · commit "
        f"{origin['commit']} · {origin['workers']} workers, {origin['machine']} · Python {origin['python']}, "
        f"torch {origin['torch']}"
    )


def _commit() -> str:
    """The source's git commit, marked when the tree has changes; "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return f"{commit} with changes" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
