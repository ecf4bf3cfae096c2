"""Induction in a language model: which tokens of its text make the circuit, and when? Steered by weights on tokens.

χ of the repeated-random gap is read at unweighted pilot runs on every training token; weights along it bring the
circuit sooner or keep it away (docs/induction.md, docs/results/induction.md).
"""

from collections.abc import Callable, Mapping

from patterning.experiments.induction.induction_page import sections
from patterning.experiments.induction.settings import DEFAULT, PRESETS, InductionConfig, subject_of
from patterning.experiments.induction.subject import GAP, OTHER, InductionSubject
from patterning.experiments.induction.summary import summarise
from patterning.intervention.direction import Direction
from patterning.study.arms import Rival
from patterning.study.bench import Bench, Reading
from patterning.study.readings_of_components import OfComponents
from patterning.study.readings_of_tokens import FirstOrder
from patterning.study.rivals import (
    Lead,
    by_label,
    by_worth,
    other_reading,
    random_directions,
    random_functions,
    without_groups,
)
from patterning.study.run import Study
from patterning.verification.controls import compressibility

CONFIG = InductionConfig
__all__ = ["CONFIG", "DEFAULT", "PRESETS", "study"]

WANTED = {"gap_area": 1.0, "onset": -1.0, "prefix_matching": 1.0, "repeated_gap": 1.0}
"""More induction, by sign of each measure."""
READ_AT = {"structure": "between", "mode": "after", "full": "after"}
"""The stage of a direction of this name; "mode-between" names another."""


def study(config: InductionConfig) -> Study:
    """What `run_study` runs."""
    subject = subject_of(config)
    stages = ("before", "between", "after")
    readings: dict[str, Reading] = {
        name if stage == usual else f"{name}-{stage}": reading(config, name, stage)
        for name, usual in READ_AT.items()
        for stage in (usual, *(other for other in stages if other != usual))
    }
    return Study(
        subject,
        readings,
        keep=subject.checkpoints,
        rivals=lambda bench, directions: rivals(config, bench, directions),
        more=lambda bench, runs: summarise(config, readings, bench, runs),
        sections=sections,
    )


def reading(config: InductionConfig, name: str, stage: str) -> Reading:
    """A direction at a stage."""
    return structure_at(config, stage) if name == "structure" else components_at(config, name, stage)


def structure_at(config: InductionConfig, stage: str, runs: int | None = None) -> FirstOrder:
    """χ of the repeated gap, over all pilots or the first `runs`."""
    own = config.reading
    return FirstOrder(
        GAP, OTHER, stage, own.rows, own.localization, own.n_beta, config.structure.hold_other,
        config.structure.readings, runs, WANTED,
    )  # fmt: skip


def components_at(config: InductionConfig, what: str, stage: str) -> OfComponents:
    """A direction from χ of the components."""
    smooth = tuple(config.side) if "random-smooth" in config.controls else ()
    return OfComponents(what, stage, config.reading, config.min_r2, smooth, WANTED)


def rivals(config: InductionConfig, bench: Bench, directions: Mapping[str, Direction]) -> dict[str, Rival]:
    """What the leading direction is compared with, besides its permuted weights."""
    assert isinstance(bench.subject, InductionSubject)
    lead, text = Lead.of(bench, directions, config.side), bench.subject.text_data
    one_run, other = structure_at(config, READ_AT["structure"], 1), components_at(config, "other-mode", READ_AT["mode"])
    of_mode = bench.chosen.get(("mode", "up"))
    makers: dict[str, Callable[[], dict[str, Rival]]] = {
        "random": lambda: random_directions(lead),
        "random-smooth": lambda: random_functions(lead, other.random_functions(bench)),
        "one-run": lambda: other_reading(lead, "structure of one run", lambda: one_run.read("one run", bench), "up"),
        "other-mode": lambda: other_reading(
            lead, "largest other mode", lambda: other.read("other mode", bench), strength=of_mode
        ),
        "label": lambda: by_label(lead, "induction label", text.classes["induction"]),
        "gzip": lambda: by_worth(lead, "compressible rows (gzip)", -compressibility(text.row_bytes)),
        "domains": lambda: without_groups(bench, text.domains, config.domain_changes, config.domain_seeds),
    }
    return {name: rival for control in config.controls for name, rival in makers[control]().items()}
