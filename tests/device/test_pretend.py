"""On a pretended device: numbers as the CPU's, tensors apart as on a GPU, and no wait that grows with the steps.

What is done there is in `checks.py`; it runs in a process of its own, as a backend cannot be taken back.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKS = Path(__file__).with_name("checks.py")
Answers = dict[str, Any]
pytestmark = pytest.mark.slow  # half a minute; `make device` and the gate run it


@pytest.fixture(scope="module")
def answers() -> Answers:
    done = subprocess.run([sys.executable, CHECKS], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def answer(answers: Answers, name: str) -> Answers:
    """A check's answer; its error is shown."""
    assert "error" not in answers[name], answers[name]["error"]
    return answers[name]


@pytest.mark.parametrize("name", ["pathwise", "covariance", "first_look", "observables", "calibrated"])
def test_chi_is_that_of_the_cpu_where_both_draw_the_same_numbers(answers: Answers, name: str) -> None:
    found = answer(answers, name)
    assert found["chi"] > 0
    assert found["difference"] < 1e-4


def test_a_task_that_was_moved_keeps_its_key(answers: Answers) -> None:
    told = {"given": True, "key": True, "place": "pretend:0", "rows": True, "weights": True}
    assert answer(answers, "by_workers") == told


def test_chains_wait_for_the_host_once_a_window(answers: Answers) -> None:
    for one_look, other, *longer in answer(answers, "waits_of_chains").values():
        assert one_look == other
        if longer:
            two_looks, three_looks = longer
            assert two_looks - one_look == three_looks - two_looks > 0


def test_draws_wait_for_nothing(answers: Answers) -> None:
    few, more = answer(answers, "waits_of_draws")["draws"]
    assert few == more


@pytest.mark.parametrize("phi", ["probes", "data"])
def test_the_way_back_waits_for_nothing(answers: Answers, phi: str) -> None:
    assert len(set(answer(answers, "waits_of_pathwise")[phi])) == 1


@pytest.mark.parametrize("name", ["rows", "brackets", "language"])
def test_training_waits_for_nothing(answers: Answers, name: str) -> None:
    assert len(set(answer(answers, "waits_of_training")[name])) == 1


def test_brackets_are_trained_on_the_same_minibatches(answers: Answers) -> None:
    found = answer(answers, "brackets")
    assert found["losses"] < 1e-4
    assert found["measures"] < 0.05  # an answer near the border may turn
    assert found["wider"] < 1e-5


def test_a_language_model_is_trained_on_the_same_minibatches(answers: Answers) -> None:
    found = answer(answers, "languages")
    assert found["place"] == "cpu"
    assert found["difference"] < 1e-4 * found["size"]


def test_fit_brings_the_module_back(answers: Answers) -> None:
    found = answer(answers, "fitted")
    assert found["place"] == "cpu"
    assert found["difference"] < 1e-5


def test_a_loss_with_a_tensor_elsewhere_is_refused(answers: Answers) -> None:
    assert "must be on the module's device" in answer(answers, "a_loss_of_its_own")["refused"]
