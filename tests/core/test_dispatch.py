"""The dispatcher against a cluster of a simulated clock: what is lost is computed again, and nothing else is."""

import itertools
import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patterning.core import dispatch
from patterning.core.cluster import OTHER, Answer, Death, Machine, Needs, names_of, no_place, speeds_of
from patterning.core.dispatch import Dispatch
from patterning.core.errors import PatterningError
from patterning.core.executors import LocalProcesses, Ray, ThisProcess, chosen, executor_of
from patterning.core.pieces import LARGE
from patterning.core.progress import Progress
from patterning.core.shipping import load
from patterning.core.store import RunFolder, Unit, perform
from patterning.core.worker import DONE, FAILED, UNREADABLE, answer


class Simulated:
    """Machines of a simulated clock. `deaths`: what becomes of the n-th try, where it is lost; `seconds` of a job."""

    def __init__(self, machines: Sequence[Machine], deaths: Mapping[int, Death] | None = None, seconds: float = 1.0):
        self.needs = Needs()
        self.all, self.deaths, self.seconds = list(machines), dict(deaths or {}), seconds
        self.now = 0.0
        self.tries = itertools.count()
        self.free = [(0.0, machine.key) for machine in machines for _ in range(int(machine.cpus))]
        self.over: dict[int, tuple[float, Any]] = {}
        self.kept: dict[str, NDArray[np.uint8]] = {}
        self.puts = self.runs = 0
        self.cancelled: list[int] = []
        self.closed = False
        self.most = 0
        self.forced: tuple[Any, ...] | None = None

    def clock(self) -> float:
        return self.now

    def submit(self, number: int, name: str, frame: bytes, pieces: Sequence[str], needs: Needs) -> int:
        del name
        attempt = next(self.tries)
        start, machine = min(self.free)
        end = max(start, self.now) + self.seconds
        self.free[self.free.index((start, machine))] = (end, machine)
        if attempt in self.deaths:
            self.over[number] = (end, self.deaths[attempt])
        else:
            unit = load(frame, {name: self.kept[name] for name in pieces})
            self.runs += 1
            message = self.forced or answer(lambda: unit, lambda u: perform(u, Path("no scratch")), lambda _: None)
            self.over[number] = (end, Answer(machine, ["a note"] if attempt == 0 else [], message))
        self.most = max(self.most, len(self.over))
        return number

    def keep(self, pieces: Mapping[str, NDArray[np.uint8]]) -> None:
        for name, memory in pieces.items():
            if name not in self.kept:
                self.kept[name] = memory.copy()
                self.puts += 1

    def drop(self, but: Any) -> None:
        self.kept = {name: self.kept[name] for name in but if name in self.kept}

    def wait(self, tickets: Sequence[int], seconds: float) -> Sequence[int]:
        first = min(self.over[ticket][0] for ticket in tickets)
        self.now = max(self.now, min(first, self.now + seconds))
        return [ticket for ticket in tickets if self.over[ticket][0] <= self.now]

    def take(self, ticket: int) -> Answer | Death:
        return self.over.pop(ticket)[1]

    def heard(self) -> Mapping[int, float]:
        return dict.fromkeys(self.over, 0.5)

    def machines(self) -> Sequence[Machine]:
        return self.all

    def cancel(self, tickets: Sequence[int]) -> None:
        self.cancelled += tickets

    def close(self) -> None:
        self.closed = True


class Heard(Progress):
    def __init__(self) -> None:
        self.done, self.words, self.amounts = 0, list[str](), list[float]()

    def advance(self) -> None:
        self.done += 1

    def within(self, units: float) -> None:
        self.amounts.append(units)

    def where(self, words: str) -> None:
        self.words.append(words)


def square(n: int, scratch: Path) -> dict[str, NDArray[Any]]:
    del scratch
    return {"n": np.array(n * n)}


def units_of(count: int) -> list[Unit]:
    return [Unit(f"u{n}", square, {"n": n}) for n in range(count)]


def session(cluster: Simulated, **options: Any) -> Dispatch:
    return Dispatch(cluster, **{"retries": 5, "clock": cluster.clock, **options})


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patterning.core.store.os.fsync", lambda _: None)


PAIR = [Machine("a", "north", 1), Machine("b", "south", 1)]
KINDS = st.sampled_from([Death("killed"), Death("gone", machine=True)])


