"""A study's table on a terminal, and an experiment's module as the command line sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

from patterning.core.errors import PatterningError
from patterning.core.plain import Document
from patterning.core.settings import read_yaml, validate
from patterning.core.store import RunFolder
from patterning.study.page import cells_of
from patterning.study.run import read_results, run_study, write_page
from patterning.study.settings import StudySettings
from patterning.study.shares_page import share_table


def print_table(results: Document, console: Console) -> None:
    """The outcomes of every arm and its guarded measure, and what was found. Yes-or-no outcomes have a column each."""
    notes = [f"{one['name']} was refused: {one['refused']}" for one in results["directions"] if one["refused"]]
    for note in [*notes, *results.get("notes", [])]:
        console.print(f"note: {note}", style="yellow", highlight=False)
    console.print(_shares(results) if results["subject"]["outcomes"][0]["yes_or_no"] else _evidence(results))
    for line in results["findings"]:
        console.print(line, highlight=False)


def _shares(results: Document) -> Table:
    seeds, shown = len(results["arms"][0]["seeds"]), share_table(results)
    table = Table(title=f"{results['experiment']}, preset {results['config']['preset']}: shares of {seeds} runs, %")
    for i, head in enumerate(shown.head):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    for row in shown.rows:
        table.add_row(*row.cells, style="bold" if row.kind else "")
    return table


def _evidence(results: Document) -> Table:
    names = [*(one["measure"] for one in results["subject"]["outcomes"]), results["subject"]["guarded"]]
    arms = results["arms"]
    table = Table(title=f"{results['experiment']}: {len(arms[0]['seeds'])} paired seeds")
    for i, head in enumerate(("weights", "measure", "mean", "against unweighted", "against permuted", "finding")):
        table.add_column(head, justify="left" if i < 2 else "right", overflow="fold")
    for row in results["rows"]:
        if row["measure"] in names:
            table.add_row(*cells_of(row), style="bold" if row["finding"] else "")
    return table


@dataclass(frozen=True)
class Experiment:
    """One experiment: its presets, its configuration from values, its run, and how its results are shown."""

    name: str
    default: str
    preset: Callable[[str], Any]
    load: Callable[[Document, str], Any]
    run: Callable[..., Document]
    read_results: Callable[[RunFolder], Document]
    print_table: Callable[[Document, Console], None]
    write_page: Callable[[RunFolder, Document], None]


def experiment_from(name: str, module: ModuleType) -> Experiment:
    """The experiment that a module describes: its `CONFIG` class, `PRESETS`, `DEFAULT`, and `study(config)`.

    It may have a `print_table` of its own.
    """
    kind: type[StudySettings] = module.CONFIG

    def load(values: Document, origin: str) -> StudySettings:
        return validate(kind, values, origin)

    def preset(chosen: str) -> StudySettings:
        if chosen not in module.PRESETS:
            raise PatterningError(f"unknown preset {chosen!r}: choose from {', '.join(module.PRESETS)}")
        return load({"preset": chosen, **module.PRESETS[chosen]}, f"preset {chosen}")

    def read(path: Path) -> StudySettings:
        return load(read_yaml(path), str(path))

    def run(config: StudySettings, folder: str | Path, **options: Any) -> Document:
        return run_study(config, module.study, folder, read=read, **options)

    def page(folder: RunFolder, results: Document) -> None:
        write_page(folder, results, module.study(load(results["config"], "results.json")))

    return Experiment(
        name, module.DEFAULT, preset, load, run, partial(read_results, experiment=name),
        getattr(module, "print_table", print_table), page,
    )  # fmt: skip
