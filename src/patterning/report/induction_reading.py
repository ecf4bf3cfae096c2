"""The page's second half: training curves, χ and its modes, token pages, predictor, text."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from patterning.report import induction_figures as figures
from patterning.report.page import Row, Section, Table
from patterning.report.tokens import coloured_text, contexts

Results = Mapping[str, Any]


def reading_sections(results: Results) -> list[Section]:
    """Pilot, χ, modes, what they say of the text, token pages, predictor, the text itself."""
    pilot, readings = results["pilot"], results["readings"]
    reading_settings = results["config"]["reading"]
    used = results["strengths"].get("mode", results["strengths"][results["lead"]])["more"]["stage"]
    return [
        Section(
            "The pilot run, and where χ was read",
            f"Unweighted, seed {results['config']['pilot_seed']}. Induction heads at its end: "
            f"{', '.join(pilot['induction_heads'])}. Dotted: thresholds. χ is read at the vertical lines, at "
            f"steps {', '.join(f'{step} ({stage})' for stage, step in pilot['at'].items())}.",
            [figures.pilot_curves(pilot, results["config"]["structure"])],
            [_heads(pilot)],
        ),
        Section(
            "Is χ reliable?",
            "Split-half reliability (rank correlation between halves of the chains, stepped up to all) of each "
            f"component's χ, and its R-hat. nβ {reading_settings['n_beta']:g}, γ {reading_settings['localization']:g}, "
            f"ε {reading_settings['step_size']:g}, {reading_settings['chains']} chains of {reading_settings['draws']} "
            f"draws (up to {reading_settings['rounds']} rounds), {reading_settings['probe_rows']} probed rows.",
            (),
            [_reliability(results)],
        ),
        Section(
            "Modes",
            "Loadings of the first modes by component, with their share of variance; ▶ the mode taken for "
            "induction, turned to score higher on induction tokens. It is picked by two signs that know nothing of "
            "each other: its loadings follow the heads' prefix matching, its scores tell induction tokens from others.",
            [figures.loadings(readings)],
            [_candidates(results)],
        ),
        Section(
            "What the induction mode and its heads answer to",
            "Means by token class and by domain, ± 2 standard errors with rows as units. χ: mean over the induction "
            "heads, each in its own standard deviations; negative where weight on such tokens lowers the heads' ⟨φ⟩.",
            [
                figures.group_means(readings, "by_class", "mode", "score of the induction mode by token class"),
                figures.group_means(readings, "by_class", "chi", "χ of the induction heads by token class"),
                figures.group_means(readings, "by_domain", "mode", "score of the induction mode by domain"),
                figures.group_means(readings, "by_domain", "chi", "χ of the induction heads by domain"),
            ],
        ),
        Section(
            "Text coloured by the induction mode",
            "Blue: high score, red: low. Each token is coloured as a prediction; hover for its score.",
            html=[_token_page(reading, opened=reading["stage"] == used) for reading in readings],
        ),
        Section(
            "From probed tokens to all of them",
            "A predictor from the frozen model's activations at the reading checkpoint, fitted on the probed tokens; "
            f"R² on rows it has not seen, used from {results['config']['min_r2']:g} on. The structure measure needs "
            "none: its first-order χ is computed on every token; its reliability is that between halves of the random "
            "blocks and rows that its gradients are taken on. Between runs: mean rank correlation of χ read in two "
            "pilot runs, and (Spearman-Brown) that of the mean over all with the mean over as many other runs.",
            (),
            [_directions(results)],
        ),
        Section("The text", "", (), [_text(results)]),
    ]


def _heads(pilot: Mapping[str, Any]) -> Table:
    previous, prefix = pilot["previous_token"][-1], pilot["prefix_matching"][-1]
    rows = [
        Row([f"l{i}h{j}", f"{value:.3f}", f"{prefix[i][j]:.3f}"])
        for i, layer in enumerate(previous)
        for j, value in enumerate(layer)
    ]
    return Table(("head, end of the pilot run", "previous token", "prefix matching"), rows)


def _reliability(results: Results) -> Table:
    readings = results["readings"]
    head = ["component"]
    for reading in readings:
        head += [f"{reading['stage']}, step {reading['step']}", "R-hat", "estimator"]
    rows = []
    for name in readings[0]["components"]:
        cells = [name]
        for reading in readings:
            cells += [
                f"{reading['reliability'][name]:.2f}",
                f"{reading['r_hat'][name]:.2f}",
                reading["estimator"][name],
            ]
        rows.append(Row(cells))
    return Table(head, rows)


def _candidates(results: Results, shown: int = 5) -> Table:
    rows = []
    for reading in results["readings"]:
        for one in reading["candidates"][:shown]:
            a = one["index"]
            chosen = a == reading["choice"]["index"]
            rows.append(
                Row(
                    [
                        f"{reading['stage']}, mode {a + 1}",
                        f"{100 * one['share']:.1f} %",
                        f"{reading['singular_values'][a]:.2f} / {reading['noise_floor']:.2f}",
                        f"{reading['stability_loadings'][a]:.2f}",
                        f"{reading['stability_scores'][a]:.2f}",
                        f"{one['loading_correlation']:+.2f}",
                        f"{one['difference']:+.2f} ({one['enrichment']:+.1f} se)",
                        f"{one['auc']:.2f}",
                        ("induction, both signs" if reading["choice"]["agrees"] else "best, signs differ")
                        if chosen
                        else "",
                    ],
                    "sure" if chosen else "",
                )
            )
    return Table(
        ("mode", "share", "σ / noise", "stable loadings", "stable scores", "with prefix matching", "induction tokens",
         "AUC", ""), rows,
    )  # fmt: skip


def _token_page(reading: Mapping[str, Any], *, opened: bool) -> Markup:
    page = reading["tokens"]
    parts = [contexts(page["top"], "highest scores"), contexts(page["bottom"], "lowest scores")]
    for row in page["rows"]:
        parts.append(Markup("<h3>{}</h3>").format(row["domain"]) + coloured_text(row["tokens"], row["scores"]))
    return Markup("<details{}><summary>{}, step {}</summary>{}</details>").format(
        Markup(" open") if opened else "", reading["stage"], reading["step"], Markup("").join(parts)
    )


def _directions(results: Results) -> Table:
    rows = [
        Row(
            [
                f"{one['name']}, read {one['stage']}",
                one.get("what", ""),
                f"{one['r2']:.2f}" if "r2" in one else "",
                ", ".join(f"{name} {value:.2f}" for name, value in one.get("reliability", {}).items()),
                _between(one),
                str(one.get("rank", "")),
                "no: " + one["refused"] if "refused" in one else "forced" if "forced" in one else "yes",
            ],
            "wrap",
        )
        for one in results["directions"]
    ]
    return Table(
        ("direction", "what it asks", "held-out R²", "reliability", "between runs", "rank of χ†", "used"), rows
    )


def _between(direction: Mapping[str, Any]) -> str:
    one, all_ = direction.get("between_runs"), direction.get("across_runs")
    return "" if one is None or all_ is None else f"{one:.2f}, all {all_:.2f}"


def _text(results: Results) -> Table:
    text = results["text"]
    rows = [Row([f"rows of {name}", f"{count:,}"]) for name, count in text["domains"].items()]
    rows += [Row([f"test tokens: {name}", f"{100 * share:.1f} %"]) for name, share in text["classes"].items()]
    return Table(("training rows and test tokens", ""), [*rows, Row(["corpus", text["corpus"]])])
