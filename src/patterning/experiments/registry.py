"""The experiments by name, for the command line; each is imported only when it is asked for."""

from importlib import import_module
from pathlib import Path

from patterning.core.errors import PatterningError
from patterning.core.plain import Document
from patterning.core.settings import read_yaml
from patterning.study.present import Experiment, experiment_from

NAMES = ("superposition", "parentheses", "induction", "addition")


def find_experiment(name: object) -> Experiment:
    """The experiment of this name; raises `PatterningError` for a name that is none."""
    if name not in NAMES:
        raise PatterningError(f"unknown experiment {name!r}: there are {', '.join(NAMES)}")
    module = import_module(f"patterning.experiments.{name}")
    if hasattr(module, "__path__"):  # a folder: the study of it is in a file of its own
        module = import_module(f"{module.__name__}.experiment")
    return experiment_from(str(name), module)


def experiment_of(path: str | Path) -> tuple[Experiment, Document]:
    """The experiment that a configuration file is of, and the file's values."""
    values = read_yaml(path)
    return find_experiment(values.get("experiment", "parentheses")), values
