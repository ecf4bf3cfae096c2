"""The examples run, and show what they say."""

import runpy
from pathlib import Path

import numpy as np
import pytest

import patterning as pt

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.long
def test_digits_reweighted_for_the_eights(capsys):
    check = runpy.run_path(str(EXAMPLES / "digits.py"))["main"](pairs=6, steps=300, chains=4, draws=20)
    arms = {arm.name: arm for arm in check.arms}
    asked = arms["fewer errors on 8s"].effects["8s"]
    within, anywhere = (arms[name].effects["8s"] for name in ("permuted within digit", "fewer errors on 8s, permuted"))
    assert asked.high < 0
    assert check.steers("fewer errors on 8s", "8s")
    assert asked.difference < within.difference < 0  # most of it is "more 8s", not all
    assert abs(anywhere.difference) < 0.5 * abs(asked.difference)
    printed = capsys.readouterr().out
    assert "reliability" in printed
    assert "steers" in printed


def test_a_loop_of_your_own_is_thirty_lines(capsys):
    source = (EXAMPLES / "own_loop.py").read_text()
    check = runpy.run_path(str(EXAMPLES / "own_loop.py"))["main"](seeds=6)
    assert check.steers("first half", "slope")
    assert len([line for line in source.partition("import patterning as pt\n")[2].splitlines() if line.strip()]) <= 30
    assert "steers" in capsys.readouterr().out


def test_every_name_of_the_face_is_there():
    for name in pt.__all__:
        assert getattr(pt, name) is not None, name
        assert name in dir(pt)


def test_pairs_of_the_reward_model_are_what_they_are_said_to_be():
    names = runpy.run_path(str(EXAMPLES / "reward_model.py"))
    pairs = names["make_pairs"](600, 3, bias=0.4)
    longer = pairs.lengths[:, 0] - pairs.lengths[:, 1]
    assert 0.63 < (longer > 0).sum() / (longer != 0).sum() < 0.77  # 40 % by length, half of the others by chance
    np.testing.assert_array_equal((pairs.chosen > 0).sum(1), pairs.lengths[:, 0])
    rho = names["length_matched"](pairs).rho
    for size in (1, 5, 9):
        assert rho[longer == size].sum() == pytest.approx(rho[longer == -size].sum())
    for kind, holds in (("hard", longer_than(-25, -2)), ("normal", longer_than(-3, 3)), ("easy", longer_than(2, 25))):
        lengths = names["make_pairs"](50, 4, kind=kind).lengths
        assert holds(lengths[:, 0] - lengths[:, 1]).all()


def longer_than(low, high):
    return lambda difference: (difference > low) & (difference < high)


@pytest.mark.slow
def test_a_reward_model_cares_less_for_length(capsys):
    main = runpy.run_path(str(EXAMPLES / "reward_model.py"))["main"]
    check = main(count=400, pairs=6, steps=120, chains=2, draws=4)
    hard, easy = (check.effect("patterning 0.5", kind) for kind in ("hard", "easy"))
    assert hard.low > 0
    assert easy.high < 0
    assert "steers" in capsys.readouterr().out
