"""The page of a study: what was found, how it looks, how sure it is; then how it was done."""

from collections.abc import Mapping, Sequence

import yaml
from markupsafe import Markup

from patterning.core.plain import Document
from patterning.report.charts import COLOURS, GREY, Curve, Difference, Strip, curves, forest, legend, strips
from patterning.report.page import Row, Section, Table, render_page
from patterning.report.scatter import Point, scatter_points
from patterning.study.bench import ROUND
from patterning.study.conduct import provenance_line
from patterning.study.shares_page import share_sections
from patterning.verification.page import RULE
from patterning.verification.wording import mean_of

MANY = 12
"""More groups than these are in a table that is folded."""
HEAD = ("weights", "", "mean", "against unweighted", "against its permuted weights", "finding")


def study_page(
    results: Document, own: Sequence[Section] = (), drawings: Mapping[str, Markup] | None = None, legend: str = ""
) -> str:
    """One self-contained page. `own`: the experiment's sections, which come after the first figures.

    `drawings`: what the runs of each arm look like, by its name, where the outcomes are yes or no, with their `legend`.
    """
    main, asked = results["subject"]["outcomes"][0], _asked(results)
    sections = [
        *(share_sections(results, drawings or {}, legend) if main["yes_or_no"] else _by_seed(results, main)),
        *own,
        Section(
            "Change of the outcome",
            "Paired by seed, with 95 % intervals. An arm must differ from unweighted and from its own weights dealt to "
            "other samples (permuted): uneven weights alone change training as well.",
            html=[_forest(results, measure) for measure in asked[1:]],
            tables=[outcome_table(results)],
        ),
        *_along_training(results),
        *_foretold(results),
        Section("Which samples gain and lose weight", tables=[_by_group(results), *_extremes(results)]),
        Section(
            "Directions: what each reading asks for",
            "A direction is refused where two halves of its measurement do not agree, and is then not used.",
            tables=[_directions(results)],
        ),
        *_strengths(results),
        *_pilots(results),
        Section("Other measures", "They were not asked for.", tables=[_other(results)]),
    ]
    return render_page(
        title=f"Patterning: {results['experiment']}",
        subtitle=f"{results['subject']['samples']} samples; seeds {_seeds(results)}",
        headline=results["findings"],
        opening=[_first_figure(results, asked[0])] if asked else [],
        warnings=[f"{one['name']} was refused: {one['refused']}" for one in results["directions"] if one["refused"]],
        sections=[section for section in sections if section in own or _has_content(section)],
        provenance=f"{provenance_line(results)}. {RULE}",
        config=yaml.safe_dump(results["config"], sort_keys=False),
    )


def _first_figure(results: Document, measure: str) -> Markup:
    caption = (
        f"Change of {measure} against the same seeds unweighted, with 95 % intervals; grey: weights to compare with."
    )
    return Markup('<figure style="margin:.6rem 0"><figcaption>{}</figcaption>{}</figure>').format(
        caption, _forest(results, measure)
    )


def _has_content(section: Section) -> bool:
    return bool(section.html or any(table.rows for table in section.tables))


def _asked(results: Document) -> list[str]:
    """The outcomes that some arm was asked to move."""
    wanted = {measure for arm in results["arms"] for measure in arm["wanted"]}
    return [one["measure"] for one in results["subject"]["outcomes"] if one["measure"] in wanted]


def _by_seed(results: Document, main: Document) -> list[Section]:
    """The outcome of every run."""
    words = (
        f"High is {main['up']}, low is {main['down']}. Each dot is one training run; joined to it, small and grey, "
        "the run of the same seed without weights. The bar is the mean."
    )
    return [Section(f"{main['measure']} after training, by seed", words, html=[_strips(results, main)])]


def outcome_table(results: Document) -> Table:
    """The first outcome of every arm, and of its guarded measure."""
    names = {one["measure"] for one in results["subject"]["outcomes"]} | {results["subject"]["guarded"]}
    return Table(HEAD, [Row(cells_of(row)) for row in results["rows"] if row["measure"] in names])


