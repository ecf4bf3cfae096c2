"""A training loop must be a function of its weights and its seed, and a measure must leave what it measures alone."""

import copy
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from patterning.core.errors import PatterningError
from patterning.intervention.data_weights import Weights
from patterning.verification.verify import verify
from tests.faults.test_hostile_verify import SEEDS, X, arm, mean_under, network, value

STATE = torch.zeros(1)


def bump() -> None:
    STATE.add_(1.0)


def through_a_helper(weights: Weights, seed: int) -> float:
    bump()
    return mean_under(weights, seed) + 0.05 * float(STATE[0])


class Object:
    """A loop as an object that counts."""

    def __init__(self) -> None:
        self.runs = [0]

    def train(self, weights: Weights, seed: int) -> float:
        self.runs[0] += 1
        return mean_under(weights, seed) + 0.05 * self.runs[0]


def going_on(returns):
    """One network for all runs, of which `returns` something that is not the network itself."""
    net = nn.Linear(8, 1)

    def train(weights: Weights, seed: int):
        noise = torch.randn(8, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            net.weight.add_(torch.from_numpy(weights.rho).float() + 0.01 * noise)
        return returns(net)

    return train


def first_weight(result) -> float:
    return result if isinstance(result, float) else float(next(result.parameters()).detach()[0, 0])


def writes_into_its_data():
    data = torch.from_numpy(X).clone()

    def train(weights: Weights, seed: int) -> float:
        data.add_(0.2)
        return mean_under(weights, seed) + float(data.mean())

    return train


def an_object_of_random_numbers():
    rng = np.random.default_rng(0)
    return lambda weights, seed: mean_under(weights, seed) + rng.standard_normal()


def from_the_clock(weights: Weights, seed: int) -> float:
    return mean_under(weights, seed) + float(np.random.default_rng(list(os.urandom(8))).standard_normal())


@pytest.mark.parametrize(
    ("train", "named"),
    [
        (going_on(copy.deepcopy), "left in net,"),
        (going_on(lambda net: float(net.weight.detach().sum())), "left in net,"),
        (writes_into_its_data(), "left in data,"),
        (an_object_of_random_numbers(), "left in rng,"),
        (through_a_helper, "left in STATE,"),
        (Object().train, "left in self.runs,"),
        (
            partial(lambda held, weights, seed: held.add_(1.0) and mean_under(weights, seed) + held, STATE),
            "argument 0,",
        ),
        (from_the_clock, "draws from a generator or reads a clock"),
    ],
)
def test_a_loop_that_does_not_repeat_itself_is_refused_by_name_after_four_runs(train, named: str) -> None:
    calls: list[int] = []

    def counted(result):
        calls.append(1)
        return first_weight(result) if not isinstance(result, torch.Tensor) else float(result)

    with pytest.raises(PatterningError, match=rf"called again with the same weights and seed .*seed 0.*{named}"):
        verify(train, {"more": arm()}, {"m": counted}, SEEDS)
    assert len(calls) == 4


def test_without_the_second_run_a_drift_passes_for_an_effect_and_the_evidence_says_what_was_not_done() -> None:
    drift, nothing = Object(), Weights.of_rows(np.array([1.001, 0.999, 1, 1, 1, 1, 1, 1]))
    found = verify(drift.train, {"nothing": nothing}, {"m": value}, SEEDS, controls=(), recheck=False)
    # runs 1, 2, 4 … 7 are unweighted, and 3, 8 … 12 the arm's: 28 / 6 runs later on average, whatever the weights are
    assert found.effect("nothing").difference == pytest.approx(0.05 * 28 / 6, abs=0.001)
    assert any("no run was made twice" in note for note in found.notes)
    with pytest.raises(PatterningError, match=r"self\.runs"):
        verify(drift.train, {"nothing": nothing}, {"m": value}, SEEDS, controls=())


def counting(log: Path):
    """An honest loop that writes down its calls where no key sees them."""

    def train(weights: Weights, seed: int) -> float:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{seed}\n")
        return mean_under(weights, seed)

    return train


def test_it_costs_one_run_in_each_call_and_can_be_left_out(tmp_path: Path) -> None:
    log, out = tmp_path / "calls", tmp_path / "out"
    train = counting(log)
    calls = lambda: len(log.read_text().split()) if log.exists() else 0  # noqa: E731
    arms, measures = {"more": arm()}, {"m": value}
    one = verify(train, arms, measures, SEEDS, out=out)
    assert calls() == 3 * 6 + 1
    assert one.notes == ()
    assert verify(train, arms, measures, SEEDS, out=out).rows() == one.rows()
    assert calls() == 19 + 1
    verify(train, arms, measures, range(7), out=out)
    assert calls() == 20 + 3 + 1
    verify(train, arms, measures, range(7), out=out, recheck=False)
    assert calls() == 24
    verify(train, arms, measures, range(10, 16), recheck=False)
    assert calls() == 24 + 18


def test_a_difference_of_rounding_is_noted_and_not_refused() -> None:
    calls = [0]

    def nearly(weights: Weights, seed: int) -> float:
        calls[0] += 1
        return mean_under(weights, seed) * (1 + 1e-9 * calls[0])

    found = verify(nearly, {"more": arm()}, {"m": value}, SEEDS, wanted={"more": {"m": 1}})
    assert found.steers("more")
    assert "does not repeat itself to the last bit" in found.notes[0]
    assert "it changes calls" in found.notes[0]


def test_a_random_measure_is_told_from_a_random_loop() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(PatterningError, match="measures gave other values for the same parameters"):
        verify(network, {"more": arm()}, {"m": lambda net: float(rng.random())}, SEEDS)


# Measures


class Noisy(nn.Module):
    """A network whose output is another one in training mode."""

    def __init__(self, weights: Weights, seed: int) -> None:
        super().__init__()
        self.inner = network(weights, seed)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self) -> torch.Tensor:
        if self.training:
            return next(self.inner.parameters()).sum() + 100.0
        return next(self.inner.parameters()).sum()


