"""Rounds of pilots under weights find solutions that unweighted pilots do not hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from patterning.core.errors import PatterningError
from patterning.core.settings import read_yaml, validate
from patterning.study.bench import Bench, Found, Kind
from patterning.study.iterated import Pair
from patterning.study.run import Study, run_study
from patterning.study.settings import StudySettings
from patterning.study.subject import Outcome, Runs, Subject

PULL = np.array([1.0, 1.0, 0.0, 0.0, -1.0, -1.0])
UP, DOWN = Kind("agree_up", 0.9, 1), Kind("agree_down", 0.9, 1)


@dataclass(frozen=True)
class Scale(Subject):
    """Training ends at x = 3 Σ q ρ pull, plus noise of the seed; sample j has loss -pull_j x there."""

    name: str = "scale"
    outcomes: tuple[Outcome, ...] = (Outcome("x", "high", "low", -4.0, 4.0),)

    @property
    def base_weights(self) -> np.ndarray:
        return np.full(6, 1 / 6)

    @property
    def flat(self) -> Any:
        losses = lambda flat, index: -torch.from_numpy(PULL)[index] * flat[:, :1]  # noqa: E731
        return SimpleNamespace(losses=losses, base_weights=torch.full((6,), 1 / 6))

    def train(self, rho: np.ndarray, seeds: Sequence[int], keep: Sequence[int], scratch: Path) -> Runs:
        noise = np.array([np.random.default_rng(seed).normal() for seed in seeds])
        x = 3 * (rho @ PULL) / 6 + 0.2 * noise * rho[0]
        up = 1 / (1 + np.exp(-4 * x))
        measures = {"x": x, "agree_up": up, "agree_down": 1 - up}
        kept = {1: x[:, None]} if keep else {}
        return Runs(measures, np.array([1]), {name: value[:, None] for name, value in measures.items()}, kept)


class OfBoth:
    def read(self, name: str, bench: Bench) -> Found:
        up, down = bench.solutions("high", UP), bench.solutions("low", DOWN)
        return Found(bench.direction(name, f"{len(up)} and {len(down)}", PULL))


class ScaleConfig(StudySettings):
    experiment: Literal["scale"] = "scale"
    paired: bool = True


def study_of(folder: Path, **changes: Any) -> dict[str, Any]:
    values = {"preset": "test", "seeds": 6, "pilots": 4, "directions": ("solved",), "min_reliability": 0.0,
              "strengths": ({"policy": "clip", "alpha": 0.5},)} | changes  # fmt: skip

    def build(config: ScaleConfig) -> Study:
        pair = Pair(UP, DOWN, ("high", "low")) if config.paired else None
        return Study(Scale(), {"solved": OfBoth()}, keep=(1,), pair=pair)

    return run_study(
        validate(ScaleConfig, values, "test"),
        build,
        folder,
        read=lambda path: validate(ScaleConfig, read_yaml(path), "x"),
    )


def test_without_rounds_no_solution_is_found(tmp_path: Path) -> None:
    with pytest.raises(PatterningError, match="no checkpoint of the pilot runs is a solution of the kind 'high'"):
        study_of(tmp_path)


@pytest.mark.parametrize("from_worst", [False, True])
def test_rounds_make_both_kinds_pure(from_worst: bool, tmp_path: Path) -> None:
    results = study_of(tmp_path, rounds={"most": 3, "from_worst": from_worst})
    told = results["rounds"]
    assert [(one["round"], one["towards"]) for one in told[:2]] == [(1, "high"), (1, "low")]
    assert all(one["before"] < 0.9 and one["after"] > one["before"] for one in told[:2])
    assert {one["towards"]: one["after"] for one in told}.keys() == {"high", "low"}
    assert min(max(one["after"] for one in told if one["towards"] == way) for way in ("high", "low")) >= 0.9
    assert set(results["pilots"]) == {"pilots"} | {f"round {one['round']} towards {one['towards']}" for one in told}
    seeds = {one: results["pilots"][one]["seeds"] for one in results["pilots"] if one.startswith("round")}
    expected = {"1": [1000, 1001], "2": [1002, 1003], "3": [1000, 1001]}  # the next of four pilots, and round again
    assert all(own == expected[name.split()[1]] for name, own in seeds.items())
    page = (tmp_path / "report.html").read_text()
    assert "agreement before" in page
    assert finding(results) == "steers"


def test_rounds_need_a_pair(tmp_path: Path) -> None:
    with pytest.raises(PatterningError, match="leave rounds out"):
        study_of(tmp_path, rounds={"most": 1}, paired=False)


def finding(results: dict[str, Any]) -> str:
    return next(row["finding"] for row in results["rows"] if row["arm"] == "solved → high" and row["measure"] == "x")