def cells_of(row: Document) -> list[str]:
    """A row of the evidence as text."""
    return [
        row["arm"], row["measure"], mean_of(row), _interval(row["against_unweighted"]),
        _interval(row["against_permuted"]), row["finding"] or "",
    ]  # fmt: skip


def _interval(effect: Document | None) -> str:
    return "" if effect is None else f"{effect['difference']:+.3g} [{effect['low']:+.3g}, {effect['high']:+.3g}]"


def _of_measure(results: Document, measure: str) -> list[Document]:
    return [row for row in results["rows"] if row["measure"] == measure]


def _colours(results: Document) -> dict[str, str]:
    """By arm: each asked arm has its own, all others are grey."""
    asked = [arm["name"] for arm in results["arms"] if arm["kind"] == "arm"]
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(asked)}


def _strips(results: Document, main: Document) -> Markup:
    rows, colours = _of_measure(results, main["measure"]), _colours(results)
    base = rows[0]["values"]
    drawn = [
        Strip(row["arm"], row["values"], [] if i == 0 else base[: len(row["values"])], colours.get(row["arm"], GREY))
        for i, row in enumerate(rows)
    ]
    return strips(drawn, main["measure"])


def _forest(results: Document, measure: str) -> Markup:
    colours = _colours(results)
    rows = []
    for row in _of_measure(results, measure):
        effect = row["against_unweighted"]
        if effect:
            colour = colours.get(row["arm"], GREY)
            rows.append(Difference(row["arm"], effect["difference"], effect["low"], effect["high"], colour))
    return forest(rows, f"change of {measure}")


def _along_training(results: Document) -> list[Section]:
    """Mean curves by arm of the first outcome that runs were measured for along the way."""
    measure = _curve_of(results, results["arms"][0]["curves"])
    colours, lines = _colours(results), []
    for arm in results["arms"]:
        own = arm["curves"].get(measure)
        if own and len(arm["curves"]["steps"]) > 1:
            mean = [sum(values) / len(values) for values in zip(*own, strict=True)]
            base = arm["kind"] == "base"
            colour = "currentColor" if base else colours.get(arm["name"], GREY)
            lines.append(
                Curve(arm["name"], arm["curves"]["steps"], mean, colour, dashed=arm["kind"] == "control",
                      width=2.2 if base or arm["name"] in colours else 0.9)
            )  # fmt: skip
    if not lines:
        return []
    named = [(line.label, line.colour) for line in lines if line.width > 1]
    drawing = curves(lines, "training step", measure, log_x=True)
    return [Section("Along training, means over seeds", "Permuted controls are dashed.", html=[drawing, legend(named)])]


def _curve_of(results: Document, curves: Document) -> str:
    """The first outcome that there is a curve of; an outcome may be known at the end alone."""
    names = [one["measure"] for one in results["subject"]["outcomes"]]
    return next((name for name in names if name in curves), names[0])


def _foretold(results: Document) -> list[Section]:
    sections = []
    for one in results["foretold"]:
        if one.get("of_shares"):
            continue  # beside the shares
        colours = _colours(results)
        dots = [
            Point(
                arm["name"], arm["expected"][0], arm["change"], tuple(arm["expected"][1:]), None,
                colours.get(arm["name"], GREY),
            )
            for arm in one["arms"]
        ]  # fmt: skip
        words = ""
        if "slope" in one:
            ranks, slope = one["rank_correlation"], one["slope"]
            words = (
                f"Over {len(one['arms'])} arms the rank correlation is {ranks[0]:.2f} [{ranks[1]:.2f}, {ranks[2]:.2f}]"
                f", the slope {slope[0]:.3g} [{slope[1]:.3g}, {slope[2]:.3g}] "
                f"(intervals over {_spans(one['pairs'])} seeds)."
            )
        drawing = scatter_points(dots, f"expected by {one['reading']}", "change against unweighted")
        sections.append(Section(f"What {one['reading']} expected, before training", words, html=[drawing]))
    return sections


def _spans(pairs: Sequence[int]) -> str:
    """How many seeds the arms have: "16", or "8 to 16"."""
    return f"{min(pairs)} to {max(pairs)}" if len(pairs) > 1 else str(pairs[0])


