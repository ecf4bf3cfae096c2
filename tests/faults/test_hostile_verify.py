"""`verify` with a training loop, measures, weights or seeds that prove nothing."""

import numpy as np
import pytest
import torch
from torch import nn

from patterning.core.errors import PatterningError
from patterning.intervention.data_weights import Weights
from patterning.verification.effects import Effect
from patterning.verification.rule import judge
from patterning.verification.verify import Measure, verify

RHO = np.linspace(0.2, 1.8, 8)
X = np.linspace(-1.0, 2.0, 8)
SEEDS = range(6)


def arm() -> Weights:
    return Weights.of_rows(RHO)


def mean_under(weights: Weights, seed: int) -> float:
    """A training run in one line: the weighted mean of the data, and the noise of a seed."""
    return float((weights.base_weights * weights.rho) @ X) + 0.01 * float(np.random.default_rng(seed).standard_normal())


def value(result: float) -> float:
    return result


def test_an_honest_loop_steers_as_it_did() -> None:
    found = verify(mean_under, {"more": arm()}, {"mean": value}, SEEDS, wanted={"more": {"mean": 1}})
    assert found.steers("more", "mean")
    assert found.notes == ()
    exact = float(arm().rho @ X / 8 - X.mean())
    assert found.effect("more").difference == pytest.approx(exact, abs=1e-12)


def network(weights: Weights, seed: int) -> nn.Module:
    net = nn.Linear(2, 1)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) + float(weights.rho @ X))
    return net


def first_weight(net: nn.Module) -> float:
    return float(next(net.parameters()).detach().flatten()[0])


@pytest.mark.parametrize(
    ("train", "measures", "message"),
    [
        (lambda w, seed: mean_under(w, 0), {"m": value}, "train does not use its seed"),
        (lambda w, seed: mean_under(w, 0), {"m": value, "twice": lambda r: 2 * r}, "train does not use its seed"),
        (lambda w, seed: mean_under(Weights.of_rows(np.ones(8)), seed), {"m": value}, "does not use its weights"),
        (mean_under, {"m": lambda r: 0.25}, "does not read what train returned"),
        (lambda w, seed: 1.0, {"m": value}, "does not read what train returned"),
    ],
)
def test_runs_that_are_one_run_are_refused(train, measures, message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        verify(train, {"more": arm()}, measures, SEEDS)


@pytest.mark.parametrize("measure", [first_weight, lambda net: first_weight(net) > 0])
def test_trained_modules_show_it_after_three_runs_whatever_is_measured(measure) -> None:
    calls: list[int] = []

    def no_seed(weights, seed):
        calls.append(seed)
        return network(weights, 0)

    with pytest.raises(PatterningError, match=r"same parameters, .* for seeds 0 and 1 .*does not use its seed"):
        verify(no_seed, {"more": arm()}, {"m": measure}, range(20))
    assert len(calls) == 3
    with pytest.raises(PatterningError, match=r"under every set of weights .*does not use its weights"):
        verify(lambda w, seed: network(Weights.of_rows(np.ones(8)), seed), {"more": arm()}, {"m": measure}, range(20))


def test_a_yes_or_no_that_saturates_is_noted_and_not_refused() -> None:
    measures = {"formed": lambda r: True, "accuracy": Measure(lambda r: 1.0, 0, 1), "mean": value}
    found = verify(mean_under, {"more": arm()}, measures, SEEDS, wanted={"more": {"mean": 1, "accuracy": 1}})
    assert sum("tells no arms apart" in note for note in found.notes) == 2
    assert "tells no arms apart" in found.sentences()[0]
    assert found.steers("more", "mean")
    assert not found.steers("more", "accuracy")


def test_equal_differences_have_no_error_bar_and_claim_nothing() -> None:
    """One measure does not answer to the seed (it reads the weights alone), the other does."""
    both = {"weights": lambda r: r[1], "mean": lambda r: r[0]}
    asked = {"more": {"weights": 1, "mean": 1}}
    found = verify(lambda w, seed: (mean_under(w, seed), float(w.rho[0])), {"more": arm()}, both, SEEDS, wanted=asked)
    assert found.verdicts["more", "weights"].finding == "no error bar"
    assert not found.steers("more", "weights")
    assert found.steers("more", "mean")
    sure, unsure = Effect(0.5, 0.4, 0.6, 8), Effect(0.5, 0.5, 0.5, 8)
    assert judge(sure, sure, wanted=1).steers
    assert judge(sure, sure).finding == "moved beyond permuted"
    assert judge(unsure, sure).finding == judge(sure, unsure).finding == "no error bar"
    assert judge(Effect(0.0, 0.0, 0.0, 8), sure).finding == "no clear change"


def test_a_loop_that_changes_its_weights_changes_its_own_copy() -> None:
    def spoils(weights: Weights, seed: int) -> float:
        result = mean_under(weights, seed)
        weights.rho[:] = 1.0
        weights.base_weights[:] = 0.0
        return result

    mine = arm()
    spoiled, honest = (verify(train, {"more": mine}, {"m": value}, SEEDS) for train in (spoils, mean_under))
    np.testing.assert_array_equal(mine.rho, arm().rho)
    for one, other in zip(spoiled.arms, honest.arms, strict=True):
        np.testing.assert_array_equal(one.values["m"], other.values["m"])


def test_a_loop_that_reads_global_random_numbers_is_paired_by_its_seed() -> None:
    def loop(weights: Weights, seed: int) -> float:
        noise = float(torch.randn(())) + np.random.standard_normal()  # noqa: NPY002
        return float(weights.rho @ X) + noise

    state = torch.get_rng_state()
    one = verify(loop, {"more": arm()}, {"m": value}, SEEDS)
    np.testing.assert_array_equal(torch.get_rng_state(), state)
    torch.randn(3)
    other = verify(loop, {"more": arm()}, {"m": value}, SEEDS)
    np.testing.assert_array_equal(one.arms[0].values["m"], other.arms[0].values["m"])
    assert np.ptp(one.arms[0].values["m"]) > 0
    np.testing.assert_allclose(one.arms[1].values["m"] - one.arms[0].values["m"], (arm().rho - 1) @ X)


def raises_for(seed_that_fails: int):
    def train(weights: Weights, seed: int) -> float:
        if seed == seed_that_fails:
            raise RuntimeError("out of memory\nat line 3")
        return mean_under(weights, seed)

    return train


UNSEEN = {"more": {"mean": 1.0}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": raises_for(4)}, r"train failed \(arm 'unweighted', seed 4\): RuntimeError: out of memory"),
        ({"measures": {"m": lambda r: 1 / 0}}, r"measure 'm' failed \(arm 'unweighted', seed 0\): ZeroDivisionError"),
        ({"measures": {"m": lambda r: float("nan")}}, r"measure 'm' is nan \(arm 'unweighted', seed 0\)"),
        ({"measures": {"m": lambda r: 1 + 2j}}, "returned complex"),
        ({"measures": {"m": lambda r: np.complex128(1)}}, "returned complex"),
        ({"measures": {"m": lambda r: np.zeros(2)}}, "measure 'm' failed"),
        ({"measures": {"m": lambda r: r > 0.6 if r > 0.5 else r}}, "yes or no after some runs"),
        ({"measures": {"m": 3.0}}, "must be a function"),
        ({"measures": {"is_bool.m": value}}, "name that is kept"),
        ({"measures": [value]}, "measures is list"),
        ({"seeds": [1, 2]}, "2 seeds give no interval"),
        ({"seeds": [1, 2, 2]}, "named twice"),
        ({"seeds": [1, 2, True]}, "must be a whole number"),
        ({"seeds": 6}, "give a list of whole numbers"),
        ({"arms": {"unweighted": arm()}}, "is taken"),
        ({"arms": {"a": arm(), "a, permuted": arm()}}, "is an arm's control"),
        ({"extra": {"more, permuted": arm()}}, "is an arm's control"),
        ({"extra": {"plain": Weights.of_rows(RHO[:5])}}, "different lengths"),
        ({"arms": {"more": Weights.of_rows(np.ones(8))}}, "weighs everything alike"),
        ({"arms": arm()}, "arms is Weights"),
        ({"arms": {"more": RHO}}, "must be Weights"),
        ({"train": 3}, "train is int"),
        ({"wanted": {"less": {"m": 1}}}, "wanted names the arm 'less': there are more"),
        ({"wanted": {"more": {"mean": 1}}}, "names the measure 'mean': there are m"),
        ({"wanted": {"more": {"m": "up"}}}, "must be a number, its sign counts"),
        ({"wanted": {"more": 1}}, "give a sign for each measure"),
        ({"controls": ["shuffled"]}, "unknown controls shuffled"),
    ],
)
def test_what_proves_nothing_is_one_sentence(options, message: str) -> None:
    usual = {"train": mean_under, "arms": {"more": arm()}, "measures": {"m": value}, "seeds": SEEDS} | options
    given = [usual.pop(name) for name in ("train", "arms", "measures", "seeds")]
    with pytest.raises(PatterningError, match=message):
        verify(*given, **usual)


