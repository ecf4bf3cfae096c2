"""The experiment's results as a terminal table and as a page; both are made from `results.json` alone."""

from typing import Any

import yaml
from rich.console import Console
from rich.table import Table as TerminalTable

from patterning.core.store import RunFolder, write_whole
from patterning.report.induction_arms import HEAD, arm_sections, headline, outcome_rows, warnings
from patterning.report.induction_reading import reading_sections
from patterning.report.page import render_page
from patterning.study.conduct import provenance_line, read_json_results

Results = dict[str, Any]


def read_results(run: RunFolder) -> Results:
    """The results of a finished run; raises `PatterningError` when it has none or they are damaged."""
    return read_json_results(run, "induction", lambda results: "goals" in results and "strengths" in results)


def print_table(results: Results, console: Console) -> None:
    """The outcome table and the headline on a terminal."""
    table = TerminalTable(title=f"induction, preset {results['config']['preset']}")
    for i, name in enumerate(HEAD):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in outcome_rows(results):
        table.add_row(*row.cells, style="bold" if "sure" in row.kind else "")
    console.print(table)
    for line in headline(results):
        console.print(line, highlight=False)
    for line in warnings(results):
        console.print(f"note: {line}", style="yellow", highlight=False)


def write_page(run: RunFolder, results: Results) -> None:
    """Write `report.html` into the run folder."""
    config, text = results["config"], results["text"]
    model = config["model"]
    page = render_page(
        title="Write a circuit into a language model: induction, by weights on its text",
        subtitle=(
            f"preset {config['preset']} · {model['layers']} layers, {model['heads']} heads, width {model['width']}, "
            f"context {model['context']} · {text['parameters']:,} parameters · {text['tokens_read']:,} tokens a run "
            f"({text['epochs']:.1f} passes), {'bfloat16 products' if text['bfloat16'] else 'float32'} · "
            f"{config['seeds']} paired seeds an arm"
            + (f" ({others} beside the leading direction)" if (others := config.get("other_seeds")) else "")
        ),
        headline=headline(results),
        warnings=warnings(results),
        sections=[*arm_sections(results), *reading_sections(results)],
        provenance=provenance_line(results),
        config=yaml.safe_dump(config, sort_keys=False),
    )
    write_whole(run.path / "report.html", page.encode())
