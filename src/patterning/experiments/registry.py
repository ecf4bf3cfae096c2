"""The experiments by name, for the command line; each is imported only when it is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from patterning.core.errors import PatterningError
from patterning.core.settings import read_yaml

NAMES = ("superposition", "parentheses", "induction")


@dataclass(frozen=True)
class Experiment:
    """One experiment: its presets, its configuration from values, its run, and how its results are shown."""

    name: str
    default: str
    preset: Callable[[str], Any]
    load: Callable[[dict[str, Any], str], Any]
    run: Callable[..., dict[str, Any]]
    read_results: Callable[..., dict[str, Any]]
    print_table: Callable[..., None]
    write_page: Callable[..., None]


def find_experiment(name: object) -> Experiment:
    """The experiment of this name; raises `PatterningError` for a name that is none."""
    if name not in NAMES:
        raise PatterningError(f"unknown experiment {name!r}: there are {', '.join(NAMES)}")
    module = import_module(f"patterning.experiments.{name}")
    config = presets = run = present = module  # a file holds all four parts, a folder has a file for each
    if hasattr(module, "__path__"):
        config, presets, run, present = (
            import_module(f"{module.__name__}.{part}") for part in ("config", "presets", "run", "present")
        )
    return Experiment(
        str(name), presets.DEFAULT, presets.preset_config, config.load_config, getattr(run, f"run_{name}"),
        present.read_results, present.print_table, present.write_page,
    )  # fmt: skip


def experiment_of(path: Path) -> tuple[Experiment, dict[str, Any]]:
    """The experiment that a configuration file is of, and the file's values."""
    values = read_yaml(path)
    return find_experiment(values.get("experiment", "parentheses")), values