@given(st.integers(1, 12), st.dictionaries(st.integers(0, 20), KINDS, max_size=8))
def test_whatever_dies_every_result_is_stored_once_and_right(count: int, deaths: dict[int, Death]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        cluster, progress = Simulated(PAIR, deaths), Heard()
        patched.setattr(dispatch.time, "sleep", lambda seconds: setattr(cluster, "now", cluster.now + seconds + 1e-9))
        run = RunFolder(Path(folder))
        run.create()
        units = units_of(count)
        assert session(cluster, retries=20).compute(run, units, progress) == []
        stored = [run.load(unit) for unit in units]
        assert [int(arrays["n"]) for arrays in stored if arrays is not None] == [n * n for n in range(count)]
        assert progress.done == cluster.runs == count  # a job that was not lost did not run twice
        assert len(list(run.units.iterdir())) == count


def test_a_job_that_always_dies_ends_the_stage_after_its_retries(tmp_path: Path, monkeypatch) -> None:
    run = RunFolder(tmp_path)
    run.create()
    for kind, most in ((Death("worker killed"), 3), (Death("node gone", machine=True), 50)):
        cluster = Simulated(PAIR, dict.fromkeys(range(1000), kind))
        pauses: list[float] = []

        def sleep(seconds: float, cluster: Simulated = cluster, pauses: list[float] = pauses) -> None:
            pauses.append(seconds)
            cluster.now += seconds + 1e-9

        monkeypatch.setattr(dispatch.time, "sleep", sleep)
        with pytest.raises(PatterningError, match=rf"^{most + 1} .* died in u0, one after the other \({kind.words}\)"):
            session(cluster, retries=3).compute(run, units_of(1), Progress())
        assert next(cluster.tries) == most + 1
        assert sum(pauses) > 1  # later tries wait


def test_the_first_error_ends_the_stage_and_stops_the_others(tmp_path: Path) -> None:
    def fails(n: int, scratch: Path) -> dict[str, NDArray[Any]]:
        del scratch
        if n == 3:
            raise PatterningError("step_size is -1: it must be > 0")
        return {"n": np.array(n)}

    run, cluster = RunFolder(tmp_path), Simulated(PAIR)
    run.create()
    units = [Unit(f"u{n}", fails, {"n": n}) for n in range(10)]
    with pytest.raises(PatterningError, match="step_size is -1") as found:
        session(cluster).compute(run, units, Progress())
    assert "in a worker process on south" in "".join(found.value.__notes__)
    assert "in fails" in "".join(found.value.__notes__)
    assert len(cluster.cancelled) == 6
    assert all((run.load(unit) is not None) == (n < 3) for n, unit in enumerate(units))


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ((OTHER, "torch 1.0 there, 2.0 here"), r"machine north cannot compute jobs of this process: torch 1.0 there"),
        ((UNREADABLE, "ModuleNotFoundError: x"), r"u0 cannot be unpacked on machine north \(ModuleNotFoundError: x\)"),
        ((FAILED, pickle.dumps(ValueError("v")), "mine.py, line 3: ValueError: v", "trace"), r"^mine.py, line 3"),
    ],
)
def test_what_a_machine_answers_becomes_one_sentence(message: tuple, says: str, tmp_path: Path) -> None:
    run, cluster = RunFolder(tmp_path), Simulated(PAIR)
    run.create()
    cluster.forced = message
    with pytest.raises(PatterningError, match=says):
        session(cluster).compute(run, units_of(1), Progress())


def test_large_memory_is_kept_once_however_many_jobs_share_it(tmp_path: Path) -> None:
    data = np.arange(LARGE, dtype=np.float64)

    def total(n: int, data: NDArray[Any], scratch: Path) -> dict[str, NDArray[Any]]:
        del scratch
        data[0] += 1  # its own copy
        return {"n": n + data.sum()}

    run, cluster = RunFolder(tmp_path), Simulated(PAIR)
    run.create()
    units = [Unit(f"u{n}", total, {"n": n, "data": data}) for n in range(5)]
    mine = session(cluster)
    mine.compute(run, units, Progress())
    assert cluster.puts == 1
    assert [float(found["n"]) for u in units if (found := run.load(u))] == [data.sum() + 1 + n for n in range(5)]
    mine.compute(run, units_of(1), Progress())
    assert cluster.kept == {}


