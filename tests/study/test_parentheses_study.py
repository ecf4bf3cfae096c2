"""The parentheses experiment on the study: its training is what it was, and goes on after a kill to the same bits."""

import xml.etree.ElementTree as ET
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patterning.core.errors import PatterningError
from patterning.experiments.parentheses import experiment
from patterning.experiments.parentheses.subject import ParenthesesSubject, TaskSize
from patterning.experiments.registry import NAMES, find_experiment
from patterning.intervention.data_weights import Weights
from patterning.training import checkpoint
from patterning.training.weighted import TrainConfig, advance, init_state

TINY: dict[str, Any] = {
    "preset": "tiny",
    "task": {"max_length": 10, "draws": 600, "layers": 1, "heads": 2, "width": 16, "test_strings": 60},
    "train": {"steps": 40, "batch_size": 16, "learning_rate": 5e-3, "weight_decay": 1e-3},
    "smooth": {"steps": 20, "batch_size": 32, "learning_rate": 3e-3, "weight_decay": 1e-3},
    "measure_at": (20, 40),
    "sampling": {"n_beta": 30.0, "localization": 1e6, "step_size": 1e-8, "chains": 2, "draws": 8, "burn_in": 5,
                 "steps_between_draws": 1, "batch_size": 16},
    "pilots": 3, "seeds": 4, "solutions": 1, "directions": ("gap", "llc-total", "ood", "metagradient"),
    "strengths": ({"policy": "rank-tilt", "alpha": 1.0},), "permuted": ("gap",), "min_reliability": 0.0, "force": True,
    "rival_readings": ("losses", "llc-posterior"), "other_strengths": ({"policy": "rank-tilt", "alpha": 0.5},),
    "class_factors": (0.4,), "random_directions": 2, "rival_seeds": 2,
}  # fmt: skip


@pytest.fixture
def anything_is_a_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "PURE", 0.0)
    monkeypatch.setattr(experiment, "CONSTANT_LOSS", 5.0)  # so small a model learns nothing in so few steps


@pytest.mark.long
@pytest.mark.usefixtures("anything_is_a_solution")
def test_the_whole_experiment_at_toy_size(tmp_path: Path) -> None:
    found = find_experiment("parentheses")
    config = found.load(TINY, "tiny")
    results = found.run(config, tmp_path / "run")
    arms = [arm["name"] for arm in results["arms"]]
    assert arms[:3] == ["unweighted", "gap → Nested", "gap → Nested, permuted"]
    named = {"losses → Equal-Count", "llc-posterior → Nested", "gap → Nested, rank-tilt 0.5", "random direction 2"}
    assert named <= set(arms)
    assert sum(name.startswith("0.4 × FALSE") for name in arms) == 6
    seeds = {arm["name"]: len(arm["seeds"]) for arm in results["arms"]}
    assert (seeds["gap → Nested"], seeds["losses → Nested"], seeds["llc-posterior → Nested"]) == (4, 4, 2)
    assert results["foretold"][0]["pairs"] == [2, 4]
    assert "oracle → Nested" in arms
    told = next(one for one in results["directions"] if one["name"] == "gap")
    assert {"llc-posterior", "entropic", "energy"} <= set(told["rank_correlation_with_free_energy"])
    steep = next(one for one in results["directions"] if one["name"] == "metagradient")
    assert len(steep["growth"]) == 3
    assert -1 <= steep["metasmoothness"] <= 1
    assert len(results["foretold"][0]["arms"]) == len(arms)  # every arm was foretold
    # each label keeps its weight
    shares = results["subject"]["group_shares"]
    for arm in results["arms"]:
        if arm["weight_by_group"] and arm["kind"] == "arm":
            assert arm["weight_by_group"]["TRUE"] == pytest.approx(1.0)
            rest = sum(shares[name] * value for name, value in arm["weight_by_group"].items())
            assert rest == pytest.approx(1.0)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Unweighted pilot runs" in page
    assert "Equal-Count" in page
    picture = (tmp_path / "run" / "figure.svg").read_text()
    assert ET.fromstring(picture).tag.endswith("svg")
    assert "gap → Nested, permuted" in picture
    again = found.run(config, tmp_path / "run")
    assert again["rows"] == results["rows"]
    weights = Weights.from_parquet(tmp_path / "run" / "weights" / "gap-Nested.parquet")
    assert weights.summary().effective_sample_size == pytest.approx(
        results["arms"][1]["facts"]["effective_sample_size"]
    )
    # the same strings, another model: the weights are the same
    wider = TINY | {"task": TINY["task"] | {"layers": 2}, "given": tmp_path / "run", "directions": ("given",)}
    other = found.run(found.load(wider | {"rival_readings": (), "class_factors": ()}, "tiny"), tmp_path / "wider")
    rho = Weights.from_parquet(tmp_path / "wider" / "weights" / "given-Nested.parquet").rho
    np.testing.assert_array_equal(rho, weights.rho)
    assert other["directions"][0]["what"] == "the direction gap that another run found on the same samples"
    strange = wider | {"task": TINY["task"] | {"seed": 1}}
    with pytest.raises(PatterningError, match="of other data"):
        found.run(found.load(strange, "tiny"), tmp_path / "strange")


