"""χ as one self-contained page: the answer first, then what to keep in mind, then every row with its samples.

All of it is made from the stored arrays (`response.store.open_response`), so that it can be made again at any time.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from patterning.core.arrays import Floats
from patterning.core.plain import Document
from patterning.core.task import Task
from patterning.face.examples import Decode
from patterning.face.response_table import (
    CHECK_HEAD,
    HEAD,
    WEAK,
    Caution,
    cautions,
    check_rows,
    chi_of,
    component_cells,
    component_table,
    rows_with_spread,
    spectrum,
    warnings_of,
)
from patterning.face.row_view import POINTS, RowView, row_details, thinned
from patterning.face.rows import ChiRow, of_data, shown_rows
from patterning.face.sample_views import with_error
from patterning.face.signs import TITLE, WHICH_SIGN, in_words
from patterning.report.charts import BLUE, COLOURS, GREY, Curve, curves, matrix
from patterning.report.page import Row, Section, Table, render_page
from patterning.response.sample import COMPONENT_LOSS
from patterning.response.susceptibility import rank_correlation

if TYPE_CHECKING:
    import xarray

__all__ = [
    "CHECK_HEAD", "check_rows", "component_cells", "component_table", "response_page", "rows_with_spread",
    "spectrum", "warnings_of",
]  # fmt: skip

MOST_ROWS = 40
"""Rows of χ that are shown sample by sample: the most reliable."""
OPEN_ROWS = 3
"""Rows whose samples are open when the page is; the others open on a click or the Enter key."""
TRACE_POINTS = 20_000
"""Points of all traces together."""


def response_page(
    tree: "xarray.DataTree",
    title: str,
    check: Document | None = None,
    *,
    task: Task | None = None,
    decode: Decode | None = None,
) -> str:
    """The page. With the `task`, samples are shown as pictures, or as text by `decode`; without, by their numbers."""
    settings, table = tree["susceptibility"].attrs, component_table(tree)
    data = tree["susceptibility"].to_dataset().load()
    rows = shown_rows(data)
    order = sorted(range(len(rows)), key=lambda i: -_known(table[i]["reliability"]))
    views = {i: RowView(data, rows[i], task, decode) for i in order[:MOST_ROWS]}
    lines = [*warnings_of(tree, table), *(check or {}).get("warnings", [])]
    return render_page(
        title=title,
        subtitle=_subtitle(tree, len(rows)),
        headline=[_answer(table, order, views)],
        opening=[_first_figure(views[order[0]], table[order[0]]), _cautions(cautions(lines))],
        warnings=[],
        sections=[
            _row_section(views, table, len(rows)),
            Section(TITLE, html=[Markup("").join(Markup("<p>{}</p>").format(part) for part in WHICH_SIGN)]),
            _numbers(table, {str(key): value for key, value in settings.items()}),
            *([_check_section(check)] if check else []),
            *_comparisons(tree),
            _trace_section(tree, rows),
            _settings_section({str(key): value for key, value in settings.items()}),
        ],
        provenance=f"task {settings['task']}",
        config="\n".join(f"{key}: {value}" for key, value in settings.items()),
    )


def _answer(table: list[Document], order: list[int], views: Mapping[int, RowView]) -> str:
    """One sentence: what weighting which sample does, and how sure that is."""
    best = table[order[0]]
    name, reliability = best["component"], best["reliability"]
    weak = [row["component"] for row in table if not row["reliability"] >= WEAK]
    if not reliability >= WEAK:
        value = f"{reliability:.2f}" if np.isfinite(reliability) else "undefined"
        return (
            f"No row of χ can be told from noise yet: the best, {name}, has a split-half reliability of {value}; use "
            "more chains or draws."
        )
    view = views[order[0]]
    most = view.most()
    sure = "95 % interval" if most.half_width > 0 else "its error is not known"
    noise = f"; {len(weak)} of the rows {'is' if len(weak) == 1 else 'are'} mostly noise" if weak else ""
    whole = view.row.component == "full"
    phi = f"the {COMPONENT_LOSS}" if view.row.observable == COMPONENT_LOSS else f"⟨{view.row.observable}⟩"
    of = "" if whole else f" {'of' if view.row.observable == COMPONENT_LOSS else 'at'} {view.row.component}"
    reading = f"in the clearest of {len(table)} rows of χ" if len(table) > 1 else "in the one row of χ"
    return (
        f"Weighting {view.called(most)} up {'raises' if most.chi > 0 else 'lowers'} {phi}{of} most (χ = "
        f"{with_error(most.chi, most.half_width)}, {sure}), {reading} (split-half reliability {reliability:.2f})"
        f"{noise}."
    )


def _first_figure(view: RowView, numbers: Document) -> Markup:
    raising, lowering = view.ends(3)
    share = numbers["share_not_zero"]
    beyond = (
        f" {share:.0%} of all samples have an interval that leaves out 0 (5 % would by chance)." if share > 0 else ""
    )
    widths = (
        " with 95 % intervals. The ends of many are extreme partly by chance, which an interval does not allow for."
    )
    if not view.most().half_width > 0:
        widths = " whose errors are not known."
    return Markup(
        '<figure style="margin:.4rem 0"><figcaption>χ of {}: the samples at both ends,{}{}</figcaption>{}'
        '<figcaption>{}</figcaption></figure>'
    ).format(
        view.row.name, widths, beyond, view.samples([*raising, *lowering[::-1]]),
        in_words(view.row.name, view.row.component, view.row.observable),
    )  # fmt: skip


def _cautions(groups: Sequence[Caution]) -> Markup:
    """Warnings by kind, the worst kind first and open."""
    if not groups:
        return Markup("")
    parts = [
        Markup("<details{}><summary>{} ({})</summary><ul>{}</ul></details>").format(
            Markup(" open") if i == 0 else "",
            group.title,
            len(group.lines),
            Markup("").join(Markup("<li>{}</li>").format(line) for line in group.lines),
        )
        for i, group in enumerate(groups)
    ]
    return Markup('<section class="cautions"><h2>What to keep in mind, worst first</h2>{}</section>').format(
        Markup("").join(parts)
    )


def _row_section(views: Mapping[int, RowView], table: list[Document], count: int) -> Section:
    parts = [row_details(view, table[i], opened=k < OPEN_ROWS) for k, (i, view) in enumerate(views.items())]
    left = f" The {len(views)} most reliable of {count} rows are shown." if count > len(views) else ""
    return Section(
        "Every row of χ with its samples",
        f"The most reliable row first. Values are χ ± the half-width of its 95 % interval.{left}",
        html=parts,
    )


def _numbers(table: list[Document], settings: Document) -> Section:
    head, rows = component_cells(table, settings)
    return Section(
        "Components",
        "Reliability: rank correlation of χ between halves of the chains, stepped up to all of them. R-hat and ESS "
        "(effective draws) are of φ: have the chains settled? The LLC is that of the probed samples. χ ≠ 0: the share "
        "of samples whose 95 % interval leaves out 0 (5 % would by chance).",
        tables=[
            Table(head[:-1], [Row(row[:-1]) for row in rows]),
            Table((HEAD[0], HEAD[-1]), [Row([row[0], row[-1]], "wrap") for row in rows], "why each stopped"),
        ],
    )


def _check_section(check: Document) -> Section:
    return Section(
        "Does λ̂ hold?",
        "λ̂ depends on nβ, γ and ε. The first row of a component is the run above; then the same at half the step, and "
        "at other γ. " + " ".join(check["verdicts"]),
        tables=[Table(CHECK_HEAD, check_rows(check))],
    )


def _comparisons(tree: "xarray.DataTree") -> list[Section]:
    """How alike rows are, and their spectrum, where there are several."""
    keep = rows_with_spread(tree)
    chi, names = chi_of(tree)[keep], [row.name for row in shown_rows(tree["susceptibility"].to_dataset())]
    kept = [name for name, has in zip(names, keep, strict=True) if has]
    values, floor = spectrum(tree)
    if len(kept) < 2:
        return []
    alike = matrix([[rank_correlation(a, b) for b in chi] for a in chi], kept, kept, reach=1.0)
    modes = list(range(1, len(values) + 1))
    drawn = curves(
        [
            Curve("χ", modes, _above_zero(values), BLUE, width=2),
            Curve("its noise", modes, _above_zero(floor), GREY, dashed=True),
        ],
        "mode", "singular value", log_y=True, width=420, height=230,
    )  # fmt: skip
    return [
        Section(
            "How alike are the rows?",
            "Rank correlation of χ between rows, blue where they agree. Rows that are all alike carry one vector.",
            html=[alike],
        ),
        Section(
            "Spectrum and its noise floor",
            "Singular values of χ with standardised rows; dashed: those of the difference of its two halves. What lies "
            "under the dashed line is noise.",
            html=[drawn],
        ),
    ]


def _above_zero(values: Floats) -> list[float]:
    """Singular values for a logarithmic axis: those that are 0 but for rounding have no place on it."""
    least = 1e-9 * max(float(values.max(initial=0.0)), 1e-300)
    return [float(value) if value > least else float("nan") for value in values]


def _trace_section(tree: "xarray.DataTree", rows: Sequence[ChiRow]) -> Section:
    traces = {row.name: row.trace(tree) for row in rows}
    sampled = {name: values for name, values in traces.items() if values.size}
    chains = sum(values.shape[1] for values in sampled.values())
    mirrored = " Their mirror images are not drawn." if tree["susceptibility"].attrs["chains_antithetic"] else ""
    if not sampled:
        return Section("Chains", "Nothing was sampled: this is a first look.")
    points = int(np.clip(TRACE_POINTS / chains, 12, POINTS))
    drawn = [Markup("<figure>{}</figure>").format(_traces(name, values, points)) for name, values in sampled.items()]
    return Section(
        "Chains",
        f"φ at each draw, one line a chain: chains that agree lie over each other.{mirrored}",
        html=[Markup('<div class="plots">{}</div>').format(Markup("").join(drawn))],
    )


def _traces(name: str, values: Floats, points: int) -> Markup:
    draws = thinned(len(values), points)
    lines = [
        Curve("", draws.tolist(), trace[draws].tolist(), COLOURS[c % len(COLOURS)], width=1)
        for c, trace in enumerate(values.T)
    ]
    return Markup("<figcaption>{}</figcaption>{}").format(name, curves(lines, "draw", "φ", width=340, height=150))


def _settings_section(settings: Document) -> Section:
    names = {
        "sampler": "sampler", "n_beta": "nβ", "localization": "γ, localization", "step_size": "ε, step size",
        "chains_chains": "chains of a round", "chains_draws": "draws of a chain", "chains_burn_in": "burn-in, steps",
        "chains_steps_between_draws": "steps between draws", "chains_batch_size": "rows of a minibatch",
        "chains_seed": "seed", "estimator": "estimator", "phi_of": "component loss is of", "calibration": "calibration",
    }  # fmt: skip
    rows = [Row([words, _plain(settings[key])], "wrap") for key, words in names.items() if settings.get(key, "") != ""]
    return Section("Settings", tables=[Table(("setting", "value"), rows)])


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _subtitle(tree: "xarray.DataTree", rows: int) -> str:
    settings = tree["susceptibility"].attrs
    signs = (("nβ", "n_beta"), ("γ", "localization"), ("ε", "step_size"))
    at = ", ".join(f"{sign} {float(settings[name]):g}" for sign, name in signs if name in settings)
    return (
        f"{rows} row{'s' if rows > 1 else ''} × {tree['susceptibility'].sizes['sample']:,} samples"
        f"{of_data(tree['susceptibility'].to_dataset())} · estimator {settings['estimator']} · {at}"
        f"{' · antithetic chains' if settings['chains_antithetic'] else ''}"
    )


def _known(value: float) -> float:
    return value if np.isfinite(value) else -np.inf
