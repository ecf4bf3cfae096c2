"""The picture of a run for a first page: OOD accuracy after training, seed by seed, of the arms that matter."""

from markupsafe import Markup

from patterning.core.plain import Document
from patterning.report.charts import COLOURS, GREY, Strip, standalone, strips

MEASURE = "ood_accuracy"
SHOWN = ("base", "arm", "control")


def figure(results: Document) -> Markup:
    """Unweighted, asked for each rule, and permuted; a line joins each run to the unweighted run of its seed."""
    rows = [row for row in results["rows"] if row["measure"] == MEASURE and row["kind"] in SHOWN]
    base, colours = rows[0]["values"], iter(COLOURS)
    drawn = [
        Strip(
            row["arm"], row["values"], base[: len(row["values"])] if row["kind"] != "base" else (),
            next(colours) if row["kind"] == "arm" else GREY,
        )
        for row in rows
    ]  # fmt: skip
    title = "accuracy where the two algorithms disagree: 0 Equal-Count, 1 Nested"
    return standalone(strips(drawn, title, limits=(0.0, 1.0)))
