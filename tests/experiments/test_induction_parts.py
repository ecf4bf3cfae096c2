"""The parts of the induction experiment on their own: onset, stages, strengths, arms, strata, goals."""

import numpy as np
import pytest
import torch

from patterning.experiments.induction.arms import _first_mode, deal_to_rows
from patterning.experiments.induction.config import StructureSettings, load_config
from patterning.experiments.induction.direction import Direction
from patterning.experiments.induction.outcome import by_domain, judge, onset_step
from patterning.experiments.induction.pilot import Pilot, reading_steps
from patterning.experiments.induction.presets import PRESETS, preset_config
from patterning.experiments.induction.reading import clustered_mean
from patterning.experiments.induction.structure import _describe, observable_gradients
from patterning.experiments.induction.sweep import Strength, _choose, sweep
from patterning.experiments.induction.text import stratified
from patterning.models.language import LanguageConfig
from patterning.report.induction_arms import _rivals
from patterning.tasks.induction import repeated_random, repeated_random_gap, token_losses
from patterning.tasks.text.classes import induction_labels
from patterning.training.language import flatten_language, init_language, load_language

TINY = {"preset": "tiny", **PRESETS["tiny"]}


def test_onset_is_interpolated_in_log_steps() -> None:
    structure = StructureSettings()
    curves = {"prefix_matching": np.array([0.0, 0.1, 0.2, 0.4]), "repeated_gap": np.array([0.0, 1.5, 1.5, 1.5])}
    found = onset_step(np.array([0, 10, 100, 1000]), curves, structure)
    assert found == pytest.approx(100 * 10**0.5)  # 0.3 lies halfway between 0.2 and 0.4
    assert onset_step(np.array([0, 10, 100]), {k: v[:3] for k, v in curves.items()}, structure) == float("inf")


def test_reading_steps_lie_before_between_and_after() -> None:
    curves = {
        "previous_token": np.array([0.1, 0.1, 0.2, 0.5, 0.6, 0.6, 0.6, 0.6]),
        "prefix_matching": np.array([0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 0.5, 0.6]),
        "repeated_gap": np.array([0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 1.5, 1.6]),
    }
    steps = np.arange(8) * 10
    at, notes = reading_steps(steps, curves, StructureSettings())
    assert (at, notes) == ({"before": 20, "between": 50, "after": 70}, [])
    flat = {name: np.zeros(8) for name in curves}
    at, notes = reading_steps(steps, flat, StructureSettings())
    assert at["before"] < at["between"] < at["after"]
    assert len(notes) == 2


def test_clustered_mean_matches_independent_rows() -> None:
    rng = np.random.default_rng(0)
    values, rows = rng.normal(size=4000), np.arange(4000)
    found = clustered_mean(values, np.ones(4000, dtype=bool), rows)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["standard_error"] == pytest.approx(values.std(ddof=1) / 4000**0.5)
    # four equal values a row carry the information of one
    repeated = clustered_mean(np.repeat(values[:1000], 4), np.ones(4000, dtype=bool), np.repeat(np.arange(1000), 4))
    assert repeated["standard_error"] == pytest.approx(values[:1000].std(ddof=1) / 1000**0.5)


def test_rows_are_dealt_the_largest_weights_by_worth() -> None:
    rho = np.arange(12, dtype=np.float32).reshape(4, 3)[::-1].copy()
    dealt = deal_to_rows(rho, np.array([0.1, 0.9, 0.5, 0.2]))
    assert sorted(dealt.ravel()) == sorted(rho.ravel())
    assert list(np.argsort(dealt.mean(axis=1))) == [0, 3, 2, 1]


