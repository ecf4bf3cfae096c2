"""Sections on χ of a model's components: reliability, modes, what they answer to, text coloured by it."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from patterning.core.plain import Document
from patterning.report.charts import Difference, forest, matrix
from patterning.report.page import Row, Section, Table
from patterning.report.tokens import coloured_text, contexts

Readings = Sequence[Document]
MODES = 5
"""Modes that tables show."""


def component_sections(readings: Readings) -> list[Section]:
    """None where χ of no component was read. `readings`: of `study.component_summary`."""
    if not readings:
        return []
    return [
        Section(
            "χ of the components: is it reliable?",
            "Split-half reliability (rank correlation between halves of the chains, stepped up to all) of each "
            f"component's χ, its R-hat and estimator. Read on the pilot run of seed {readings[0]['seed']}; heads that "
            f"count as the structure at its end: {', '.join(readings[0]['heads'])}.",
            tables=[_reliability(readings)],
        ),
        Section(
            "Modes of χ",
            "A mode is taken for the structure's by two signs that know nothing of each other: its loadings follow the "
            "heads' scores, its own scores tell the tokens that the structure serves from others.",
            html=[_loadings(reading) for reading in readings],
            tables=[_candidates(readings)],
        ),
        Section(
            "What the structure's mode and its heads answer to",
            "Means by token class and by domain, ± 2 standard errors with rows as units. χ: mean over the heads, each "
            "in its own standard deviations; negative where weight on such tokens lowers the heads' ⟨φ⟩.",
            html=[part for reading in readings for part in _means(reading)],
        ),
        Section(
            "Text coloured by the structure's mode",
            "Blue: high score, red: low. Each token is coloured as a prediction; hover for its score.",
            html=[_token_page(reading, opened=i == len(readings) - 1) for i, reading in enumerate(readings)],
        ),
    ]


def _reliability(readings: Readings) -> Table:
    head = ["component"]
    for reading in readings:
        head += [f"{reading['stage']}, step {reading['step']}", "R-hat", "estimator"]
    names = list(dict.fromkeys(name for reading in readings for name in (*reading["names"], *reading["refused"])))
    rows = []
    for name in names:
        cells = [name]
        for one in readings:
            if name in one["reliability"]:
                cells += [f"{one['reliability'][name]:.2f}", f"{one['r_hat'][name]:.2f}", one["estimator"][name]]
            else:
                cells += ["refused", "", one["refused"].get(name, "")]
        rows.append(Row(cells, "wrap"))
    return Table(head, rows)


def _loadings(reading: Document) -> Markup:
    """Loadings of the first modes by component; the structure's is marked and turned."""
    choice, columns = reading["choice"], list(zip(*reading["loadings"], strict=True))[:MODES]
    sign = {choice["index"]: choice["sign"]}
    rows = [[sign.get(a, 1.0) * value for value in column] for a, column in enumerate(columns)]
    labels = [
        f"{'▶ ' if a == choice['index'] else ''}mode {a + 1}, {100 * reading['candidates'][a]['share']:.0f} %"
        for a in range(len(rows))
    ]
    title = Markup("<h3>{}, step {}: loadings</h3>").format(reading["stage"], reading["step"])
    return title + matrix(rows, labels, reading["names"], reach=1.0)


def _candidates(readings: Readings) -> Table:
    rows = []
    for one in readings:
        for mode in one["candidates"][:MODES]:
            a, chosen = mode["index"], mode["index"] == one["choice"]["index"]
            cells = [
                f"{one['stage']}, mode {a + 1}", f"{100 * mode['share']:.1f} %",
                f"{one['singular_values'][a]:.2f} / {one['noise_floor']:.2f}",
                f"{one['stability_loadings'][a]:.2f}", f"{one['stability_scores'][a]:.2f}",
                f"{mode['loading_correlation']:+.2f}", f"{mode['difference']:+.2f} ({mode['enrichment']:+.1f} se)",
                f"{mode['auc']:.2f}",
                ("both signs" if one["choice"]["agrees"] else "best, signs differ") if chosen else "",
            ]  # fmt: skip
            rows.append(Row(cells, "sure" if chosen else ""))
    head = ("mode", "share", "σ / noise", "stable loadings", "stable scores", "with the heads' scores",
            "tokens served", "AUC", "the structure's")  # fmt: skip
    return Table(head, rows)


def _means(reading: Document) -> list[Markup]:
    drawings = []
    for key, what in (("mode", "score of the mode"), ("heads", "χ of the heads")):
        groups = {**reading["by_domain"][key], **reading["by_class"][key]}
        known = {name: one for name, one in groups.items() if math.isfinite(one["standard_error"])}
        rows = [
            Difference(name, one["mean"], *(one["mean"] + side * 2 * one["standard_error"] for side in (-1, 1)))
            for name, one in known.items()
        ]
        if rows:
            drawings.append(forest(rows, f"{what}, {reading['stage']} (step {reading['step']})"))
    return drawings


def _token_page(reading: Document, *, opened: bool) -> Markup:
    page = reading["tokens"]
    parts = [contexts(page["top"], "highest scores"), contexts(page["bottom"], "lowest scores")]
    for row in page["rows"]:
        parts.append(Markup("<h3>{}</h3>").format(row["domain"]) + coloured_text(row["tokens"], row["scores"]))
    return Markup("<details{}><summary>{}, step {}</summary>{}</details>").format(
        Markup(" open") if opened else "", reading["stage"], reading["step"], Markup("").join(parts)
    )


def likeness_table(rows: Readings) -> Table:
    """Rank correlations of directions, as `study.likeness` tells them."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "name"))
    shown = [Row([row["name"], *("" if row.get(key) is None else f"{row[key]:+.2f}" for key in keys)]) for row in rows]
    return Table(("rank correlation over rows", *keys), shown)
