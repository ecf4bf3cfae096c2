"""The page of an `Evidence`: what was found, the outcomes by seed, the differences, and how the weights were made."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import yaml
from markupsafe import Markup

from patterning.core.plain import Plain
from patterning.core.store import strict_json
from patterning.intervention.change import what_rows_keep
from patterning.report.charts import COLOURS, GREY, Difference, Strip, forest, strips
from patterning.report.page import Row, Section, Table, render_page
from patterning.verification.arms import Arm, order_of
from patterning.verification.wording import HEAD, LEGEND, with_unit

MOST_LINES = 4
"""Sentences under the title; the table holds the rest."""
MORE = "More findings are in the table below."

RULE = (
    "An arm steers a measure when, over paired seeds, it differs from the unweighted arm and from its own weights "
    "dealt to other samples (permuted), in the same direction, each interval excluding 0 at the level that allows for "
    "the number of directions tried, and the way that was asked for. Where nothing was asked, the same two intervals "
    "say that a measure moved beyond permuted."
)


class Shown(Protocol):
    """What of an `Evidence` the page shows."""

    @property
    def arms(self) -> Sequence[Arm]:
        """In the order of the table."""
        ...

    @property
    def measures(self) -> Sequence[str]:
        """Their names."""
        ...

    @property
    def seeds(self) -> Sequence[int]:
        """The paired seeds."""
        ...

    @property
    def units(self) -> Mapping[str, str]:
        """Of measures, where one is known."""
        ...

    def cautions(self) -> list[str]:
        """What to keep in mind."""
        ...

    def findings(self) -> list[str]:
        """What was found, what was asked for first."""
        ...

    def level(self) -> str:
        """How many directions were tried, and the level of the intervals that findings use."""
        ...

    def cells(self) -> list[list[str]]:
        """The table."""
        ...


def evidence_page(evidence: Shown, title: str) -> str:
    """One self-contained page."""
    arms, units = order_of(evidence.arms), evidence.units
    first, *others = evidence.measures
    findings = evidence.findings()
    kept = findings if len(findings) <= MOST_LINES else [*findings[:MOST_LINES], MORE]
    sections = [
        Section(
            "Outcomes by seed",
            "Each dot is one training run; joined to it, small and grey, the run of the same seed without weights. The "
            "bar is the mean.",
            html=[_strips(arms, name, units) for name in evidence.measures],
        ),
        *([Section("Differences of the other measures", html=[_forest(arms, name, units) for name in others])]
          if others else []),
        Section("All numbers", f"{RULE} {evidence.level()} {LEGEND}", tables=[
            Table(HEAD, [Row(cells, "claim") for cells in evidence.cells()])]),
        Section("How the weights were made", tables=_facts(arms)),
    ]  # fmt: skip
    return render_page(
        title=title,
        subtitle=f"{len(evidence.seeds)} paired seeds: {', '.join(str(seed) for seed in evidence.seeds)}",
        headline=kept,
        opening=[_first_figure(arms, first, units)],
        warnings=evidence.cautions(),
        sections=sections,
        provenance=RULE,
        config=yaml.safe_dump({arm.name: strict_json(dict(arm.facts)) for arm in arms}, sort_keys=False,
                              allow_unicode=True),
    )  # fmt: skip


def _first_figure(arms: list[Arm], measure: str, units: Mapping[str, str]) -> Markup:
    caption = (
        f"Change of {with_unit(measure, units)} against the same seeds unweighted, with 95 % intervals over the pairs. "
        "An interval that leaves out 0 is more than chance between seeds; a permuted control that moves the same way "
        "says that uneven weights alone do it."
    )
    return Markup('<figure style="margin:.6rem 0"><figcaption>{}</figcaption>{}</figure>').format(
        caption, _forest(arms, measure, units)
    )


def _strips(arms: list[Arm], measure: str, units: Mapping[str, str]) -> Markup:
    base = arms[0].values[measure]
    groups = [
        Strip(arm.name, arm.values[measure].tolist(), [] if arm is arms[0] else base.tolist(), _colour(arm, i))
        for i, arm in enumerate(arms)
    ]
    return strips(groups, with_unit(measure, units))


def _forest(arms: list[Arm], measure: str, units: Mapping[str, str]) -> Markup:
    rows = [
        Difference(
            arm.name, arm.effects[measure].difference, arm.effects[measure].low, arm.effects[measure].high,
            _colour(arm, i),
        )
        for i, arm in enumerate(arms)
        if measure in arm.effects
    ]  # fmt: skip
    return forest(rows, f"change of {with_unit(measure, units)}")


def _colour(arm: Arm, i: int) -> str:
    return COLOURS[i % len(COLOURS)] if arm.kind == "arm" else GREY


def _facts(arms: list[Arm]) -> list[Table]:
    """How each arm's weights were made, in words; then what was expected of them."""
    made = [Row([arm.name, facts_in_words(arm.facts)], "wrap") for arm in arms]
    expected = [
        Row([arm.name, name, _change(change, 1.0), _change(change, _number(arm.facts.get("strength")))])
        for arm in arms
        for name, change in _mapping(arm.facts.get("predicted_per_strength")).items()
    ]
    head = ("weights", "measured number", "expected for each unit of strength", "expected at this strength")
    return [Table(("weights", "how they were made"), made), *([Table(head, expected)] if expected else [])]