def test_each_direction_gets_its_own_best_strength_each_way() -> None:
    def row(alpha: float, less: float, more: float, side: float = 0.0) -> dict:
        return {
            "stage": "after", "policy": "clip", "alpha": alpha, "separation": more - less, "chosen": [],
            "less_gap_area": less, "more_gap_area": more, "less_side": side, "more_side": 0.01,
        }  # fmt: skip

    keep = preset_config("nano")
    assert keep.sweep.sign == "response"
    config = keep.model_copy(update={"sweep": keep.sweep.model_copy(update={"sign": "pilot"})})
    rows = [row(0.3, 0.2, 0.5), row(0.8, 0.1, 0.4), row(1.0, 0.0, 0.3, side=0.5)]  # the last one costs too much
    found = _choose(config, rows)
    assert {toward: (one.alpha, one.sign) for toward, one in found.items()} == {"less": (0.8, 1.0), "more": (0.3, 1.0)}
    assert [one["chosen"] for one in rows] == [["more"], ["less"], []]
    # where -s grew induction, "more" is -s: of the runs along -s, called "less", the one with the widest gap
    found = _choose(config, [row(0.3, 0.5, 0.2), row(0.8, 0.4, 0.1)])
    assert {toward: (one.alpha, one.sign) for toward, one in found.items()} == {
        "less": (0.8, -1.0),
        "more": (0.3, -1.0),
    }
    assert {one.sign for one in _choose(keep, [row(0.3, 0.5, 0.2)]).values()} == {1.0}


def test_the_first_mode_is_a_control_where_the_induction_mode_was_refused() -> None:
    config = load_config(TINY, "tiny")
    lead = {"more": Strength("between", "rank-tilt", 0.3, -1.0)}
    s = np.zeros((2, 3), np.float32)
    found = {(stage, "first-mode"): Direction("first-mode", stage, s, {}) for stage in ("before", "after")}
    alone = _first_mode(config, found, {"structure": lead}, "structure")
    assert alone == Strength("after", "rank-tilt", 0.3, 1.0)
    beside = {"structure": lead, "mode": {"more": Strength("before", "rank-tilt", 0.5, 1.0)}}
    assert _first_mode(config, found, beside, "structure") == Strength("before", "rank-tilt", 0.5, 1.0)
    refused = {key: Direction(one.name, one.stage, None, {}) for key, one in found.items()}
    assert _first_mode(config, refused, beside, "structure") is None


def test_rivals_are_compared_on_the_seeds_that_both_have() -> None:
    def arm(name: str, kind: str, onset: list[float], mean: float) -> dict:
        return {
            "label": name, "kind": kind, "toward": "more", "seeds": list(range(len(onset))),
            "measures": {"onset": onset}, "effect": {"onset_percent": {"difference": mean}},
        }  # fmt: skip

    base = arm("unweighted", "base", [100.0, 100.0, 100.0, 200.0], 0.0)
    chi = arm("by χ", "steered", [90.0, 90.0, 90.0, 20.0], -30.0)  # its last seed is what makes the difference
    label = arm("label", "heuristic", [80.0, 80.0, 80.0], -20.0)
    said = _rivals({"arms": [base, chi, label]})
    assert "More: onset shift by by χ -10 does not beat label (-20), means over the 3 seeds" in said


def test_a_direction_with_nothing_to_choose_is_not_tried() -> None:
    class Pool:
        def compute(self, units: list, stage: str) -> list:
            del stage
            assert not units
            return []

    values = TINY | {"directions": ["structure"], "controls": ["permuted"]}
    values["sweep"] = {"alphas": [0.4], "sign": "response"}
    found = {("between", "structure"): Direction("structure", "between", np.zeros((2, 3), np.float32), {})}
    rows, strengths = sweep(load_config(values, "tiny"), None, found, Pool())
    assert rows == []
    assert strengths == {"structure": dict.fromkeys(("less", "more"), Strength("between", "rank-tilt", 0.4, 1.0))}


def test_gradients_of_the_structure_are_those_of_its_measures() -> None:
    """A step along ∇φ moves the measure, taken by other code, by |∇φ|² times the step."""
    model = init_language(LanguageConfig(20, 12, 2, 2, 16, init_std=0.2), 0)
    blocks = repeated_random(20, 12, 40, 1)
    tokens = torch.randint(20, (40, 12), generator=torch.Generator().manual_seed(0))
    found = observable_gradients(model, blocks, tokens)
    other = ~induction_labels(tokens.numpy())

    def measures(shift: torch.Tensor) -> list[float]:
        moved = load_language(model.config, flatten_language(model) + shift)
        return [repeated_random_gap(moved, blocks), float(token_losses(moved, tokens)[other].mean())]

    for i, gradient in enumerate(found):
        step = 0.02 * gradient / gradient.norm()
        rise = measures(step)[i] - measures(-step)[i]
        assert rise == pytest.approx(2 * 0.02 * float(gradient.norm()), rel=0.02)


