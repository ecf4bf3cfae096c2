"""The superposition experiment's results as a terminal table and as a page; both are made from `results.json` alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from markupsafe import Markup
from rich.console import Console
from rich.table import Table as TerminalTable

from patterning.core.store import RunFolder, write_whole
from patterning.experiments import superposition_text as text
from patterning.report import shapes
from patterning.report.page import Row, Section, Table, render_page
from patterning.report.shapes import BLUE, GREY, ORANGE, Bar, Dot, Polygon, percent
from patterning.study.conduct import provenance_line
from patterning.tasks.superposition import FEATURES, QUARTERS, SOLUTIONS

Results = dict[str, Any]
Arm = Mapping[str, Any]


def outcome_rows(results: Results) -> list[Row]:
    """One row an arm: for each target the realised share with its interval, then what was predicted, in per cent."""
    names = _targets(results)
    rows = []
    for arm in results["arms"]:
        outcomes = [arm["outcomes"][name] for name in names]
        predicted = [f"{100 * outcome['predicted']['share']:.1f}" for outcome in outcomes]
        cells = [arm["label"], *(text.interval(outcome) for outcome in outcomes), " / ".join(predicted)]
        rows.append(Row(cells, "sure" if arm["kind"] == "ask" else ""))
    return rows


def print_table(results: Results, console: Console) -> None:
    """What was left out, the table of shares, and two sentences on a terminal."""
    for line in text.left_out(results):
        console.print(f"note: {line}", style="yellow", highlight=False)
    config = results["config"]
    table = TerminalTable(title=f"superposition, preset {config['preset']}: end states of {config['seeds']} runs, %")
    table.add_column("weights", no_wrap=True)
    for name in _targets(results):
        table.add_column(f"{name} [95 %]", justify="right", no_wrap=True)
    table.add_column("predicted", justify="right", no_wrap=True)
    for row in outcome_rows(results):
        table.add_row(*row.cells, style="bold" if row.kind else "")
    console.print(table)
    for line in text.verdict(results):
        console.print(line, highlight=False)


def write_page(run: RunFolder, results: Results) -> None:
    """Write `report.html` and `figure.svg` (its first figure alone) into the run folder."""
    config = results["config"]
    content = render_page(
        title="Which shape does it learn? Six features in a plane, steered by data",
        subtitle=(
            "Weights for training data, computed from a free-energy gap, choose which polygon a small network grows · "
            f"preset {config['preset']} · {config['seeds']} paired runs for each set of weights"
        ),
        headline=text.verdict(results),
        warnings=(),
        sections=_sections(results),
        provenance=provenance_line(results),
        config=yaml.safe_dump(config, sort_keys=False),
    )
    write_whole(run.path / "report.html", content.encode())
    strips = [(_caption(results, arm), _drawings(results, arm)[:12]) for arm in _main(results)]
    write_whole(
        run.path / "figure.svg",
        shapes.poster(strips, "the six columns of W after training, twelve runs a row").encode(),
    )


def _sections(results: Results) -> list[Section]:
    config = results["config"]
    weights = "Relative weight ρ of each group: feature (rows) by quarter of μ (columns); 1 is unweighted."
    tables = [_table(results, name) for name in _targets(results)]
    predicted, gap = text.prediction_text(results), text.parts_text(results)
    return [
        Section("What training grows", text.legend(), html=[_rows(results, _main(results))]),
        Section("Predicted against realised", predicted, html=[_scatter(results)], tables=tables),
        Section("Controls and heuristics", text.control_text(results), html=[_rows(results, _rest(results), 12)]),
        Section("The weights", weights, html=[_weights(results)]),
        Section("What the gap is made of", gap, html=[_parts(results)], tables=[_cosines(results)]),
        Section("The chains around the seven solutions", text.chain_text(config), tables=[_chains(results)]),
        Section("The experiment in words", text.method_text(config)),
    ]


# Pieces


def _targets(results: Results) -> list[str]:
    return [ask["target"] for ask in results["config"]["asks"]]


def _main(results: Results) -> list[Arm]:
    return [arm for arm in results["arms"] if arm["kind"] in ("unweighted", "ask")]


def _rest(results: Results) -> list[Arm]:
    return [arm for arm in results["arms"] if arm["kind"] not in ("unweighted", "ask")]


def _colour(results: Results, state: int) -> str:
    name = (*SOLUTIONS, "other")[state]
    return BLUE if name == "hexagon" else ORANGE if name in _targets(results) else GREY


def _drawings(results: Results, arm: Arm) -> list[Polygon]:
    seed = results["config"]["first_seed"]
    shown = []
    for i, (columns, live) in enumerate(zip(arm["columns"], arm["live"], strict=True)):
        state = arm["states"][i]
        points = list(zip(columns[:FEATURES], columns[FEATURES:], strict=True))
        name = "another state" if state == len(SOLUTIONS) else text.long_name(SOLUTIONS[state])
        shown.append(Polygon(points, live, _colour(results, state), f"seed {seed + i}: {name}"))
    return shown


def _bars(results: Results, arm: Arm) -> list[Bar]:
    base, bars = results["arms"][0], []
    for name in _targets(results):
        outcome = arm["outcomes"][name]
        reference = None if arm is base else base["outcomes"][name]["share"]
        colour = BLUE if name == "hexagon" else ORANGE
        bars.append(
            Bar(
                name,
                outcome["share"],
                outcome["low"],
                outcome["high"],
                colour,
                outcome["predicted"]["share"],
                reference,
            )
        )
    return bars


def _caption(results: Results, arm: Arm) -> str:
    shares = ", ".join(f"{name} {text.interval(arm['outcomes'][name])} %" for name in _targets(results))
    return f"{arm['label']}: {shares}"


def _rows(results: Results, arms: Sequence[Arm], count: int | None = None) -> Markup:
    rows = [
        (
            arm["label"],
            shapes.gallery(_drawings(results, arm)[:count]),
            shapes.share_bars(_bars(results, arm), f"shares in the arm {arm['label']}"),
        )
        for arm in arms
    ]
    return shapes.side_by_side(rows)


def _scatter(results: Results) -> Markup:
    dots = []
    for arm in results["arms"]:
        for name in _targets(results):
            realised = arm["outcomes"][name]
            predicted = realised["predicted"]
            words = f"predicted {percent(predicted['share'])}, realised {percent(realised['share'])}"
            dots.append(
                Dot(
                    x=predicted["share"],
                    y=realised["share"],
                    x_interval=(predicted["low"], predicted["high"]),
                    y_interval=(realised["low"], realised["high"]),
                    colour=BLUE if name == "hexagon" else ORANGE,
                    title=f"{arm['label']}: {name} {words}",
                    square=name != "hexagon",
                    hollow=arm["kind"] in ("heuristic", "partial"),
                )
            )
    return shapes.scatter(dots, "predicted share", "realised share", "predicted against realised shares")


def _table(results: Results, name: str) -> Table:
    rows = []
    for arm in results["arms"]:
        outcome, effect = arm["outcomes"][name], arm["outcomes"][name]["effect"]
        cells = [arm["label"], text.interval(outcome), text.interval(outcome["predicted"])]
        rows.append(Row([*cells, text.points(effect) if effect else ""], "sure" if arm["kind"] == "ask" else ""))
    return Table(("weights", f"{name}, % [95 %]", "predicted, % [95 %]", "less unweighted, points [95 %]"), rows)


def _weights(results: Results) -> Markup:
    reach = max(abs(value - 1) for arm in results["arms"] for value in arm["rho"])
    return shapes.tiles([(arm["label"], _grid(arm["rho"], arm["label"], 1.0, reach)) for arm in results["arms"][1:]])


def _grid(values: Sequence[float], label: str, middle: float, reach: float) -> Markup:
    lines = [values[QUARTERS * i : QUARTERS * (i + 1)] for i in range(FEATURES)]
    columns = ("μ 0-¼", "¼-½", "½-¾", "¾-1")
    return shapes.heat_map(
        lines, [f"feature {i + 1}" for i in range(FEATURES)], columns, label, middle=middle, reach=reach
    )


def _parts(results: Results) -> Markup:
    tiles = []
    for direction in results["directions"]:
        for key, what in (("s", "free-energy gap"), ("energy", "energy part"), ("entropic", "entropic part")):
            title = f"{direction['target']}: {what}"
            tiles.append((title, _grid(direction[key], title, 0.0, 1.0)))
    return shapes.tiles(tiles)


def _cosines(results: Results) -> Table:
    head = ("cosine of", "gap and energy part", "gap and entropic part", "energy and entropic part")
    rows = []
    for direction in results["directions"]:
        cosines = direction["cosines"]
        rows.append(
            Row(
                [
                    direction["target"],
                    *(f"{cosines[key]:+.3f}" for key in ("gap_energy", "gap_entropic", "energy_entropic")),
                ]
            )
        )
    return Table(head, rows)


def _chains(results: Results) -> Table:
    head = (
        "solution",
        "L(w*)",
        "λ̂ ± error",
        "R-hat of L",
        "largest R-hat of a group",
        "ESS of L",
        "chains",
        "left out",
    )
    rows = []
    for solution in results["solutions"]:
        cells = [solution["name"], f"{solution['loss']:.5f}", f"{solution['llc']:.2f} ± {solution['llc_error']:.2f}"]
        cells += [f"{solution['r_hat']:.3f}", f"{solution['worst_r_hat']:.3f}", f"{solution['ess']:.0f}"]
        rows.append(Row([*cells, str(solution["chains"]), "; ".join(solution["excluded"]) or "none"], "wrap"))
    return Table(head, rows)
