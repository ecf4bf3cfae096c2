"""The induction page's first half: goals, warnings, arms, paired differences, heuristics, domains, strength."""

from collections.abc import Mapping, Sequence
from typing import Any

from patterning.report import induction_figures as figures
from patterning.report.page import Row, Section, Table

Results = Mapping[str, Any]
HEAD = (
    "arm", "onset, step", "onset, % of unweighted", "prefix matching", "repeated gap", "ICL", "loss, induction",
    "loss, other, %", "ESS", "seeds",
)  # fmt: skip
SHOWN = (
    ("onset_percent", "+.0f", "onset, %"), ("prefix_matching", "+.3f", "prefix matching"),
    ("repeated_gap", "+.3f", "repeated gap"), ("icl", "+.3f", "ICL"), ("loss", "+.3f", "loss"),
    ("loss:induction", "+.3f", "loss, induction"), ("not_induction_percent", "+.2f", "loss, other, %"),
)  # fmt: skip


def _interval(effect: Mapping[str, Any] | None, form: str) -> str:
    if effect is None:
        return "not defined"
    if effect["low"] is None:
        return f"{effect['difference']:{form}} ({effect['pairs']}\u00a0seed{'s' * (effect['pairs'] > 1)})"
    return f"{effect['difference']:{form}} [{effect['low']:{form}},\u00a0{effect['high']:{form}}]"


