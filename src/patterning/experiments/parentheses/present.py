"""The experiment's results as a terminal table and as a page; both are made from `results.json` alone."""

from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table as TerminalTable

from patterning.core.store import RunFolder, write_whole
from patterning.report import figures
from patterning.report.page import Row, Section, Table, render_page
from patterning.study.conduct import provenance_line, read_json_results

Results = dict[str, Any]


def read_results(run: RunFolder) -> Results:
    """The results of a finished run; raises `PatterningError` when it has none or they are damaged."""
    return read_json_results(run, "parentheses", lambda results: all("simultaneous" in arm for arm in results["arms"]))


def _interval(effect: dict[str, Any] | None) -> str:
    return "" if effect is None else f"{effect['difference']:+.3f} [{effect['low']:+.3f}, {effect['high']:+.3f}]"


def _sure(effect: dict[str, Any] | None) -> bool:
    return effect is not None and (effect["low"] > 0 or effect["high"] < 0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


HEAD = (
    "arm", "OOD accuracy", "against unweighted", "against permuted", "ID accuracy",
    "named N / E / neither", "ESS", "policy, α",
)  # fmt: skip


def outcome_rows(results: Results) -> list[Row]:
    """One row an arm: mean outcome, paired differences with 95 % intervals, and how many runs end under each rule."""
    rows = []
    for arm in results["arms"]:
        effect = (arm["effect"] or {}).get("ood_accuracy")
        against = (arm["effect_against_permuted"] or {}).get("ood_accuracy")
        notes, rules = arm["notes"], arm["rules"]
        cells = [
            arm["label"],
            f"{_mean(arm['measures']['ood_accuracy']):.3f}",
            _interval(effect),
            _interval(against),
            f"{_mean(arm['measures']['id_accuracy']):.3f}",
            f"{rules['nested']} / {rules['equal_count']} / {rules['none'] + rules['first_symbol']}",
            f"{notes['effective_sample_size']:.2f}" if "effective_sample_size" in notes else "",
            f"{notes['policy']}, {notes['alpha']:g}" if "policy" in notes else "",
        ]
        rows.append(Row(cells, f"{arm['toward']}{' sure' if _sure(effect) else ''}"))
    return rows


def headline(results: Results) -> list[str]:
    """What the run found, one sentence for each rule asked for."""
    lines = []
    for toward, sign in (("nested", 1), ("equal_count", -1)):
        steered = [arm for arm in results["arms"] if arm["kind"] == "steered" and arm["toward"] == toward]
        if not steered:
            lines.append(f"Asked for {figures.NAMES[toward]}: no direction was reliable enough to invert.")
            continue
        best = max(steered, key=lambda arm: sign * arm["effect"]["ood_accuracy"]["difference"])
        effect, against = best["simultaneous"]["unweighted"], best["simultaneous"]["permuted"]
        moved = sign * effect["difference"] > 0 and _sure(effect)
        beyond = against is not None and sign * against["difference"] > 0 and _sure(against)
        verdict = "steered" if moved and beyond else "moved, not shown to be steered" if moved else "no clear steering"
        control = f"; against its permuted control {_interval(against)}" if against else "; it has no permuted control"
        lines.append(
            f"Asked for {figures.NAMES[toward]}: {verdict}. The largest of {len(steered)} directions, {best['label']}, "
            f"changes OOD accuracy by {_interval(effect)} over {effect['pairs']} paired seeds{control}. The intervals "
            f"allow for picking one of {len(steered)} ({100 * effect['level']:.4g} % each)."
        )
    return lines


def print_table(results: Results, console: Console) -> None:
    """The outcome table and the headline on a terminal."""
    table = TerminalTable(
        title=f"parentheses, preset {results['config']['preset']}: OOD accuracy is 1 for Nested, 0 for Equal-Count"
    )
    for i, name in enumerate(HEAD[:6]):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i == 0, overflow="fold")
    for row in outcome_rows(results):
        table.add_row(*row.cells[:6], style="bold" if "sure" in row.kind else "")
    console.print(table)
    for line in headline(results):
        console.print(line, highlight=False)
    for line in warnings(results):
        console.print(f"note: {line}", style="yellow", highlight=False)


