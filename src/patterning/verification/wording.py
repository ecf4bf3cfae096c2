"""Evidence in words and cells: the same for the terminal, the page, and what is read back from `results.json`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from patterning.core.plain import Document
from patterning.core.terminal import print_fitting
from patterning.verification.rule import ENOUGH_PAIRS, Verdict, level_for

if TYPE_CHECKING:
    from rich.console import Console

HEAD = ("weights", "measure", "finding", "mean ± error", "against unweighted", "against permuted")
LEGEND = (
    "± is one standard error of the mean over seeds; brackets are 95 % intervals over the pairs (of a share of seeds "
    "Wilson's, of a difference of shares Newcombe's, else the wider limits of bootstrap-t and Student's t)."
)
"""What the numbers of the table are, for a person."""

Verdicts = Mapping[tuple[str, str], Verdict]


def cautions(verdicts: Verdicts, seeds: Sequence[int], notes: Sequence[str]) -> list[str]:
    """What to keep in mind: too few seeds, nothing that was asked for, and notes."""
    lines = []
    if len(seeds) < ENOUGH_PAIRS:
        lines.append(f"{len(seeds)} paired seeds are a look, not evidence: use at least {ENOUGH_PAIRS}.")
    if verdicts and not any(verdict.wanted for verdict in verdicts.values()):
        arm, measure = next(iter(verdicts))
        lines.append(
            f"Nothing was asked of these measures, so that no weights can steer them: the weights' own target counts "
            f"for measures of its name, and wanted={{{arm!r}: {{{measure!r}: +1}}}} says it for others (-1: to fall)."
        )
    return lines + [f"{note}." for note in notes]


def verdict_lines(verdicts: Verdicts) -> list[str]:
    """What was asked for, a sentence each; then, in one sentence an arm, what happened to the other measures."""
    lines = [f"{arm}, {measure}: {verdict}." for (arm, measure), verdict in verdicts.items() if verdict.wanted]
    lines += [
        f"{arm}, {measure}, which was to be held: {'not held, ' if verdict.finding.startswith('move') else ''}"
        f"{verdict}."
        for (arm, measure), verdict in verdicts.items()
        if verdict.held
    ]
    for arm in dict.fromkeys(arm for arm, _ in verdicts):
        others: dict[str, list[str]] = {}
        for (own, measure), verdict in verdicts.items():
            if own == arm and not verdict.wanted and not verdict.held:
                change = verdict.against_unweighted.difference
                size = "" if verdict.finding in ("no clear change", "a look") else f" ({change:+.2g})"
                others.setdefault(verdict.finding, []).append(f"{measure}{size}")
        if others:
            told = "; ".join(f"{finding}: {', '.join(names)}" for finding, names in others.items())
            lines.append(f"{arm}, not asked for: {told}.")
    return lines


def level_line(verdicts: Verdicts) -> str:
    """How many directions were tried, and the level that follows; empty without verdicts."""
    if not verdicts:
        return ""
    k = max(verdict.tried for verdict in verdicts.values())
    asked = sum(verdict.wanted != 0 for verdict in verdicts.values())
    level = f"{100 * level_for(k):.4g} %"
    if not asked:
        return f"Findings use intervals of {level}."
    return (
        f"k = {k} {'direction was' if k == 1 else 'directions were'} tried (arms × measures that they were asked to "
        f"move), so findings use intervals of {level}{', wider than those of the table' if k > 1 else ''}."
    )


def cells_of(rows: Sequence[Document], units: Mapping[str, str]) -> list[list[str]]:
    """The rows of the evidence as text under `HEAD`."""
    return [
        [
            row["arm"],
            with_unit(row["measure"], units),
            row["finding"] or "",
            mean_of(row, 4),
            interval_of(row["against_unweighted"]),
            interval_of(row["against_permuted"]),
        ]
        for row in rows
    ]


def with_unit(measure: str, units: Mapping[str, str]) -> str:
    """The measure with its unit, where one is known: "8s (nats)"."""
    return f"{measure} ({units[measure]})" if units.get(measure) else measure


def mean_of(row: Document, digits: int = 3) -> str:
    """The mean of a row of the table with its error, as text; of a single run, the mean alone."""
    if "low" in row:
        return f"{row['mean']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
    error = row["standard_error"]
    return f"{row['mean']:.{digits}g}" + ("" if error is None else f" ± {error:.2g}")


def interval_of(effect: Document | None) -> str:
    """A difference with its interval; empty where there is none."""
    return "" if effect is None else f"{effect['difference']:+.3g} [{effect['low']:+.3g}, {effect['high']:+.3g}]"


def print_evidence(console: "Console", cells: Sequence[Sequence[str]], seeds: int, sentences: Sequence[str]) -> None:
    """A table for each measure, what its numbers are, and what was found."""
    of = HEAD.index("measure")
    for measure in dict.fromkeys(row[of] for row in cells):
        rows = [[cell for i, cell in enumerate(row) if i != of] for row in cells if row[of] == measure]
        head = [name for name in HEAD if name != HEAD[of]]
        print_fitting(console, head, rows, f"{measure}, {seeds} paired seeds", left=2)
    for line in (LEGEND, *sentences):
        console.print(line, highlight=False, markup=False)
