"""The parentheses presets: each is a configuration that runs, and claims have seeds of their own."""

from importlib import import_module
from itertools import combinations

import pytest

from patterning.console.presets import PRESETS as SHOWN
from patterning.experiments.parentheses.experiment import PRESETS, ParenthesesConfig, study
from patterning.experiments.parentheses.subject import ParenthesesSubject
from patterning.experiments.registry import NAMES, find_experiment


def config_of(name: str) -> ParenthesesConfig:
    config = find_experiment("parentheses").preset(name)
    assert isinstance(config, ParenthesesConfig)
    return config


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_is_a_study_whose_directions_are_read(name: str) -> None:
    config = config_of(name)
    own = study(config)
    assert set(config.directions) <= set(own.readings)
    assert isinstance(own.subject, ParenthesesSubject)
    assert max(own.subject.measure_at) == config.train.steps


def test_declared_presets_have_claim_seeds_of_their_own() -> None:
    claims = {name: set(config_of(name).seed_ranges.claims) for name in PRESETS if name != "quick"}
    assert all(not claims[one] & claims[other] for one, other in combinations(claims, 2))


def test_the_size_of_the_paper_is_that_of_li_et_al() -> None:
    config = config_of("paper-3-layers")
    assert (config.task.max_length, config.task.draws, config.task.layers) == (40, 200_000, 3)
    assert (config.train.batch_size, config.train.learning_rate, config.train.steps) == (8, 1e-4, 125_000)


def test_the_command_s_help_names_the_presets_there_are() -> None:
    assert list(SHOWN) == list(NAMES)
    for name, sizes in SHOWN.items():
        module = import_module(f"patterning.experiments.{name}" + ("" if name == "addition" else ".experiment"))
        assert list(sizes) == list(module.PRESETS)
