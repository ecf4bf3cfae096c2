"""The examples run, and show what they say."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_digits_reweighted_for_the_eights(capsys):
    main = runpy.run_path(str(EXAMPLES / "digits.py"))["main"]
    result = main(pairs=4, steps=300, chains=4, draws=60)
    assert result["reliability"] > 0.7
    assert result["predicted"] < 0
    on_eights = {arm: effect for (arm, name), effect in result["effects"].items() if name == "8s"}
    assert on_eights["weights ρ"].high < 0  # less loss, as predicted
    assert on_eights["weights ρ"].difference < 0.5 * result["predicted"]
    assert on_eights["weights ρ"].difference < on_eights["permuted within digit"].difference
    assert abs(on_eights["permuted"].difference) < 0.5 * abs(on_eights["weights ρ"].difference)
    assert result["by_digit"].argmax() == 8
    assert "reliability" in capsys.readouterr().out
