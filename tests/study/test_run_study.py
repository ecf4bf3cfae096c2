"""A whole study on a subject whose training is one line, so that what must be found is known."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from patterning.core.errors import PatterningError
from patterning.core.settings import read_yaml, validate
from patterning.study.bench import Bench, Found, Kind
from patterning.study.readings import OfTraining
from patterning.study.run import Study, run_study
from patterning.study.seeds import Seeds
from patterning.study.settings import StudySettings
from patterning.study.subject import Outcome, Runs, Subject
from patterning.study.training import TrainJob

PULL = np.array([1.0, 1.0, 0.0, 0.0, -1.0, -1.0])


@dataclass(frozen=True)
class Line(Subject):
    """Six samples; training ends at Σ q ρ pull, plus noise of the seed. The guard falls where weights are uneven."""

    noise: float = 0.05
    slow: float = 0.0
    name: str = "line"
    outcomes: tuple[Outcome, ...] = (Outcome("height", "high", "low", -2.0, 2.0),)

    @property
    def base_weights(self) -> np.ndarray:
        return np.full(6, 1 / 6)

    @property
    def guarded(self) -> str:
        return "even"

    def keeps(self, way: str, guard: float, unweighted: float) -> bool:
        return guard > 0.5

    @property
    def groups(self) -> Mapping[str, np.ndarray]:
        return {f"pair {i}": np.arange(6) // 2 == i for i in range(3)} | {"nobody": np.zeros(6, dtype=bool)}

    def train(self, rho: np.ndarray, seeds: Sequence[int], keep: Sequence[int], scratch: Path) -> Runs:
        time.sleep(self.slow)
        drawn = np.array([np.random.default_rng(seed).normal() for seed in seeds])
        height = rho @ PULL / 6 + self.noise * drawn * rho[0]
        return Runs({"height": height, "even": np.full(len(seeds), 1 / (rho**2).mean())})


@dataclass(frozen=True)
class Known:
    """A reading that says s."""

    s: tuple[float, ...]
    refused: str | None = None

    def read(self, name: str, bench: Bench) -> Found:
        if self.refused == "raises":
            raise PatterningError("nothing to be seen")
        s = np.array(self.s)
        return Found(
            bench.direction(name, "known", s, refused=self.refused),
            lambda weights: np.stack([(np.array(weights) - 1) @ s / 6] * 3, axis=1),
        )


class LineConfig(StudySettings):
    experiment: Literal["line"] = "line"
    noise: float = 0.05
    slow: float = 0.0


VALUES: dict[str, Any] = {
    "preset": "test", "seeds": 8, "pilots": 2, "directions": ("right", "wrong", "unsure", "broken"),
    "strengths": ({"policy": "clip", "alpha": 0.5},), "min_reliability": 0.0,
}  # fmt: skip


def build(config: LineConfig) -> Study:
    readings = {
        "right": Known(tuple(PULL)),
        "wrong": Known((1.0, -1.0, 1.0, -1.0, 1.0, -1.0)),
        "unsure": Known(tuple(PULL), refused="its halves do not agree"),
        "broken": Known(tuple(PULL), refused="raises"),
        "training": OfTraining(seeds_per_split=2),
    }
    return Study(Line(config.noise, config.slow), readings)


def configured(**changes: Any) -> LineConfig:
    return validate(LineConfig, VALUES | changes, "test")


def study_of(folder: Path, workers: int = 1, **changes: Any) -> dict[str, Any]:
    return run_study(
        configured(**changes), build, folder, read=lambda path: validate(LineConfig, read_yaml(path), "x"),
        workers=workers,
    )  # fmt: skip


def finding(results: Mapping[str, Any], arm: str, measure: str = "height") -> Mapping[str, Any]:
    return next(row for row in results["rows"] if row["arm"] == arm and row["measure"] == measure)


def test_what_steers_is_found_and_what_does_not_is_not(tmp_path: Path) -> None:
    results = study_of(tmp_path / "run")
    up, down = finding(results, "right → high"), finding(results, "right → low")
    assert up["finding"] == down["finding"] == "steers"
    # clip at 0.5: ρ = 1 ± 0.5 · 1/√(2/3) on four of six samples
    assert up["against_unweighted"]["difference"] == pytest.approx(0.5 * np.sqrt(1.5) * 4 / 6, abs=0.03)
    assert down["against_unweighted"]["difference"] == pytest.approx(-0.5 * np.sqrt(1.5) * 4 / 6, abs=0.03)
    assert finding(results, "wrong → high")["finding"] != "steers"
    refused = {one["name"]: one["refused"] for one in results["directions"] if one["refused"]}
    assert refused == {"unsure": "its halves do not agree", "broken": "nothing to be seen"}
    told = next(one for one in results["foretold"] if one["reading"] == "right")
    assert told["rank_correlation"][0] > 0.7
    page = (tmp_path / "run" / "report.html").read_text()
    assert "right → high" in page
    assert "its halves do not agree" in page
    stored = json.loads((tmp_path / "run" / "results.json").read_text())
    assert isinstance(stored["rows"][0]["mean"], float)  # numbers, not strings


@pytest.mark.long
def test_the_same_seeds_give_the_same_numbers_on_any_number_of_workers(tmp_path: Path) -> None:
    one, two = (study_of(tmp_path / str(count), workers=count) for count in (1, 2))
    assert one["rows"] == two["rows"]
    assert one["foretold"] == two["foretold"]


def test_a_strength_that_breaks_the_guard_is_not_chosen(tmp_path: Path) -> None:
    strengths = ({"policy": "clip", "alpha": 0.2}, {"policy": "clip", "alpha": 0.6}, {"policy": "tilt", "alpha": 3.0})
    results = study_of(tmp_path / "run", strengths=strengths, directions=("right",))
    chosen = {row["strength"] for row in results["strengths"] if row["chosen"]}
    assert chosen == {"clip 0.6"}  # the strongest pulls more, and leaves the data too uneven
    broken = [row for row in results["strengths"] if row["strength"] == "tilt 3"]
    assert all(not row["keeps"] for row in broken)
    assert max(row["change"] for row in broken) > max(r["change"] for r in results["strengths"] if r["chosen"])


def test_the_response_of_training_finds_the_pull_of_groups(tmp_path: Path) -> None:
    class Four(Line):
        @property
        def groups(self) -> Mapping[str, np.ndarray]:
            edges = ([0], [1], [2, 3], [4, 5])
            return {str(i): np.isin(np.arange(6), own) for i, own in enumerate(edges)}

    def with_four(config: LineConfig) -> Study:
        return replace(build(config), subject=Four(config.noise))

    config = configured(directions=("training",), pairs=12, noise=0.01)
    results = run_study(config, with_four, tmp_path / "run", read=lambda path: config)
    direction = results["directions"][0]
    chi = np.array(direction["chi"])
    assert direction["reliability"] > 0.9
    assert chi[:2] == pytest.approx(1.0, abs=0.25)
    assert chi[2] == pytest.approx(0.0, abs=0.15)
    assert chi[3] == pytest.approx(-1.0, abs=0.25)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from study.test_run_study import study_of
study_of(Path({folder!r}), workers=2, slow=0.1, directions=("right",), seeds=4)
"""


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_killed_study_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    while len(list((folder / "units").glob("*.safetensors"))) < 6:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "units").glob("*.safetensors")}
    resumed = study_of(folder, slow=0.1, directions=("right",), seeds=4)
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "units").glob("*.safetensors")}
    assert before.items() <= after.items()  # what was finished was not made again
    assert resumed["rows"] == study_of(tmp_path / "whole", directions=("right",), seeds=4)["rows"]