def evaluates(net: Noisy) -> float:
    return float(net.eval()().detach())


def reads(net: Noisy) -> float:
    return float(net().detach())


def zeroes(net: Noisy) -> float:
    with torch.no_grad():
        net.inner.weight.data.zero_()
    return 0.1


def counts(net: Noisy) -> float:
    net.seen += 1
    return 0.1


def test_a_measure_that_calls_eval_changes_no_other_measure() -> None:
    both = [
        verify(Noisy, {"more": arm()}, measures, range(3)).arms[0].values
        for measures in ({"e": evaluates, "r": reads}, {"r": reads, "e": evaluates})
    ]
    for name in ("e", "r"):
        np.testing.assert_array_equal(both[0][name], both[1][name])
    np.testing.assert_allclose(both[0]["r"] - both[0]["e"], 100.0, atol=1e-4)


@pytest.mark.parametrize("within", [lambda net: net, lambda net: {"model": net}])
@pytest.mark.parametrize(("spoils", "what"), [(zeroes, "inner.weight"), (counts, "seen")])
@pytest.mark.parametrize("first", [True, False])
def test_a_measure_that_changes_the_result_is_refused_by_name(within, spoils, what: str, first: bool) -> None:
    def unpacked(function):
        return lambda result: function(result["model"] if isinstance(result, dict) else result)

    named = [("spoils", unpacked(spoils)), ("r", unpacked(reads))]
    with pytest.raises(PatterningError, match=rf"measure 'spoils' changed .*{what} of what train returned .*seed 0"):
        verify(lambda w, s: within(Noisy(w, s)), {"more": arm()}, dict(named if first else named[::-1]), SEEDS)


def test_a_measure_that_changes_an_array_of_the_result_is_refused() -> None:
    def sorts(result: dict[str, np.ndarray]) -> float:
        result["x"].sort()
        return float(result["x"][0])

    def train(weights: Weights, seed: int) -> dict[str, np.ndarray]:
        return {"x": np.random.default_rng(seed).random(5) * weights.rho[0]}

    with pytest.raises(PatterningError, match=r"measure 's' changed \['x'\]"):
        verify(train, {"more": arm()}, {"s": sorts, "f": lambda r: float(r["x"][0])}, SEEDS)


# The process


def test_a_loop_or_measure_that_exits_is_one_sentence() -> None:
    with pytest.raises(PatterningError, match=r"train failed \(arm 'unweighted', seed 0\): SystemExit: 3"):
        verify(lambda w, s: sys.exit(3), {"more": arm()}, {"m": value}, SEEDS)
    with pytest.raises(PatterningError, match=r"measure 'm' failed \(arm 'unweighted', seed 0\): SystemExit"):
        verify(mean_under, {"more": arm()}, {"m": lambda r: sys.exit(1)}, SEEDS)


def test_a_relative_folder_is_that_of_the_call_whatever_the_loop_does(tmp_path: Path, monkeypatch) -> None:
    there = tmp_path / "elsewhere"
    there.mkdir()
    monkeypatch.chdir(tmp_path)

    def wanders(weights: Weights, seed: int) -> float:
        os.chdir(there)
        return mean_under(weights, seed)

    verify(wanders, {"more": arm()}, {"m": value}, SEEDS, out="o")
    assert len(list((tmp_path / "o" / "units").glob("train-*"))) == 19
    assert not list(there.iterdir())