def _sure(effect: Mapping[str, Any] | None) -> bool:
    return effect is not None and effect["low"] is not None and (effect["low"] > 0 or effect["high"] < 0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def outcome_rows(results: Results) -> list[Row]:
    """One row an arm: means over seeds, and the onset's paired shift. ≥: some runs never got there."""
    rows = []
    for arm in results["arms"]:
        own, effect = arm["measures"], arm["effect"] or {}
        notes = arm["notes"]
        cells = [
            arm["label"],
            _onset(own),
            _interval(effect["onset_percent"], "+.0f") if effect else "",
            f"{_mean(own['prefix_matching']):.3f}",
            f"{_mean(own['repeated_gap']):.3f}",
            f"{_mean(own['icl']):+.3f}",
            f"{_mean(own['loss:induction']):.3f}",
            _interval(effect["not_induction_percent"], "+.2f") if effect else f"{_mean(own['loss:not induction']):.3f}",
            f"{notes['effective_sample_size']:.2f}" if "effective_sample_size" in notes else "1",
            str(len(arm["seeds"])),
        ]
        rows.append(Row(cells, f"wrap {arm['toward']}{' sure' if _sure(effect.get('onset_percent')) else ''}"))
    return rows


def _onset(measures: Mapping[str, list[float]]) -> str:
    never, runs = int(sum(measures["censored"])), len(measures["censored"])
    mean = f"{_mean(measures['onset']):.0f}"
    return f"≥ {mean} ({never} of {runs} never)" if never else mean


def headline(results: Results) -> list[str]:
    """The goals, each met or missed, with the numbers of every arm that was to meet it."""
    asks = {
        "less": "Less induction (final prefix matching under a quarter, other loss within 2 %)",
        "more": "More induction (onset at least 20 % earlier)",
        "neither": "Permuted and random weights do neither",
    }
    lines = []
    for goal, ask in asks.items():
        found = [one for one in results["goals"] if one["goal"] == goal]
        if not found:
            lines.append(f"{ask}: not tried.")
            continue
        met = all(one["met"] for one in found) if goal == "neither" else any(one["met"] for one in found)
        lines.append(f"{ask}: {'met' if met else 'missed'}. {'; '.join(one['says'] for one in found)}.")
    domains = results["domains"]
    if domains:
        said = [
            f"{reading['what']} ({reading['stage']}) for "
            f"{', '.join(row['domain'] for row in domains if row['foretold'][i]['agrees']) or 'none'}"
            for i, reading in enumerate(domains[0]["foretold"])
        ]
        lines.append(f"χ by domain agrees in sign with the means of retraining: {'; '.join(said)}.")
    return lines


def warnings(results: Results) -> list[str]:
    """What was refused, forced, left out or unreliable, and where the picture is not the expected one."""
    lines = [f"pilot: {note}" for note in results["pilot"]["notes"]]
    for direction in results["directions"]:
        where = f"{direction['name']} ({direction['stage']})"
        if "refused" in direction:
            lines.append(f"direction {where} was not used: {direction['refused']}")
        if "forced" in direction:
            lines.append(f"direction {where} was forced: {direction['forced']}")
    for name, ways in results["strengths"].items():
        if ways["more"]["sign"] < 0:
            lines.append(
                f"direction {name}: on the pilot seeds the response's sign was reversed: what it calls 'more' gave "
                "less induction, so its 'more' is -s (sweep.sign: pilot)"
            )
    for reading in results["readings"]:
        lines += [f"left out, diverged: {name}" for name in reading["excluded"]]
        weak = [name for name, value in reading["reliability"].items() if not value >= 0.5]
        if weak:
            lines.append(f"χ {reading['stage']}: reliability under 0.5, mostly noise: {', '.join(weak)}")
        if not reading["choice"]["agrees"]:
            lines.append(f"modes {reading['stage']}: loadings and scores pick different modes as the induction mode")
        elif not reading["choice"]["expressed"]:
            lines.append(
                f"modes {reading['stage']}: heads with high prefix matching have the higher χ on induction tokens, "
                "against expectation: the two readings of 'more' point in opposite directions"
            )
    if any(sum(arm["measures"]["censored"]) for arm in results["arms"] if arm["name"] == "unweighted"):
        lines.append("induction did not form in every unweighted run: the onset's shifts understate or mean little")
    return lines


def arm_sections(results: Results) -> list[Section]:
    """Curves, outcome table, paired differences, heuristics, domains, strength."""
    arms, steps, structure = results["arms"], results["pilot"]["steps"], results["config"]["structure"]
    base = [arm for arm in arms if arm["kind"] == "base"]
    kinds = (
        (("steered",), "weights by χ"), (("null", "control"), "controls"), (("heuristic",), "without χ"),
        (("domain",), "domains removed and doubled"),
    )  # fmt: skip
    drawn = [
        figures.arm_curves(base + chosen, steps, title)
        for kind, title in kinds
        if (chosen := [arm for arm in arms if arm["kind"] in kind])
    ]
    return [
        Section(
            "Arms: what retraining shows",
            "Same seed, same start, same minibatches in every arm; only the weights differ. Thin: seeds, thick: mean. "
            f"Onset: the step at which some head's prefix matching reaches {structure['prefix_matching']:g} and the "
            f"repeated-random gap {structure['repeated_gap']:g} nats, interpolated in log(step) between checkpoints; a "
            "run that never gets there counts with its last step (≥). Brackets: 95 % intervals over paired seeds "
            "(bootstrap-t); bold: the onset's interval excludes 0. Means are over the arm's own seeds, the first of "
            "the unweighted arm's; shifts are to the same seeds unweighted.",
            drawn,
            [Table(HEAD, outcome_rows(results))],
        ),
        Section(
            "Paired differences",
            "To the unweighted runs, and to the runs under the same weights permuted within bands of token frequency.",
            [
                figures.forest(arms, "onset_percent", "shift of the onset, % of the unweighted run's"),
                figures.forest(arms, "prefix_matching", "change of the final prefix matching"),
            ],
            [_effects(arms, "effect", "against unweighted"), _effects(arms, "against_permuted", "against permuted"),
             _classes(arms)],
        ),
        Section("Where χ beats the plain heuristics, and where not", _rivals(results), (), [_likeness(results)]),
        *_domain_section(results),
        *_strength_section(results),
    ]  # fmt: skip


def _domain_section(results: Results) -> list[Section]:
    """None where no domain was retrained without, or with twice as much."""
    if not results["domains"]:
        return []
    return [
        Section(
            "χ by domain against retraining without it, or with twice as much",
            "Change of the repeated gap, averaged over the checkpoints, by doubling and by removing a domain; by more "
            "of it: half their difference, or minus the change by removing it. Each reading is held to the last.",
            (),
            [_domains(results), _foretold(results)],
        )
    ]


def _strength_section(results: Results) -> list[Section]:
    """None where nothing was left to choose."""
    if not results["sweep"]:
        return []
    limits = results["config"]["sweep"]["loss_limit"]
    tried = {row["direction"] for row in results["sweep"]}
    given = [f"{name} (α {one['more']['alpha']:g})" for name, one in results["strengths"].items() if name not in tried]
    return [
        Section(
            "Strength, chosen on pilot seeds",
            "Each direction's own: the largest and the smallest repeated gap, averaged over the checkpoints, among "
            "candidates that keep the loss on other tokens within "
            f"{' and '.join(f'{100 * limit:g} % ({toward})' for toward, limit in limits.items())}. Seeds are others "
            "than those that χ was read on; no claim seed was used."
            + (f" Given, not chosen: {', '.join(given)}." if given else ""),
            [figures.sweep_figure(results["sweep"])],
            [_sweep(results)],
        ),
    ]


def _effects(arms: Sequence[Mapping[str, Any]], key: str, title: str) -> Table:
    rows = [
        Row([arm["label"], *(_interval(arm[key][name], form) for name, form, _ in SHOWN)], f"wrap {arm['toward']}")
        for arm in arms
        if arm[key]
    ]
    return Table((title, *(label for _, _, label in SHOWN)), rows)


def _classes(arms: Sequence[Mapping[str, Any]]) -> Table:
    names = [name for name in arms[0]["measures"] if name.startswith("loss:")]
    rows = [
        Row([arm["label"], *(_interval(arm["effect"][name], "+.3f") for name in names)], f"wrap {arm['toward']}")
        for arm in arms
        if arm["effect"]
    ]
    return Table(
        ("loss by token class", *(name[5:] for name in names)), rows, "change of the loss by token class, nats"
    )


def _rivals(results: Results) -> str:
    """One sentence for each goal: the best χ arm beside each heuristic, on the same seeds."""
    arms = results["arms"]
    lines = []
    for toward, measure, what, form in (
        ("more", "onset_percent", "onset shift", "+.0f"),
        ("less", "prefix_matching", "change of final prefix matching", "+.3f"),
    ):
        steered = [arm for arm in arms if arm["kind"] == "steered" and arm["toward"] == toward]
        rivals = [arm for arm in arms if arm["kind"] == "heuristic" and arm["toward"] == toward]
        if not steered or not rivals:
            continue
        shared = min(len(arm["seeds"]) for arm in (*steered, *rivals))
        best = min(steered, key=lambda arm: arm["effect"][measure]["difference"])
        own = _change(best, arms[0], measure, shared)
        parts = []
        for rival in rivals:
            value = _change(rival, arms[0], measure, shared)
            parts.append(f"{'beats' if own < value else 'does not beat'} {rival['label']} ({value:{form}})")
        lines.append(
            f"{toward.capitalize()}: {what} by {best['label']} {own:{form}} {' and '.join(parts)}, means over the "
            f"{shared} seeds that all of these have; intervals are above."
        )
    return " ".join(lines) + " Below: rank correlation of row means of each direction with the heuristics."


def _change(arm: Mapping[str, Any], base: Mapping[str, Any], measure: str, seeds: int) -> float:
    """Mean paired change over the first `seeds` seeds; of a measure called "…_percent" relative to the other run's."""
    name = measure.removesuffix("_percent")
    pairs = list(zip(arm["measures"][name], base["measures"][name], strict=False))[:seeds]
    return _mean([100 * (a / b - 1) if name != measure else a - b for a, b in pairs])


def _likeness(results: Results) -> Table:
    keys = list(dict.fromkeys(key for row in results["likeness"] for key in row if key not in ("stage", "name")))
    rows = [
        Row([f"{row['name']}, read {row['stage']}", *(f"{row[key]:+.2f}" if key in row else "" for key in keys)])
        for row in results["likeness"]
    ]
    return Table(("direction, mean of each row", *keys), rows)


def _domains(results: Results) -> Table:
    rows = [
        Row(
            [
                row["domain"],
                *(
                    _interval(row[key], "+.3f") if key in row else "not run"
                    for key in ("doubled", "removed", "measured")
                ),
            ]
        )
        for row in results["domains"]
    ]
    return Table(("domain", "doubled: gap", "removed: gap", "more of it: gap"), rows)


def _foretold(results: Results) -> Table:
    """χ by domain of every reading, and whether its sign is that of retraining."""
    domains = results["domains"]
    rows = []
    for i, reading in enumerate(domains[0]["foretold"] if domains else []):
        cells = [f"{reading['what']}, {reading['stage']}"]
        for row in domains:
            own = row["foretold"][i]
            cells += [f"{own['mean']:+.3f} ± {own['standard_error']:.3f}", "yes" if own["agrees"] else "no"]
        rows.append(Row(cells))
    head = [cell for row in domains for cell in (row["domain"], "agrees")]
    return Table(
        ("reading", *head), rows,
        "mean ± standard error, rows as units, in standard deviations of the reading; more of a domain is foretold to "
        "grow induction by a positive mean of the structure measure or of the mode, and by a negative χ of the heads",
    )  # fmt: skip


def _sweep(results: Results) -> Table:
    rows = [
        Row(
            [
                f"{row['direction']}, {row['stage']}, {row['policy']}, α {row['alpha']:g}",
                f"{row['separation']:+.3f}",
                *(
                    f"{row[f'{toward}_{key}']:{form}}"
                    for key, form in (("onset", ".0f"), ("prefix_matching", ".3f"), ("repeated_gap", ".2f"))
                    for toward in ("less", "more")
                ),
                *(f"{100 * row[f'{toward}_side']:+.1f} %" for toward in ("less", "more")),
                " and ".join(row["chosen"]),
            ],
            "sure" if row["chosen"] else "",
        )
        for row in results["sweep"]
    ]
    return Table(
        ("candidate (signs as foretold)", "separation", "onset, less", "onset, more", "prefix, less", "prefix, more",
         "gap, less", "gap, more", "loss, other, less", "loss, other, more", "chosen for"), rows,
    )  # fmt: skip