def test_bad_studies_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PatterningError, match="unknown directions nothing: there are right"):
        study_of(tmp_path / "a", directions=("nothing",))
    with pytest.raises(PatterningError, match="no reading gives a direction"):
        study_of(tmp_path / "b", directions=("unsure", "broken"))
    with pytest.raises(PatterningError, match="no seed may serve two purposes"):
        configured(first_seed=1001, pilots=5)
    with pytest.raises(PatterningError, match="side_seeds must be at most seeds"):
        configured(side_seeds=9)
    study_of(tmp_path / "c", directions=("right",))
    with pytest.raises(PatterningError, match="holds a run of another configuration"):
        study_of(tmp_path / "c", directions=("wrong",))


def test_seeds_that_overlap_are_refused_whichever_they_are() -> None:
    with pytest.raises(PatterningError, match="are for pilots, and 14 to 20 for claims"):
        Seeds(pilots=range(10, 15), claims=range(14, 21))
    assert Seeds(pilots=range(3), claims=range(3, 9)).tuning == range(0)
    with pytest.raises((PatterningError, ValidationError)):
        Seeds(pilots=range(3), claims=range(5, 7))


def test_a_job_is_known_by_what_its_numbers_depend_on() -> None:
    job = TrainJob(Line(), np.ones(6), (1,))
    assert job.key == TrainJob(Line(), np.ones(6), (1,)).key
    assert job.key.split("-")[-1] == TrainJob(Line(), np.ones(6), (1,), label="other").key.split("-")[-1]
    others = [TrainJob(Line(0.1), np.ones(6), (1,)), TrainJob(Line(), np.full(6, 2.0), (1,)),
              TrainJob(Line(), np.ones(6), (2,)), TrainJob(Line(), np.ones(6), (1,), keep=(3,))]  # fmt: skip
    assert len({job.key, *(other.key for other in others)}) == 5


def test_solutions_are_found_along_the_way_and_the_best_of_each_run() -> None:
    steps = np.array([10, 20, 30])
    agree = np.array([[0.2, 0.995, 0.4], [0.1, 0.2, 0.3], [1.0, 1.0, 0.5]])
    kept = {int(step): np.full((3, 2), step, dtype=np.float32) for step in steps}
    runs = Runs({"agree": agree[:, -1]}, steps, {"agree": agree}, kept)
    seeds = Seeds(pilots=range(3), claims=range(10, 16))
    bench = Bench(Line(), None, seeds, {"": runs})  # type: ignore[arg-type]
    found = bench.solutions("pure", Kind("agree", 0.99))
    assert [(one.seed, one.step) for one in found] == [(2, 20), (0, 20)]  # of equals the later checkpoint
    with pytest.raises(PatterningError, match=r"no checkpoint .* solution of the kind 'all'.*1\.000"):
        bench.solutions("all", Kind("agree", 1.1))


def test_a_device_that_is_not_there_or_not_used_is_refused_before_anything_is_written(tmp_path, monkeypatch) -> None:
    with pytest.raises(PatterningError, match="no device of PyTorch's"):
        study_of(tmp_path / "run", device="gpu")
    monkeypatch.setattr("patterning.study.run.find_device", torch.device)  # as if there were one
    with pytest.raises(PatterningError, match="line computes on the CPU alone, and device is cuda"):
        study_of(tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()
