"""The parts of the induction experiment on their own: outcomes, stages, strata, what weights may cost, presets."""

from pathlib import Path

import numpy as np
import pytest
import torch

from patterning.core.errors import PatterningError
from patterning.experiments.induction.settings import PRESETS, InductionConfig, subject_of
from patterning.experiments.induction.subject import Thresholds, outcomes_of, reading_steps
from patterning.experiments.registry import experiment_of, find_experiment
from patterning.models.language import LanguageModel
from patterning.study.settings import Strength
from patterning.study.strength import Tried, _choose
from patterning.tasks.text.source import stratified


def preset(name: str) -> InductionConfig:
    return find_experiment("induction").preset(name)


def test_outcomes_are_when_and_how_much() -> None:
    steps = np.array([0, 10, 100, 1000])
    curves = {
        "prefix_matching": np.array([0.0, 0.1, 0.2, 0.4]), "repeated_gap": np.array([0.0, 1.5, 1.5, 2.0]),
        "prefix_matching_by_head": np.zeros((4, 2, 2)),
    }  # fmt: skip
    found = outcomes_of(steps, curves, Thresholds())
    assert found == {
        "prefix_matching": 0.4, "repeated_gap": 2.0, "onset": pytest.approx(100 * 10**0.5), "formed": 1.0,
        "gap_area": 1.25,
    }  # fmt: skip
    never = outcomes_of(steps, curves, Thresholds(prefix_matching=0.5))
    assert (never["onset"], never["formed"]) == (1000.0, 0.0)


def test_reading_steps_lie_before_between_and_after() -> None:
    curves = {
        "previous_token": np.array([0.1, 0.1, 0.2, 0.5, 0.6, 0.6, 0.6, 0.6]),
        "prefix_matching": np.array([0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 0.5, 0.6]),
        "repeated_gap": np.array([0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 1.5, 1.6]),
    }
    steps = np.arange(8) * 10
    found = reading_steps(steps, curves, Thresholds())
    assert found.at == {"before": 20, "between": 50, "after": 70}
    assert found.formed
    assert found.notes == ()
    found = reading_steps(steps, {name: np.zeros(8) for name in curves}, Thresholds())
    assert found.at["before"] < found.at["between"] < found.at["after"]
    assert not found.formed
    assert len(found.notes) == 2


def test_strata_keep_their_shares() -> None:
    domains = np.array([0] * 60 + [1] * 30 + [2] * 10, dtype=np.uint8)
    rows = stratified(domains, 20)
    assert np.bincount(domains[rows]).tolist() == [12, 6, 2]
    assert len(set(rows)) == 20


def test_each_way_gets_its_own_best_strength_that_costs_little() -> None:
    """Less: within 2 % of the loss on other tokens; more: within 5 %. Where none is, the one that costs least."""
    config = preset("nano")
    subject = subject_of(config)
    few, some, much = (Strength(policy="rank-tilt", alpha=alpha) for alpha in (0.1, 0.3, 0.6))
    config = config.model_copy(update={"strengths_of": {"structure": (few, some, much)}})

    def tried(way: str, strength: Strength, change: float, loss: float) -> Tried:
        return Tried("structure", way, strength, change, 0.0, loss, subject.keeps(way, loss, 4.0), 0.9)

    def choose(*rows: Tried) -> dict:
        return _choose(config, "structure", rows, lambda row: subject.guard_score(row.guard, 4.0))

    rows = [
        tried("up", few, 0.1, 4.0), tried("up", some, 0.3, 4.15), tried("up", much, 0.6, 4.3),
        tried("down", few, -0.1, 4.0), tried("down", some, -0.4, 3.85), tried("down", much, -0.3, 4.05),
    ]  # fmt: skip
    assert choose(*rows) == {("structure", "up"): some, ("structure", "down"): much}
    dear = [tried(way, strength, 1.0, loss) for way in ("up", "down")
            for strength, loss in ((few, 3.5), (some, 4.4), (much, 5.0))]  # fmt: skip
    assert choose(*dear) == {("structure", "up"): some, ("structure", "down"): some}


def test_paper_preset_has_the_papers_parameter_count() -> None:
    with torch.device("meta"):
        model = LanguageModel(subject_of(preset("paper")).language)
    assert sum(p.numel() for p in model.parameters()) == 3_355_016


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_keep_seeds_apart(name: str) -> None:
    seeds = preset(name).seed_ranges
    assert seeds.pilots.start == 1000
    assert seeds.tuning.start == seeds.pilots.stop  # a strength is not chosen on runs that χ was read on
    assert seeds.claims.start == 5000


def test_the_eight_seed_run_is_the_nano_preset_with_the_leading_direction_alone() -> None:
    chosen, values = experiment_of(Path(__file__).parents[2] / "docs/results/induction-nano-8.yaml")
    config = chosen.load(values, "induction-nano-8.yaml")
    changed = {"preset", "seeds", "side_seeds", "directions", "controls"}
    assert config.model_dump(exclude=changed) == preset("nano").model_dump(exclude=changed)
    assert (config.seeds, config.side_seeds, config.directions, config.controls) == (8, None, ("structure",), ())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": PRESETS["tiny"]["model"] | {"heads": 3}}, "not a multiple"),
        ({"domain_seeds": 4}, "domain_seeds"),
        ({"extra": 1}, "extra"),
        ({"side_seeds": 4}, "side_seeds"),
        ({"strengths_of": {"mode": [{"policy": "clip", "alpha": -1.0}]}}, r"strengths_of\.mode.*greater than 0"),
        ({"loss_limit": {"up": 0.1}}, "loss_limit"),
        ({"tuning_seed": 1001}, "no seed may serve two purposes"),
        ({"reading": PRESETS["tiny"]["reading"] | {"probe_rows": 33}}, "probe_rows"),
    ],
)
def test_bad_settings_are_named_before_anything_runs(change: dict, says: str) -> None:
    with pytest.raises(PatterningError, match=says):
        find_experiment("induction").load({"preset": "tiny", **PRESETS["tiny"], **change}, "tiny")
