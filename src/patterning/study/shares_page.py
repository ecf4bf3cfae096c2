"""Shares of runs, for studies of yes-or-no outcomes: as a table, beside drawings of the runs, and as was predicted."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from patterning.core.plain import Document
from patterning.report.page import Row, Section, Table
from patterning.report.shapes import BLUE, GREY, ORANGE, Bar, Dot, percent, scatter, share_bars, side_by_side
from patterning.study.findings import interval, rows_of


def share_table(results: Document) -> Table:
    """An arm a row: each outcome's share with its interval, in per cent, then what was predicted of each."""
    rows, told, measures = rows_of(results), _told(results), _measures(results)
    lines = []
    for arm in results["arms"]:
        mine = [rows[arm["name"], measure] for measure in measures]
        shares = [interval(row["mean"], row["low"], row["high"]) for row in mine]
        predicted = [f"{100 * told[arm['name'], one][0]:.1f}" for one in measures if (arm["name"], one) in told]
        lines.append(Row([arm["name"], *shares, " / ".join(predicted)], "sure" if arm["kind"] == "arm" else ""))
    return Table(("weights", *(f"{measure} [95 %]" for measure in measures), "predicted"), lines)


def share_sections(results: Document, drawings: Mapping[str, Markup], legend: str) -> list[Section]:
    """The unweighted and the asked arms; predicted against realised; every other arm."""
    first = [arm for arm in results["arms"] if arm["kind"] in ("base", "arm")]
    rest = [arm for arm in results["arms"] if arm["kind"] not in ("base", "arm")]
    bars = "Bars: shares of all runs with 95 % intervals; diamond: predicted before training; dotted: unweighted."
    predicted = (
        "Each dot is a set of weights and an outcome, with 95 % intervals: of shares over runs, of predictions over "
        "what they were made from. Discs: the first outcome; squares: the others; hollow: weights that no reading "
        "made. Where shares of unweighted pilot runs calibrated the prediction, the unweighted row is no test of it."
    )
    return [
        Section("What training ends in", f"{legend} {bars}".strip(), html=[_beside(results, first, drawings)]),
        Section("Predicted against realised", predicted, html=_scatter(results), tables=[share_table(results)]),
        Section(
            "Permuted weights, and weights to compare with",
            "Permuted: the same weights dealt to other samples. What they do differs from draw to draw.",
            html=[_beside(results, rest, drawings)],
        ),
    ]


def colour_of(results: Document, measure: str) -> str:
    """The first outcome is blue, the others are orange; grey for what is no outcome."""
    measures = _measures(results)
    return GREY if measure not in measures else BLUE if measure == measures[0] else ORANGE


def _measures(results: Document) -> list[str]:
    return [one["measure"] for one in results["subject"]["outcomes"]]


def _told(results: Document) -> dict[tuple[str, str], Sequence[float]]:
    """Predicted share, low, high, by arm and measure."""
    shares = [one for one in results["foretold"] if one.get("of_shares")]
    return {(arm["name"], one["measure"]): arm["expected"] for one in shares for arm in one["arms"]}


def _beside(results: Document, arms: Sequence[Document], drawings: Mapping[str, Markup]) -> Markup:
    return side_by_side([(arm["name"], drawings.get(arm["name"], Markup()), _bars(results, arm)) for arm in arms])


def _bars(results: Document, arm: Document) -> Markup:
    rows, told, base = rows_of(results), _told(results), results["arms"][0]["name"]
    bars = []
    for measure in _measures(results):
        row = rows[arm["name"], measure]
        mark = told.get((arm["name"], measure), [None])[0]
        reference = None if arm["name"] == base else rows[base, measure]["mean"]
        colour = colour_of(results, measure)
        bars.append(Bar(measure, row["mean"], row["low"], row["high"], colour, mark, reference))
    return share_bars(bars, f"shares under the weights {arm['name']}")


def _scatter(results: Document) -> list[Markup]:
    rows, kinds, dots = rows_of(results), {arm["name"]: arm["kind"] for arm in results["arms"]}, []
    for (arm, measure), (value, low, high) in _told(results).items():
        row = rows[arm, measure]
        words = f"{arm}: {measure} predicted {percent(value)}, realised {percent(row['mean'])}"
        dots.append(
            Dot(
                value, row["mean"], (low, high), (row["low"], row["high"]), colour_of(results, measure), words,
                square=measure != _measures(results)[0], hollow=kinds[arm] not in ("base", "arm", "control"),
            )
        )  # fmt: skip
    if not dots:
        return []
    return [scatter(dots, "predicted share", "realised share", "predicted against realised shares")]


def chain_text(config: Document, stiffest: float) -> str:
    """How the chains of a table of free energies were made; `stiffest`: the largest curvature of the loss."""
    own = config["sampling"]
    widening = own["step_size"] * (stiffest * config["n_beta"] + own["localization"]) / 4
    return (
        f"{own['chains']} chains of {own['steps']} SGLD steps around each solution, nβ {config['n_beta']:g}, γ "
        f"{own['localization']:g}, ε {own['step_size']:g}, exact gradients. Where the loss curves by {stiffest:g}, the "
        f"step size widens the variance by {100 * widening / (1 - widening):.0f} %, in flatter directions by less. A "
        f"descent without noise every {10 * own['steps_between_draws']} steps tells which solution a chain is at; one "
        "that was elsewhere even once is left out, by name. λ̂ = nβ (E[L] - L(w*)) depends on nβ, γ and ε."
    )


def chain_table(results: Document) -> Table:
    """The chains around each solution: λ̂, whether they agree, and which were left out."""
    rows = []
    for one in results["solutions"]:
        cells = [one["name"], f"{one['loss']:.5f}", f"{one['llc']:.2f} ± {one['llc_error']:.2f}", f"{one['r_hat']:.3f}"]
        cells += [f"{one['worst_r_hat']:.3f}", f"{one['ess']:.0f}", str(one["chains"])]
        rows.append(Row([*cells, "; ".join(one["excluded"]) or "none"], "wrap"))
    head = (
        "solution",
        "L(w*)",
        "λ̂ ± error",
        "R-hat of L",
        "largest R-hat of a sample",
        "ESS of L",
        "chains",
        "left out",
    )
    return Table(head, rows)