def warnings(results: Results) -> list[str]:
    """Directions that were refused, and chains that were left out, by name."""
    lines = [
        f"{direction['name']} was not inverted: {direction['refused']}"
        for direction in results["directions"]
        if "refused" in direction
    ]
    return lines + [f"left out, diverged: {name}" for chains in results["chains"] for name in chains["excluded"]]


def write_page(run: RunFolder, results: Results) -> None:
    """Write `report.html` into the run folder."""
    config = results["config"]
    task, model = results["task"], config["task"]
    page = render_page(
        title="Which algorithm does it learn? Parentheses, steered by data",
        subtitle=(
            f"preset {config['preset']} · {model['layers']} layers, {model['heads']} heads, "
            f"{task['parameters']:,} parameters · "
            f"{task['samples']:,} distinct strings from {task['draws']:,} draws · {config['seeds']} paired seeds an arm"
        ),
        headline=headline(results),
        warnings=warnings(results),
        sections=_sections(results),
        provenance=provenance_line(results),
        config=yaml.safe_dump(config, sort_keys=False),
    )
    write_whole(run.path / "report.html", page.encode())


def _sections(results: Results) -> list[Section]:
    arms = results["arms"]
    sections = [
        Section(
            "Outcome of retraining",
            "Both algorithms are perfect on the training distribution. On unbalanced strings with equal counts, Nested "
            "answers all correctly (1) and Equal-Count none (0). Left, grey: the same seed unweighted. Bar: mean.",
            [figures.outcome_strips(arms, "ood_accuracy", "OOD accuracy")],
        ),
        Section(
            "Paired effects",
            "Difference to the unweighted arm over paired seeds, with 95 % bootstrap-t intervals; bold rows exclude 0. "
            "N and E count the runs that agree with Nested or Equal-Count on 90 % of the set. "
            "The permuted control deals the same weights to other FALSE strings.",
            [figures.effect_forest(arms, "change of OOD accuracy")],
            [Table(HEAD, outcome_rows(results)), _side_effects(arms)],
        ),
        Section(
            "What the weights look like",
            "Mean relative weight ρ by class of strings. TRUE strings are frozen at 1. Adaptive: mean over runs.",
            [figures.weights_by_class(arms)],
            [_extreme_strings(arms)],
        ),
    ]
    if results["sweep"]:
        sections.append(
            Section(
                "Strength, chosen on pilot seeds",
                "Every policy and α was tried on seeds that are not used above; filled markers were chosen. "
                "Bars: one standard error.",
                [figures.alpha_sweep(results["sweep"])],
            )
        )
    sections += [
        Section("Is χ reliable?", _reliability_text(results), (), [_reliability(results), _directions(results)]),
        Section(
            "What each direction asks for, by class",
            "Mean rank score of the direction to Nested (standard normal over the FALSE strings): positive classes "
            "gain weight. The last column is the response of OOD accuracy that pilot runs showed when retrained, ± one "
            "standard error: a direction that foretells retraining has its signs.",
            (),
            [_by_class(results["directions"])],
        ),
        Section(
            "Chains",
            "Mean loss at each draw; dotted: L(w*). R-hat near 1 and flat traces mean that the chains agree.",
            [figures.loss_traces(chains) for chains in results["chains"]],
            [_chain_table(results), _pilots(results)],
        ),
    ]
    return sections


def _side_effects(arms: Sequence[dict[str, Any]]) -> Table:
    names = ("id_accuracy", "agree_nested", "agree_equal_count", "agree_first_symbol")
    rows = [
        Row([arm["label"], *(_interval(arm["effect"][name]) for name in names)], arm["toward"])
        for arm in arms
        if arm["effect"]
    ]
    return Table(
        ("side effects, against unweighted", "ID accuracy", *(name[6:].replace("_", " ") for name in names[1:])), rows
    )