def test_no_solution_is_said_with_what_was_seen(tmp_path: Path) -> None:
    found = find_experiment("parentheses")
    with pytest.raises(PatterningError, match=r"no checkpoint .* solution of the kind 'Nested'.*best"):
        found.run(found.load(TINY | {"directions": ("gap",)}, "tiny"), tmp_path / "run")


def subject() -> ParenthesesSubject:
    return ParenthesesSubject(TaskSize(10, 600, 1, 2, 16, 60), TrainConfig(2500, 16, 3e-3, 1e-3), (1000, 2500))


def test_training_is_that_of_the_weighted_optimiser(tmp_path: Path) -> None:
    own, rho = subject(), np.linspace(0.5, 1.5, len(subject().base_weights))
    small = ParenthesesSubject(own.size, TrainConfig(30, 16, 3e-3, 1e-3), (10, 30))
    runs = small.train(rho, (7,), (30,), tmp_path / "state")
    state = advance(small.task, small.settings, init_state(small.task, (7,)), (7,), torch.from_numpy(rho), 30)
    np.testing.assert_array_equal(runs.kept[30], state.flat.numpy())
    measured = small.task.measure(state.flat)
    assert runs.measures["ood_accuracy"] == measured["ood_accuracy"]


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ParenthesesSubject(subject().size, TrainConfig(40, 16, 3e-3, 1e-3), (10, 25, 40))
    monkeypatch.setattr("patterning.experiments.parentheses.subject.SAVE_EVERY", 15)
    rho = np.ones(len(small.base_weights))
    whole = small.train(rho, (3,), (25, 40), tmp_path / "whole")

    class StoppedError(Exception):
        pass

    saved = checkpoint.save_state

    def save_twice(state: Any, *rest: Any) -> None:
        saved(state, *rest)
        if state.step == 30:
            raise StoppedError

    monkeypatch.setattr("patterning.experiments.parentheses.subject.save_state", save_twice)
    with pytest.raises(StoppedError):
        small.train(rho, (3,), (25, 40), tmp_path / "state")
    resumed = small.train(rho, (3,), (25, 40), tmp_path / "state")
    for step in (25, 40):
        np.testing.assert_array_equal(whole.kept[step], resumed.kept[step])
    for name, curve in whole.curves.items():
        np.testing.assert_array_equal(curve, resumed.curves[name])


def test_distinct_strings_are_as_many_as_asked_for_and_no_two_alike() -> None:
    task = ParenthesesSubject(TaskSize(14, 400, 1, 2, 16, 20, distinct=True), TrainConfig(1), ()).task
    assert len(task.train) == 400
    assert task.train.labels.sum() == 200
    assert np.allclose(task.base_weights, 1 / 400)
    with pytest.raises(PatterningError, match="there are not 1000 different strings up to length 8"):
        _ = ParenthesesSubject(TaskSize(8, 2000, 1, 2, 16, 20, distinct=True), TrainConfig(1), ()).task


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_is_a_configuration(name: str) -> None:
    found = find_experiment(name)
    module = import_module(f"patterning.experiments.{name}")
    if hasattr(module, "__path__"):
        module = import_module(f"patterning.experiments.{name}.experiment")
    for preset in module.PRESETS:
        assert found.preset(preset).preset == preset
    with pytest.raises(PatterningError, match="unknown preset 'huge': choose from"):
        found.preset("huge")
