"""The ten-liner and the example of a training loop of one's own run, and show what they say."""

import runpy
from pathlib import Path

import pytest

import patterning as pt

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_ten_lines(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(EXAMPLES / "ten_lines.py"))["main"]
    chi, plan, check = main(seeds=6, draws=5, steps=200)
    assert chi.names == ("8s",)
    assert chi.reliability["8s"] > 0.7
    assert plan.refused is None
    assert plan.predicted["8s"].high < 0
    effect = check.effect("fewer errors on 8s", "8s")
    assert effect.high < 0  # less loss on the 8s of images that neither training nor χ has seen
    assert check.steers("fewer errors on 8s")
    assert "fewer errors on 8s, 8s: steers" in capsys.readouterr().out


def test_a_loop_of_your_own(capsys: pytest.CaptureFixture[str]) -> None:
    source = (EXAMPLES / "own_loop.py").read_text()
    check = runpy.run_path(str(EXAMPLES / "own_loop.py"))["main"](seeds=6)
    assert check.steers("first half")
    effect = check.effect("first half")
    # least squares under ρ = 1.5 and 0.5: a slope of about 0.75 where unweighted it is about 0.5
    assert effect.low < 0.25 < effect.high or abs(effect.difference - 0.25) < 0.1
    assert "steers" in capsys.readouterr().out
    assert len(source.split("def train")[1].split("def main")[0].splitlines()) <= 15


def test_every_name_of_the_face_is_there() -> None:
    for name in pt.__all__:
        assert getattr(pt, name) is not None, name
        assert name in dir(pt)
    assert issubclass(pt.PatterningError, ValueError)
    assert issubclass(pt.PatterningWarning, UserWarning)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pt.nothing  # noqa: B018