def test_what_cannot_be_packed_is_left_to_the_caller(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import threading

    run, cluster = RunFolder(tmp_path), Simulated(PAIR)
    run.create()
    units = units_of(3)
    stuck = Unit("stuck", lambda lock, scratch: {}, {"lock": threading.Lock()})
    stuck.__dict__["key"] = "stuck"
    with caplog.at_level(logging.WARNING):
        assert session(cluster).compute(run, [*units, stuck], Progress()) == [stuck]
    assert "stuck cannot be sent to a worker process" in caplog.text
    assert "a note" in caplog.text  # what the package said there
    assert all(run.load(unit) for unit in units)


def test_no_more_jobs_are_ahead_than_twice_what_runs_at_once(tmp_path: Path) -> None:
    run, cluster = RunFolder(tmp_path), Simulated([Machine("a", "a", 20), Machine("b", "b", 10)], seconds=20.0)
    run.create()
    progress = Heard()
    session(cluster).compute(run, units_of(200), progress)
    assert 30 <= cluster.most <= 60
    assert progress.done == 200
    assert max(progress.amounts) > 10  # half of each job in work
    assert "a " in progress.words[-1]
    assert "/min" in progress.words[-1]


def test_a_job_that_no_machine_can_hold_is_refused_or_waited_for(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create()
    unit = Unit("big", square, {"n": 1}, lambda n: n * 8e9)
    small = [Machine("a", "north", 1, memory=4e9)]
    with pytest.raises(
        PatterningError, match=r"no machine .* big, which takes 1 CPU, 8 GB of memory: the largest is north"
    ):
        session(Simulated(small, seconds=1e6)).compute(run, [unit], Progress())
    cluster = Simulated(small, seconds=100.0)
    with pytest.raises(PatterningError, match="no machine of the cluster can hold big"):
        session(cluster, patience=60.0).compute(run, [unit], Progress())
    assert 60 <= cluster.now < 80
    cluster = Simulated([Machine("a", "north", 1, memory=9e9)])
    assert session(cluster).compute(run, [unit], Progress()) == []


def test_a_shared_folder_that_is_not_shared_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "APPEARS_WITHIN", -1.0)
    run, cluster = RunFolder(tmp_path), Simulated(PAIR)
    run.create()
    cluster.forced = (DONE, None)
    with pytest.raises(PatterningError, match="is not to be seen here: the folder is not on a disk that all machines"):
        session(cluster, shared=True).compute(run, units_of(1), Progress())


def test_machines_in_words() -> None:
    twins = [Machine("1", "host", 2), Machine("2", "host", 2), Machine("3", "other", 1, 2, 3e9)]
    assert names_of(twins) == {"1": "host", "2": "host (2)", "3": "other"}
    assert speeds_of({}, 60.0, 0) == ""
    assert speeds_of({"b": 1, "a": 3}, 120.0, 2) == "a 1.5/min, b 0.5/min, 2 run again"
    many = speeds_of({f"n{i}": i for i in range(1, 6)}, 60.0, 0)
    assert many == "5 machines 15/min, slowest n1 1/min"
    assert "no machine left" in no_place("job", Needs(), [])
    assert "takes 2 CPUs, 1 GPU: the largest is other with 1 CPU, 2 GPUs, 3 GB" in no_place("j", Needs(0, 2, 1), twins)


def test_one_contract_three_executors() -> None:
    assert executor_of(1) == ThisProcess()
    assert executor_of(3) == LocalProcesses(3)
    ray = Ray("head:6379", cpus=2)
    assert executor_of(ray) is chosen(ray, 1) is ray
    assert chosen(None, 4) == 4
    assert [str(each) for each in (ThisProcess(), LocalProcesses(3), ray)] == ["1", "3", "Ray"]
    for executor, workers, says in ((ray, 2, "leave it out beside an executor"), ("ray", 1, "give pt.Ray")):
        with pytest.raises(PatterningError, match=says):
            chosen(executor, workers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cpus": 0}, "cpus is 0: it must be a number, at least 0.001"),
        ({"cpus": 1.5}, "cpus is 1.5: above 1, Ray hands out whole ones"),
        ({"gpus": -1}, "gpus is -1"),
        ({"gpus": float("nan")}, "gpus is nan"),
        ({"retries": 1.5}, "retries is 1.5: it must be a whole number"),
        ({"wait": "long"}, "wait is 'long'"),
        ({"address": 6379}, "address is 6379: it must be host:port"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict, says: str) -> None:
    with pytest.raises(PatterningError, match=says):
        Ray(**options)