def _by_group(results: Document) -> Table:
    arms = [arm for arm in results["arms"] if arm["weight_by_group"] and arm["kind"] != "base"]
    names = list(results["subject"]["group_shares"])
    rows = [
        Row([name, f"{100 * results['subject']['group_shares'][name]:.1f} %",
             *(f"{arm['weight_by_group'][name]:.2f}" for arm in arms)])
        for name in names
    ] if arms else []  # fmt: skip
    folded = "mean weight by group" if len(names) > MANY else ""
    return Table(("mean weight by group", "share of the data", *(arm["name"] for arm in arms)), rows, folded)


def _extremes(results: Document) -> list[Table]:
    tables = []
    for arm in results["arms"]:
        if arm["extremes"]:
            most, least = arm["extremes"]["most"], arm["extremes"]["least"]
            rows = [
                Row([a["text"], f"{a['rho']:.2f}", b["text"], f"{b['rho']:.2f}"], "mono")
                for a, b in zip(most, least, strict=True)
            ]
            tables.append(Table(("most weight", "ρ", "least weight", "ρ"), rows, f"samples of {arm['name']}"))
    return tables


def _directions(results: Document) -> Table:
    rows = []
    for one in results["directions"]:
        reliability = one.get("reliability")
        rows.append(
            Row([one["name"], one["what"], "" if reliability is None else f"{reliability:.2f}",
                 "; ".join(one.get("notes", [])[:3]), one["refused"] or ""])
        )  # fmt: skip
    return Table(("direction", "what it is", "reliability", "notes", "refused because"), rows)


def _strengths(results: Document) -> list[Section]:
    rows = [
        Row([row["direction"], row["way"], row["strength"], f"{row['change']:+.3f}", f"{row['guard']:.3f}",
             f"{row['effective_sample_size']:.2f}", "chosen" if row["chosen"] else ""], "sure" if row["chosen"] else "")
        for row in results["strengths"]
    ]  # fmt: skip
    head = ("direction", "way", "strength", "change of the outcome", results["subject"]["guarded"] or "guard",
            "effective sample size", "")  # fmt: skip
    text = "Tried on seeds that serve no claim."
    return [Section("Strength", text, tables=[Table(head, rows)])] if rows else []


def _pilots(results: Document) -> list[Section]:
    """Curves of every pilot run: whether runs switch between solutions, and back."""
    sections = []
    for name, pilots in results["pilots"].items():
        measure = _curve_of(results, pilots["curves"])
        own = pilots["curves"].get(measure)
        if own and len(pilots["steps"]) > 1:
            lines = [
                Curve(f"seed {seed}", pilots["steps"], values, COLOURS[i % len(COLOURS)], width=1.1)
                for i, (seed, values) in enumerate(zip(pilots["seeds"], own, strict=True))
            ]
            kind = "Pilot" if name.startswith(ROUND) else "Unweighted pilot"
            sections.append(
                Section(f"{kind} runs ({name})", "Each line is one run.",
                        html=[curves(lines, "training step", measure, log_x=True)])
            )  # fmt: skip
    return [*_rounds(results), *sections]


def _rounds(results: Document) -> list[Section]:
    """What every round of pilots under weights did to the purity of the solutions."""
    rows = [
        Row([str(one["round"]), one["towards"], f"{one['before']:.3f}", f"{one['after']:.3f}",
             f"{one['runs']} of {one['steps']} steps", f"{one['effective_sample_size']:.2f}"])
        for one in results.get("rounds", [])
    ]  # fmt: skip
    head = ("round", "towards", "agreement before", "after", "runs", "effective sample size")
    text = (
        "Pilots without weights held no pure solution of one kind. Weights along the losses at the purest checkpoints "
        "asked for it, and runs under these gave purer ones."
    )
    return [Section("Rounds", text, tables=[Table(head, rows)])] if rows else []


def _other(results: Document) -> Table:
    names = {one["measure"] for one in results["subject"]["outcomes"]} | {results["subject"]["guarded"]}
    rows = [Row(cells_of(row)) for row in results["rows"] if row["measure"] not in names]
    return Table(HEAD, rows, "every other measure of every arm")


def _seeds(results: Document) -> str:
    seeds = results["arms"][0]["seeds"]
    return f"{seeds[0]} to {seeds[-1]}, paired"
