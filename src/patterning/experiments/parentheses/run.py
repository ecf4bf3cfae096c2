"""The parentheses experiment, top to bottom like the method section of a paper.

Choose by data which of two algorithms a transformer learns, and prove it by retraining over paired seeds.
"""

from pathlib import Path
from typing import Any

from patterning.core.store import RunFolder
from patterning.core.workers import Progress, Workers
from patterning.experiments.parentheses import stages, steering
from patterning.experiments.parentheses.config import ParenthesesConfig, read_config
from patterning.experiments.parentheses.directions import invert
from patterning.experiments.parentheses.present import write_page
from patterning.experiments.parentheses.units import build_task
from patterning.study.conduct import conduct, keeping_results


def run_parentheses(
    config: ParenthesesConfig, folder: Path, *, workers: int = 1, progress: Progress | None = None
) -> dict[str, Any]:
    """Run everything, or what a killed run left; write `results.json` and `report.html`; return the results.

    Raises `PatterningError` when the folder holds another configuration, no pilot run learns the task, too few chains
    survive, or χ is too unreliable to invert (and `force` is off).
    """
    run, results = conduct(config, folder, read_config, _stages, workers, progress)
    with keeping_results(run.path, run.path / "results.json"):
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