def test_agreement_of_runs_foretells_that_of_their_means() -> None:
    """χ of a run is what all runs share, and its own: across_runs is the correlation of two means of four runs each."""
    random = np.random.default_rng(0)
    shared = random.standard_normal((60, 200))
    runs = np.stack([0.6 * shared + 0.8 * random.standard_normal(shared.shape) for _ in range(8)]).astype(np.float32)
    found = _describe(preset_config("tiny"), runs[:4], [{"reliability": {"gap": 0.9}}] * 4)
    ours, theirs = (some.mean(axis=0).ravel() for some in (runs[:4], runs[4:]))
    assert found["between_runs"] == pytest.approx(0.36, abs=0.03)
    assert found["across_runs"] == pytest.approx(np.corrcoef(ours, theirs)[0, 1], abs=0.03)
    alone = _describe(preset_config("tiny"), runs[:1], [{"reliability": {"gap": 0.9}}])
    assert alone["between_runs"] is None


def test_chi_is_read_at_the_checkpoint_of_a_stage_and_before() -> None:
    run = {"steps": np.array([0, 1, 10, 100, 1000])}
    pilot = Pilot(1000, run, {"before": 1, "between": 100, "after": 1000}, True, {}, {}, (), ())
    assert pilot.last_steps("between", 2) == [10, 100]
    assert pilot.last_steps("before", 3) == [1]  # not at the start, where there is nothing to read


def test_strata_keep_their_shares() -> None:
    domains = np.array([0] * 60 + [1] * 30 + [2] * 10, dtype=np.uint8)
    rows = stratified(domains, 20)
    assert np.bincount(domains[rows]).tolist() == [12, 6, 2]
    assert len(set(rows)) == 20


def test_goals_and_signs() -> None:
    def arm(name: str, kind: str, toward: str, prefix: float, loss: float, shift: float, area: float = 0.0) -> dict:
        effects = {"not_induction_percent": loss, "onset_percent": shift, "gap_area": area}
        return {
            "name": name, "label": name, "kind": kind, "toward": toward, "measures": {"prefix_matching": [prefix]},
            "effect": {key: {"difference": value} for key, value in effects.items()},
        }  # fmt: skip

    arms = [
        arm("unweighted", "base", "", 0.8, 0, 0),
        arm("a", "steered", "less", 0.1, 1.0, 50),
        arm("b", "steered", "less", 0.1, 3.0, 50),  # too dear
        arm("c", "steered", "more", 0.8, 0.0, -25),
        arm("d", "null", "", 0.1, 5.0, 0),  # a control that cuts the circuit breaks the goal, whatever it costs
    ]
    arms[0]["measures"]["prefix_matching"].append(0.0)  # a seed that the other arms have not: their share leaves it out
    assert [goal["met"] for goal in judge(arms)] == [True, False, True, False]
    twice, none = arm("double-code", "domain", "", 1, 0, 0), arm("remove-code", "domain", "", 1, 0, 0)
    twice["measures"], none["measures"] = {"gap_area": [0.9, 0.8, 1.0]}, {"gap_area": [0.4, 0.1, 0.4]}
    foretold = [
        {"what": what, "stage": "after", "sign": sign, "domains": {"code": {"mean": 0.3, "standard_error": 0.1}}}
        for what, sign in (("mode", 1.0), ("chi", -1.0))
    ]
    (row,) = by_domain([twice, none], foretold)
    assert row["measured"]["difference"] == pytest.approx(0.3)
    assert row["measured"]["low"] < 0.3 < row["measured"]["high"]
    assert [one["agrees"] for one in row["foretold"]] == [True, False]