def _extreme_strings(arms: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for arm in arms:
        if arm["kind"] != "steered" or not arm["extreme_strings"]:
            continue
        up, down = arm["extreme_strings"]["up"], arm["extreme_strings"]["down"]
        for a, b in zip(up, down, strict=True):
            rows.append(
                Row([arm["label"], a["text"], f"{a['rho']:.2f}", b["text"], f"{b['rho']:.2f}"], f"mono {arm['toward']}")
            )
    folded = "the ten most and least weighted strings of each direction"
    return Table(("arm", "most weight", "ρ", "least weight", "ρ"), rows, folded)


def _reliability_text(results: Results) -> str:
    wanted = results["config"]["min_reliability"]
    return (
        "Rank correlation of χ between the even and the odd chains over the strings that may move, stepped up to all "
        f"chains (Spearman-Brown). Rows under {wanted} are not inverted. The last column shows how heavy the tails are."
    )


def _reliability(results: Results) -> Table:
    rows = [
        Row(
            [
                f"{row['observable']}, {row['around'].replace('_', '-')}",
                f"{row['reliability']:.2f}",
                "yes" if row["usable"] else "no",
                f"{row['median_z']:.1f}",
                f"{100 * row['top_percent_share']:.0f} %",
            ]
        )
        for row in results["reliability"]
    ]
    return Table(
        ("row of χ", "reliability", "usable", "median |χ| / standard error", "Σχ² in the top 1 % of strings"), rows
    )


def _directions(results: Results) -> Table:
    rows = [
        Row(
            [
                direction["name"],
                direction["what"],
                str(direction.get("rank", "")),
                f"{direction['condition']:.1f}" if "condition" in direction else "",
                f"{direction['noise_floor']:.2f}" if "noise_floor" in direction else "",
                direction.get("refused", ""),
            ]
        )
        for direction in results["directions"]
    ]
    return Table(("direction", "what it asks", "rank", "condition", "noise floor", "refused because"), rows)


def _by_class(directions: Sequence[dict[str, Any]]) -> Table:
    scored = [direction for direction in directions if "score_by_class" in direction]
    measured = next((direction for direction in directions if "chi" in direction), None)
    rows = []
    for name in scored[0]["score_by_class"] if scored else ():
        cells = [name, *(f"{direction['score_by_class'][name]:+.2f}" for direction in scored)]
        if measured is not None:
            i = measured["classes"].index(name)
            cells.append(f"{measured['chi'][i]:+.3f} ± {measured['standard_error'][i]:.3f}")
        rows.append(Row(cells))
    head = ["class", *(direction["name"] for direction in scored)]
    return Table((*head, "measured by retraining") if measured is not None else tuple(head), rows)


def _chain_table(results: Results) -> Table:
    rows = [
        Row(
            [
                f"{name}, {chains['around'].replace('_', '-')}",
                f"{value['mean']:.4g} ± {value['standard_error']:.2g}",
                f"{value['r_hat']:.3f}",
                f"{value['ess']:.0f}",
                f"{value['autocorrelation_time']:.1f}",
            ]
        )
        for chains in results["chains"]
        for name, value in chains["observables"].items()
    ]
    return Table(
        ("observable, relative to w*", "mean ± standard error", "R-hat", "ESS", "autocorrelation time, draws"), rows
    )


def _pilots(results: Results) -> Table:
    rows = []
    for record in results["calibrations"]:
        for pilot in record["pilots"]:
            chosen = pilot["localization"] == record["localization"] and pilot["step_size"] == record["step_size"]
            rows.append(
                Row(
                    [
                        record["around"].replace("_", "-"),
                        f"{record['n_beta']:g}",
                        f"{pilot['localization']:.3g}",
                        f"{pilot['step_size']:.3g}",
                        f"{100 * pilot['rise']:.3g} %",
                        f"{pilot['r_hat']:.2f}",
                        "diverged" if pilot["diverged"] else ("chosen" if chosen else ""),
                    ],
                    "sure" if chosen else "",
                )
            )
    return Table(("calibration around", "nβ", "γ", "ε", "rise of the loss", "R-hat", ""), rows)