def test_a_range_that_holds_nothing_is_refused() -> None:
    with pytest.raises(PatterningError, match="low must be below high"):
        Measure(value, 1.0, 0.0)
    with pytest.raises(PatterningError, match="must be a number"):
        Measure(value, float("nan"))


def test_names_are_any_text_and_a_control_may_be_named_as_text(tmp_path) -> None:
    name = "more/less: a"
    found = verify(
        mean_under, {name: arm()}, {"m": value}, np.arange(6), controls="permuted", out=tmp_path / "o",
        wanted={name: {"m": 1}},
    )  # fmt: skip
    assert found.steers("more/less: a")
    with pytest.raises(PatterningError, match="there is no arm 'more'"):
        found.effect("more")
    with pytest.raises(PatterningError, match="there is no measure 'loss': there are m"):
        found.steers("more/less: a", "loss")
    with pytest.raises(PatterningError, match="compared only"):
        found.steers("unweighted")


@pytest.mark.parametrize("afresh", [False, True])
def test_a_module_that_is_trained_on_from_run_to_run_is_refused(afresh: bool) -> None:
    model = nn.Linear(8, 1)

    def train(weights: Weights, seed: int) -> nn.Module:
        with torch.no_grad():
            if afresh:
                model.weight.zero_()
            model.weight.add_(torch.from_numpy(weights.rho).float() + 0.01 * torch.randn(8))
        return model

    def total(net: nn.Module) -> float:
        return float((next(net.parameters()).detach()[0] * torch.from_numpy(X).float()).sum())

    if afresh:
        assert verify(train, {"more": arm()}, {"m": total}, SEEDS, wanted={"more": {"m": 1}}).steers("more")
        return
    with pytest.raises(PatterningError, match="goes on with what earlier runs left in model"):
        verify(train, {"more": arm()}, {"m": total}, SEEDS)
