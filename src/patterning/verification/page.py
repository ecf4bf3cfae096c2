"""The page of an `Evidence`: what was found, the outcomes by seed, the differences, and how the weights were made."""

from collections.abc import Sequence
from typing import Protocol

from markupsafe import Markup

from patterning.report.charts import COLOURS, GREY, Difference, Strip, forest, strips
from patterning.report.page import Row, Section, Table, render_page
from patterning.verification.arms import HEAD, Arm, order_of

RULE = (
    "An arm steers a measure when, over paired seeds, it differs from the unweighted arm and from its own weights "
    "dealt to other samples (permuted), in the same direction, each interval excluding 0 at the level that allows for "
    "the number of directions tried."
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

    def sentences(self) -> list[str]:
        """What was found."""
        ...

    def cells(self) -> list[list[str]]:
        """The table."""
        ...


def evidence_page(evidence: Shown, title: str) -> str:
    """One self-contained page."""
    arms = order_of(evidence.arms)
    sections = [
        Section(
            "Outcomes by seed",
            "Each dot is one training run; joined to it, small and grey, the run of the same seed without weights. The "
            "bar is the mean.",
            html=[_strips(arms, name) for name in evidence.measures],
        ),
        Section(
            "Differences to the same seeds unweighted",
            "With 95 % intervals over the paired seeds. A difference whose interval leaves out 0 is more than chance "
            "between seeds; that its permuted control moves as well would say that uneven weights alone do it.",
            html=[_forest(arms, name) for name in evidence.measures],
        ),
        Section("All numbers", RULE, tables=[Table(HEAD, [Row(cells) for cells in evidence.cells()])]),
        Section("How the weights were made", tables=[_facts(arms)]),
    ]
    return render_page(
        title=title,
        subtitle=f"{len(evidence.seeds)} paired seeds: {', '.join(str(seed) for seed in evidence.seeds)}",
        headline=evidence.sentences(),
        warnings=[],
        sections=sections,
        provenance=RULE,
        config="\n".join(f"{arm.name}: {dict(arm.facts)}" for arm in arms),
    )


def _strips(arms: list[Arm], measure: str) -> Markup:
    base = arms[0].values[measure]
    groups = [
        Strip(arm.name, arm.values[measure].tolist(), [] if arm is arms[0] else base.tolist(), _colour(arm, i))
        for i, arm in enumerate(arms)
    ]
    return strips(groups, measure)


def _forest(arms: list[Arm], measure: str) -> Markup:
    rows = [
        Difference(
            arm.name, arm.effects[measure].difference, arm.effects[measure].low, arm.effects[measure].high,
            _colour(arm, i),
        )
        for i, arm in enumerate(arms)
        if measure in arm.effects
    ]  # fmt: skip
    return forest(rows, f"change of {measure}")


def _colour(arm: Arm, i: int) -> str:
    return COLOURS[i % len(COLOURS)] if arm.kind == "arm" else GREY


def _facts(arms: list[Arm]) -> Table:
    names = sorted({key for arm in arms for key in arm.facts if not isinstance(arm.facts[key], dict)})
    rows = [Row([arm.name, *(str(arm.facts.get(name, "")) for name in names)]) for arm in arms]
    return Table(("weights", *names), rows)
