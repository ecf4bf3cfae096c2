"""The picture of a study for a first page: its main outcome after training, seed by seed, of the arms that matter."""

from markupsafe import Markup

from patterning.core.plain import Document
from patterning.report.charts import COLOURS, GREY, Strip, standalone, strips

SHOWN = ("base", "arm", "control")


def figure_by_seed(results: Document, title: str) -> Markup:
    """Unweighted, asked and permuted; a line joins each run to the unweighted run of its seed."""
    outcome = results["subject"]["outcomes"][0]
    rows = [row for row in results["rows"] if row["measure"] == outcome["measure"] and row["kind"] in SHOWN]
    base, colours = rows[0]["values"], iter(COLOURS)
    drawn = [
        Strip(
            row["arm"], row["values"], base[: len(row["values"])] if row["kind"] != "base" else (),
            next(colours) if row["kind"] == "arm" else GREY,
        )
        for row in rows
    ]  # fmt: skip
    low, high = outcome["low"], outcome["high"]
    return standalone(strips(drawn, title, limits=None if low is None or high is None else (low, high)))