def _number(value: Plain) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _mapping(value: Plain) -> Mapping[str, Plain]:
    return value if isinstance(value, Mapping) else {}


def _change(change: Plain, factor: float) -> str:
    numbers = [_number(_mapping(change).get(key)) for key in ("value", "low", "high")]
    if not math.isfinite(numbers[0] * factor):
        return "not known"
    value, *ends = (number * factor for number in numbers)
    known = all(math.isfinite(end) for end in ends)
    return f"{value:+.3g} [{min(ends):+.3g}, {max(ends):+.3g}]" if known else f"{value:+.3g} (error unknown)"


NOT_IN_WORDS = ("target", "predicted_per_strength", "by_token_per_strength", "component_losses")
"""Facts that other parts of the page show, or that are for `verify`."""


def facts_in_words(facts: Mapping[str, Any]) -> str:
    """One sentence of how weights were made; a fact that has no words of its own is named with its value."""
    left = {key: value for key, value in facts.items() if key not in NOT_IN_WORDS}
    parts = [str(left.pop("what", "weights of your own"))]
    if "strength" in left:
        strength, asked, policy = left.pop("strength"), left.pop("asked_strength", None), left.pop("policy", None)
        words = f"strength {strength:.3g}"
        if asked is not None and abs(asked - strength) > 1e-9 * max(abs(asked), 1.0):
            words += f" ({asked:.3g} was asked for, and lowered for the effective sample size)"
        parts.append(words + (f" by the policy {policy}" if policy else ""))
    if "per" in left:
        parts.append(f"one weight for each {left.pop('per')}")
    if kept := what_rows_keep(facts):
        parts.append(kept)
    if "effective_sample_size" in left:
        parts.append(f"effective sample size {100 * left.pop('effective_sample_size'):.0f} % of what may move")
    if "seed" in left:
        parts.append(f"dealt by each run's seed (first: {left.pop('seed')})")
    if "rescaled" in left:
        parts.append(f"rescaled by {left.pop('rescaled'):.3g} to keep the mean weight")
    if "held_out_r2" in left:
        parts.append(f"extended from {left.pop('probed_rows', 'some')} probed rows, R² {left.pop('held_out_r2'):.2f} "
                     "on rows held out")  # fmt: skip
    parts += [f"{key.replace('_', ' ')}: {_value(value)}" for key, value in left.items()]
    return "; ".join(parts) + "."


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(one)}" for key, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
