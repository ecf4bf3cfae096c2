"""The induction page's own sections: onset and loss in percent, χ of the components, χ by domain, the text."""

from markupsafe import Markup

from patterning.core.plain import Document
from patterning.report.charts import COLOURS, GREY, Difference, Strip, forest, strips
from patterning.report.page import Row, Section, Table
from patterning.study.components_page import component_sections, likeness_table
from patterning.study.relative import change_in_words

OTHER = "loss:not induction"


def sections(results: Document) -> list[Section]:
    """After the study's first figure."""
    thresholds = results["config"]["structure"]
    return [
        Section(
            "When induction comes",
            "Onset: the step at which some head's prefix matching reaches "
            f"{thresholds['prefix_matching']:g} and the repeated-random gap {thresholds['repeated_gap']:g} nats, "
            "interpolated in log(step) between checkpoints. A run that never gets there counts with its last step, so "
            "that its shift is a bound. In percent of the run of the same seed, with 95 % intervals from 3 seeds on.",
            html=[_onsets(results), _shifts(results)],
            tables=[_percent(results)],
        ),
        *component_sections(results["components"]),
        *_domains(results),
        Section("Directions beside plain heuristics", tables=[likeness_table(results["likeness"])]),
        Section("The text", tables=[_text(results)]),
    ]


def _onsets(results: Document) -> Markup:
    rows, colours = [row for row in results["rows"] if row["measure"] == "onset"], _colours(results)
    drawn = [Strip(row["arm"], row["values"], rows[0]["values"][: len(row["values"])] if i else [],
                   colours.get(row["arm"], GREY)) for i, row in enumerate(rows)]  # fmt: skip
    return strips(drawn, "onset, step")


def _shifts(results: Document) -> Markup:
    base, colours = results["arms"][0]["name"], _colours(results)
    known = [(one["arm"], one["onset"]) for one in results["percent"] if one["against"] == base and one["onset"]]
    rows = [
        Difference(arm, change["difference"], change["low"], change["high"], colours.get(arm, GREY))
        for arm, change in known
        if change["low"] is not None
    ]
    return forest(rows, "shift of the onset, % of the unweighted run's") if rows else Markup()


def _colours(results: Document) -> dict[str, str]:
    asked = [arm["name"] for arm in results["arms"] if arm["kind"] == "arm"]
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(asked)}


def _percent(results: Document) -> Table:
    """Against unweighted, then against permuted; how many runs never formed induction."""
    formed = {row["arm"]: row["values"] for row in results["rows"] if row["measure"] == "formed"}
    rows = [
        Row([one["arm"], one["against"], change_in_words(one["onset"], "+.0f"), change_in_words(one[OTHER], "+.2f"),
             f"{len(formed[one['arm']]) - int(sum(formed[one['arm']]))} of {len(formed[one['arm']])}"], "wrap")
        for one in results["percent"]
    ]  # fmt: skip
    return Table(("weights", "against", "onset, %", "loss on other tokens, %", "never formed"), rows)


def _domains(results: Document) -> list[Section]:
    """None where no domain was retrained without, or with twice as much."""
    if not results["domains"]:
        return []
    measured = [
        Row([row["group"], *(change_in_words(row[key], "+.3f") if key in row else "not run"
                             for key in ("double", "remove", "more"))])
        for row in results["domains"]
    ]  # fmt: skip
    said = []
    for one in results["foretold_by_domain"]:
        cells = [one["what"]]
        for row in results["domains"]:
            own = one["domains"][row["group"]]
            agrees = own["mean"] * one["sign"] * row["more"]["difference"] > 0
            cells += [f"{own['mean']:+.3f} ± {own['standard_error']:.3f}", "yes" if agrees else "no"]
        said.append(Row(cells))
    head = ("reading", *(cell for row in results["domains"] for cell in (row["group"], "agrees")))
    text = (
        "Change of the repeated gap, averaged over the checkpoints, by doubling and by removing a domain, and by more "
        "of it. A reading, in its own standard deviations ± standard error with rows as units, agrees where its sign "
        "is that of retraining: more of a domain is expected to grow induction by a positive mean of a direction or "
        "mode, and by a negative χ of the heads."
    )
    heads = ("domain", "doubled: gap", "removed: gap", "more of it: gap")
    return [Section("χ by domain against retraining", text, tables=[Table(heads, measured), Table(head, said)])]


def _text(results: Document) -> Table:
    own = results["text"]
    rows = [Row([f"rows of {name}", f"{count:,}"]) for name, count in own["rows"].items()]
    return Table(("", ""), rows + [Row([key, str(value)]) for key, value in own.items() if key != "rows"])
