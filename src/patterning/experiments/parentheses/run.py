"""The parentheses experiment, top to bottom like the method section of a paper (SPEC; issue "the whole method").

Choose by data which of two algorithms a transformer learns, and prove it by retraining over paired seeds.
"""

import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from patterning.errors import PatterningError
from patterning.experiments.parentheses import stages, steering
from patterning.experiments.parentheses.config import ParenthesesConfig, read_config
from patterning.experiments.parentheses.directions import invert
from patterning.experiments.parentheses.present import write_page
from patterning.experiments.parentheses.units import build_task
from patterning.store import RunFolder, write_json, write_whole
from patterning.workers import Progress, Workers


def run_parentheses(
    config: ParenthesesConfig, folder: Path, *, workers: int = 1, progress: Progress | None = None
) -> dict[str, Any]:
    """Run everything, or what a killed run left; write `results.json` and `report.html`; return the results.

    Raises `PatterningError` when the folder holds another configuration, no pilot run learns the task, too few chains
    survive, or χ is too unreliable to invert (and `force` is off).
    """
    run = _open(config, folder)
    begun, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers: a sum over two threads has other bits
    try:
        results = _stages(config, run, workers, progress)
    finally:
        torch.set_num_threads(threads)
    results["provenance"] = _provenance(time.perf_counter() - begun, workers)
    write_json(run.path / "results.json", results)
    write_page(run, results)
    return results


def _stages(config: ParenthesesConfig, run: RunFolder, workers: int, progress: Progress | None) -> dict[str, Any]:
    task = build_task(config.task.model_dump())
    with Workers(run, workers, progress) as pool:
        pilots = stages.train_pilots(config, pool)
        solutions = stages.choose_solutions(config, pilots)
        kernels, calibrations = stages.calibrate_samplers(config, pool, solutions)
        responses, chains = stages.sample_responses(config, pool, solutions, kernels)
        reliability = stages.check_reliability(config, task, responses)
        directions = invert(config, task, pool, pilots, kernels, responses, reliability)
        usable = [direction for direction in directions if direction.s is not None]
        sweep, chosen = steering.sweep_strength(config, task, pool, pilots, usable)
        arms = steering.retrain(config, task, pool, usable, chosen, kernels["nested"])
    return {
        "experiment": "parentheses",
        "config": config.model_dump(mode="json"),
        "task": stages.describe_task(task),
        "solutions": [solution.summary for solution in solutions.values()],
        "calibrations": calibrations,
        "chains": chains,
        "reliability": reliability,
        "directions": [direction.summary for direction in directions],
        "sweep": sweep,
        "arms": steering.verify(config, task, arms),
    }


def _open(config: ParenthesesConfig, folder: Path) -> RunFolder:
    """The run folder of this configuration, new or resumed."""
    run, path = RunFolder(folder), folder / "config.yaml"
    if path.exists():
        found = read_config(path)
        if found.model_copy(update={"force": config.force}) != config:
            raise PatterningError(f"{folder} holds a run of another configuration: name another folder with --out")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PatterningError(f"{folder} exists and is not a run folder: name another one with --out")
    run.create()
    write_whole(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
    return run


def _provenance(seconds: float, workers: int) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "seconds_of_last_call": round(seconds, 1),
        "workers": workers,
        "machine": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _commit() -> str:
    """The source's git commit, marked when the tree has changes; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit} with changes" if changes else commit
