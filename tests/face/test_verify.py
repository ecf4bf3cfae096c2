"""`verify` on a training whose effect is known: what steers, what does not, controls, pairs, levels, and resume."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from zoo.known_training import N, X, along, train

import patterning as pt
from patterning.verification.verify import UNWEIGHTED, permuted_name

MEASURES = {name: (lambda result, name=name: result[name]) for name in ("tilt", "uneven", "nothing", "grew")}
PULL = 0.8 * float((X**2).mean())
"""What strength 0.8 does to `tilt`."""


@pytest.fixture(scope="module")
def evidence() -> pt.Evidence:
    return pt.verify(
        train, {"up": along(0.8)}, MEASURES, range(10), wanted={"up": {"tilt": 1}}, extra={"down": along(-0.8)}
    )


def test_what_steers_and_what_does_not(evidence: pt.Evidence) -> None:
    findings = {measure: verdict.finding for (_, measure), verdict in evidence.verdicts.items()}
    assert findings == {
        "tilt": "steers",
        "uneven": "moves, not shown beyond permuted",  # dealing the weights out anew changes nothing of it
        "nothing": "no clear change",
        "grew": "moved beyond permuted",  # nothing was asked of it
    }
    assert evidence.steers("up")
    with pytest.raises(pt.PatterningError, match=r"nothing was asked of 'grew' by 'up'.*wanted="):
        evidence.steers("up", "grew")
    assert evidence.findings()[0].startswith("up, tilt: steers")
    assert evidence.findings()[1] == (
        "up, not asked for: moves, not shown beyond permuted: uneven (+0.22); no clear change: nothing; moved beyond "
        "permuted: grew (+1)."
    )
    assert [arm.name for arm in evidence.arms] == [UNWEIGHTED, "up", permuted_name("up"), "down"]
    assert any(line.startswith("up, tilt: steers: against unweighted +") for line in evidence.sentences())


def test_effects_are_of_pairs(evidence: pt.Evidence) -> None:
    effect = evidence.effect("up", "tilt")
    assert effect.low <= PULL <= effect.high
    assert effect.high - effect.low < 0.2  # between seeds the outcomes spread by 3: only pairs can see this
    arms = {arm.name: arm for arm in evidence.arms}
    values = arms["up"].values["tilt"] - arms[UNWEIGHTED].values["tilt"]
    assert effect.difference == pytest.approx(values.mean())
    assert effect.pairs == 10
    down = arms["down"].effects["tilt"]
    assert down.low <= -PULL <= down.high
    assert arms["down"].beyond == {}  # extras have no control of their own
    share = evidence.effect("up", "grew")
    assert evidence.yes_or_no == {"tilt": False, "uneven": False, "nothing": False, "grew": True}
    assert share.difference == 1.0
    assert 0 < share.low < 1.0 <= share.high  # an interval for shares, which has a width at 0 and 1


def test_permuted_controls_have_the_same_weights_elsewhere() -> None:
    seen: dict[str, list[pt.Weights]] = {}

    def look(weights: pt.Weights, seed: int) -> float:
        seen.setdefault(str(weights.facts.get("what")), []).append(weights)
        return float(seed + weights.rho[0])

    pt.verify(look, {"up": along(0.5)}, {"y": lambda result: result}, range(4))
    (name,) = [name for name in seen if name.startswith("permuted")]
    dealt = [weights.rho for weights in seen[name]]
    assert len(dealt) == 4
    for rho in dealt:
        np.testing.assert_allclose(np.sort(rho), np.sort(along(0.5).rho))
    assert len({rho.tobytes() for rho in dealt}) == 4  # dealt anew for each seed
    assert all((weights.rho == 1).all() for weights in seen["unweighted"])


def test_the_wrong_way_is_said() -> None:
    evidence = pt.verify(train, {"up": along(0.8)}, {"tilt": MEASURES["tilt"]}, range(8), wanted={"up": {"tilt": -1}})
    assert evidence.verdicts["up", "tilt"].finding == "steers the other way"
    assert not evidence.steers("up")


def test_weights_carry_what_was_asked_of_them() -> None:
    weights = pt.Weights(along(0.8).rho, np.arange(N), np.ones(N), np.ones(N, dtype=bool), "", {"target": {"tilt": -1}})
    evidence = pt.verify(train, {"up": weights}, {"tilt": MEASURES["tilt"]}, range(8))
    assert evidence.verdicts["up", "tilt"].finding == "steers the other way"


def test_the_level_allows_for_the_directions_tried() -> None:
    arms = {"a": along(0.8), "b": along(0.5), "c": along(-0.8)}
    wanted = {"a": {"tilt": 1}, "b": {"tilt": 1}, "c": {"tilt": -1}}
    evidence = pt.verify(train, arms, {"tilt": MEASURES["tilt"]}, range(8), wanted=wanted)
    levels = {arm: verdict.against_unweighted.level for (arm, _), verdict in evidence.verdicts.items()}
    assert levels == dict.fromkeys("abc", 1 - (1 - 0.95) / 3)  # three directions, whichever way each asks
    assert {arm: verdict.tried for (arm, _), verdict in evidence.verdicts.items()} == {"a": 3, "b": 3, "c": 3}
    verdict = evidence.verdicts["a", "tilt"]
    assert verdict.against_permuted.level == 1 - (1 - 0.95) / 3
    shown = evidence.effect("a", "tilt")  # tables show 95 %
    assert shown.level == 0.95
    assert verdict.against_unweighted.high - verdict.against_unweighted.low > shown.high - shown.low
    assert "98.33 % intervals, 3 tried" in str(verdict)
    assert "k = 3 directions were tried" in evidence.level()
    more = {"tilt": MEASURES["tilt"], "nothing": MEASURES["nothing"]}
    asked = pt.verify(train, arms, more, range(8), wanted=wanted | {"a": {"tilt": 1, "nothing": 1}})
    assert {verdict.tried for verdict in asked.verdicts.values()} == {4}  # arms × measures that were asked to move
    assert asked.level().endswith("intervals of 98.75 %, wider than those of the table.")
    assert {v.finding for v in evidence.verdicts.values()} == {"steers"}


def test_few_seeds_are_a_look() -> None:
    evidence = pt.verify(train, {"up": along(0.8)}, {"tilt": MEASURES["tilt"]}, range(4))
    assert evidence.verdicts["up", "tilt"].finding == "a look"
    assert "4 paired seeds are a look, not evidence" in evidence.sentences()[0]


def test_without_a_control_nothing_steers() -> None:
    evidence = pt.verify(
        train, {"up": along(0.8)}, {"tilt": MEASURES["tilt"]}, range(8), controls=(), wanted={"up": {"tilt": 1}}
    )
    assert not evidence.steers("up")
    assert "without a permuted control" in str(evidence.verdicts["up", "tilt"])


def test_a_range_cuts_intervals_off() -> None:
    def close(weights: pt.Weights, seed: int) -> float:
        return float(
            np.clip(0.98 + 0.03 * np.random.default_rng([seed, int(weights.rho[0] > 1)]).standard_normal(), 0, 1)
        )

    measures = {"accuracy": pt.Measure(lambda result: result, low=0, high=1)}
    evidence = pt.verify(close, {"down": along(-0.5)}, measures, range(6))
    base = evidence.arms[0].values["accuracy"].mean()
    assert evidence.effect("down").high <= 1 - base + 1e-12
    with pytest.raises(
        pt.PatterningError, match=r"measure 'accuracy' is 2 \(arm 'unweighted', seed 0\), outside of its range 0 to 1"
    ):
        pt.verify(lambda w, s: 2.0, {"down": along(-0.5)}, measures, range(6))


def test_random_numbers_of_the_caller_are_left_alone() -> None:
    def draw(weights: pt.Weights, seed: int) -> float:
        torch.manual_seed(seed)
        return float(torch.rand(()) * weights.rho[0])

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    pt.verify(draw, {"up": along(0.5)}, {"y": lambda result: result}, range(3))
    assert torch.equal(torch.rand(3), expected)


def returns(value: object):
    return lambda weights, seed: value


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"arms": {}}, "there is no arm to verify"),
        ({"arms": {"up": [1.0] * N}}, "arm 'up' is list: it must be Weights"),
        ({"arms": {"up": 3.0}}, "arm 'up' is float: it must be Weights"),
        ({"arms": {"unweighted": along(0.1)}}, "'unweighted' is taken"),
        (
            {"arms": {"up": along(0.1), "b": pt.Weights.of_rows([1.0, 2.0])}},
            "of data of different lengths, or of rows and of tokens (up (40,), b (2,))",
        ),
        (
            {"extra": {"b": pt.Weights.of_rows([1.0, 2.0])}},
            "of data of different lengths, or of rows and of tokens (up (40,), b (2,))",
        ),
        ({"extra": {"up": along(0.1)}}, "names of arms must differ"),
        ({"measures": {}}, "there is no measure"),
        ({"measures": {"tilt": 3}}, "a measure is int: it must be a function of the result"),
        ({"seeds": [1, 1, 2]}, "some seeds are named twice"),
        ({"seeds": [1, 2]}, "2 seeds give no interval"),
        ({"seeds": [1, 2, -3]}, "seed is -3"),
        ({"seeds": [1, 2, 3.5]}, "seed is 3.5: it must be a whole number"),
        ({"controls": ["random"]}, "unknown controls random"),
        ({"controls": "shuffled"}, "unknown controls shuffled"),
        ({"wanted": {"upp": {"tilt": 1}}}, "wanted names the arm 'upp': there are up"),
        ({"wanted": {"up": {"tild": 1}}}, "wanted['up'] names the measure 'tild': there are tilt"),
        ({"wanted": {"up": {"tilt": "more"}}}, "it must be a number"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_what_proves_nothing_is_refused_before_training(changed: dict, says: str) -> None:
    def never(weights: pt.Weights, seed: int) -> float:
        pytest.fail("trained")

    asked = {"arms": {"up": along(0.8)}, "measures": {"tilt": MEASURES["tilt"]}, "seeds": range(6), **changed}
    with pytest.raises(pt.PatterningError, match=re.escape(says)):
        pt.verify(never, **asked)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "measure 'y' is nan (arm 'unweighted', seed 0)"),
        ("high", "measure 'y' returned str (arm 'unweighted', seed 0): it must return a number"),
        (None, "measure 'y' returned NoneType"),
    ],
)
def test_measures_must_be_numbers(value: object, says: str) -> None:
    with pytest.raises(pt.PatterningError, match=re.escape(says)):
        pt.verify(returns(value), {"up": along(0.8)}, {"y": lambda result: result}, range(3))


def test_different_data_is_not_compared() -> None:
    one, two = (
        pt.Weights(along(0.1 * k).rho, np.arange(N), np.ones(N), np.ones(N, dtype=bool), data)
        for k, data in ((1, "aa"), (2, "bb"))
    )
    with pytest.raises(pt.PatterningError, match="made for different data"):
        pt.verify(train, {"a": one, "b": two}, MEASURES, range(6))


def test_a_finished_run_is_found_again_and_another_question_is_not(tmp_path: Path) -> None:
    calls = tmp_path / "calls"

    def counted(weights: pt.Weights, seed: int) -> dict[str, float]:
        with calls.open("a") as file:
            file.write("x")
        return train(weights, seed)

    def trained() -> int:
        return len(calls.read_text()) if calls.exists() else 0

    first = pt.verify(counted, {"up": along(0.8)}, MEASURES, range(6), out=tmp_path / "run")
    assert trained() == 18 + 1  # the first is made once more
    again = pt.verify(counted, {"up": along(0.8)}, MEASURES, range(6), out=tmp_path / "run")
    assert trained() == 19 + 1  # and once more in every call
    assert again.rows() == first.rows()
    pt.verify(counted, {"up": along(0.8)}, MEASURES, range(8), out=tmp_path / "run")
    assert trained() == 20 + 6 + 1  # two more seeds of three arms
    pt.verify(counted, {"up": along(0.7)}, MEASURES, range(6), out=tmp_path / "run")
    assert trained() == 27 + 12 + 1  # the unweighted runs are those of before


def test_the_table_and_the_page(evidence: pt.Evidence, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence.show()
    out = capsys.readouterr().out
    assert "10 paired seeds" in out
    assert "up, tilt: steers" in out
    evidence.page(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "up, tilt: steers" in page
    assert "plotly" not in page
    assert len(page) < 200_000


def headed(name: str, **facts: object) -> pt.Weights:
    rho = along(0.8)
    return pt.Weights(rho.rho, rho.ids, rho.base_weights, rho.free, "", {"target": {name: -1}, **facts})


@pytest.mark.parametrize("facts", [{"component_losses": ["l1h0"]}, {}])  # the latter: weights of version 0.2.0
def test_a_component_loss_gives_no_sign_to_a_measure_of_its_name(facts: dict) -> None:
    calls = list[int]()

    def seen(weights: pt.Weights, seed: int) -> dict[str, float]:
        calls.append(seed)
        return train(weights, seed)

    measures, arms = {"l1h0": MEASURES["tilt"]}, {"head": headed("l1h0", **facts)}
    with pytest.raises(pt.PatterningError, match=r"'l1h0' bears the name of a component .* wanted=\{'head': \{'l1h0'"):
        pt.verify(seen, arms, measures, range(8))
    assert calls == []
    found = pt.verify(train, arms, measures, range(8), wanted={"head": {"l1h0": 1}})
    assert found.steers("head", "l1h0")
    found = pt.verify(train, arms, measures, range(8), wanted={"head": {"l1h0": 0}})
    assert found.verdicts["head", "l1h0"].finding == "moved beyond permuted"


def test_an_observable_that_is_named_as_a_head_keeps_its_sign() -> None:
    arms, measures = {"head": headed("l1h0", component_losses=[])}, {"l1h0": lambda run: -run["tilt"]}
    assert pt.verify(train, arms, measures, range(8)).steers("head")


def test_where_nothing_was_asked_the_remedy_is_said() -> None:
    found = pt.verify(train, {"up": along(0.8)}, {"tilt": MEASURES["tilt"]}, range(8))
    assert found.verdicts["up", "tilt"].finding == "moved beyond permuted"
    assert "wanted={'up': {'tilt': +1}}" in found.cautions()[0]
    assert "steers" not in " ".join(found.findings())


def test_the_table_is_what_print_gives_and_is_never_broken(
    evidence: pt.Evidence, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for columns in ("80", "140", "60"):
        monkeypatch.setenv("COLUMNS", columns)
        evidence.show()
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= int(columns)
        for cells in evidence.cells():
            for cell in cells[3:]:
                assert cell in out, cell
        for text in (str(evidence), repr(evidence)):
            assert text == out.rstrip()
