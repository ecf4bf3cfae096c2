"""The pool: what can be sent to a process, what a unit may do there, how its progress and its errors come back."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patterning.core.errors import PatterningError
from patterning.core.processes import ProcessSession
from patterning.core.progress import Progress
from patterning.core.store import RunFolder, Unit
from patterning.core.workers import Workers, report_progress

Arrays = dict[str, Any]


class Heard(Progress):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int, int]] = []
        self.amounts: list[float] = []
        self.done = 0
        self.over = 0

    def start(self, stage: str, total: int, done: int) -> None:
        self.stages.append((stage, total, done))

    def advance(self) -> None:
        self.done += 1

    def within(self, units: float) -> None:
        self.amounts.append(units)

    def finish(self) -> None:
        self.over += 1


def pids(n: int, scratch: Path) -> Arrays:
    del scratch
    return {"pid": np.array([os.getpid(), n]), "threads": np.array(torch.get_num_threads())}


def slow(scratch: Path) -> Arrays:
    del scratch
    for step in range(9):
        report_progress(step / 8)
        time.sleep(0.3)
    return {"x": np.zeros(1)}


def leave(scratch: Path) -> Arrays:
    del scratch
    os._exit(7)


def killed(scratch: Path) -> Arrays:
    del scratch
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def exits(scratch: Path) -> Arrays:
    del scratch
    sys.exit("no more")


def refuses(scratch: Path) -> Arrays:
    del scratch
    raise PatterningError("step_size is -1: it must be > 0")


class OddError(Exception):
    """Cannot be unpickled: pickle calls it with one argument."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def odd(scratch: Path) -> Arrays:
    del scratch
    raise OddError(1, 2)


def prints(scratch: Path) -> Arrays:
    del scratch
    print("to standard output")
    os.system("echo from a shell")
    sys.stdin.read()  # nothing, and at once
    return {"x": np.ones(2)}


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """One pool for many tests, because a process takes seconds to start."""
    with Workers(RunFolder(tmp_path_factory.mktemp("crew")), 2) as pool:
        yield pool


def session_of(pool: Workers) -> ProcessSession:
    assert isinstance(pool.session, ProcessSession)
    return pool.session


def test_functions_that_cannot_be_imported_run_in_processes(crew: Workers) -> None:
    offset = 3

    def inner(x: int, scratch: Path) -> Arrays:
        del scratch
        return {"y": np.array([x + offset, os.getpid()])}

    units = [
        Unit("inner", inner, {"x": 1}),
        Unit("lambda", lambda data, scratch: {"y": np.array([data.sum().item(), os.getpid()])}, {"data": [1]}),
    ]
    units[1] = Unit("lambda", units[1].function, {"data": np.ones(4)})
    first, second = crew.compute(units, "work")
    assert first["y"][0] == 4
    assert second["y"][0] == 4
    assert os.getpid() not in {first["y"][1], second["y"][1]}


def test_a_worker_computes_on_one_thread_and_so_does_this_process(tmp_path: Path, crew: Workers) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        units = [Unit(f"thread{n}", pids, {"n": n}) for n in range(2)]
        with Workers(RunFolder(tmp_path), 1) as alone:
            for pool in (alone, crew):
                found = pool.compute(units, "work")
                assert {int(arrays["threads"]) for arrays in found} == {1}
                assert (found[0]["pid"][0] == os.getpid()) == (pool is alone)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


class OnceHere:
    """A part of the arguments whose fingerprint may be asked for once, in one process."""

    def __init__(self) -> None:
        self.home = os.getpid()
        self.asked = 0

    @property
    def fingerprint(self) -> str:
        assert os.getpid() == self.home, "a worker computed the key again"
        self.asked += 1
        return "the same"


def use(part: OnceHere, scratch: Path) -> Arrays:
    del part, scratch
    return {"pid": np.array(os.getpid())}


def test_the_key_is_computed_once_and_sent_along(crew: Workers) -> None:
    part = OnceHere()
    unit = Unit("use", use, {"part": part})
    (found,) = crew.compute([unit], "work")
    assert crew.compute([unit], "again")[0]["pid"] == found["pid"]
    assert found["pid"] != os.getpid()
    assert part.asked == 1


def test_tensors_that_share_memory_are_sent_once(tmp_path: Path) -> None:
    from patterning.core.shipping import dump, load

    big = torch.arange(100_000.0)
    data = dump((big, big[:10], big.expand(3, -1)))
    assert len(data) < 1.2 * big.nbytes
    whole, part, wide = load(data)
    assert part.data_ptr() == whole.data_ptr() == wide.data_ptr()
    assert torch.equal(whole, big)


def test_what_cannot_be_sent_is_computed_here_with_one_note(
    crew: Workers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lock = threading.Lock()

    def guarded(n: int, scratch: Path) -> Arrays:
        del scratch
        with lock:
            return {"pid": np.array([os.getpid(), n])}

    units = [Unit(f"guarded-{n}", guarded, {"n": n}) for n in range(2)] + [Unit("free", pids, {"n": 5})]
    progress = Heard()
    monkeypatch.setattr(crew, "progress", progress)
    monkeypatch.setattr(session_of(crew).kept, "noted", False)
    found = crew.compute(units, "work")
    assert [int(arrays["pid"][0] == os.getpid()) for arrays in found] == [1, 1, 0]
    assert [int(arrays["pid"][1]) for arrays in found] == [0, 1, 5]
    notes = [record.getMessage() for record in caplog.records]
    assert len(notes) == 1
    assert "guarded-0 cannot be sent to a worker process" in notes[0]
    assert "cannot pickle '_thread.lock' object" in notes[0]
    assert progress.done == 3


class OnlyHere:
    """Is packed, but cannot be unpacked in another process."""

    def __reduce__(self) -> Any:
        return only_in, (os.getpid(),)


def only_in(pid: int) -> OnlyHere:
    if pid != os.getpid():
        raise RuntimeError("made for another process")
    return OnlyHere()


def here(part: OnlyHere, scratch: Path) -> Arrays:
    del part, scratch
    return {"pid": np.array(os.getpid())}


def test_what_cannot_be_unpacked_there_is_computed_here(
    crew: Workers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_of(crew).kept, "noted", False)
    part = OnlyHere()
    part.fingerprint = "x"  # type: ignore[attr-defined]
    (found,) = crew.compute([Unit("here", here, {"part": part})], "work")
    assert found["pid"] == os.getpid()
    assert "made for another process" in caplog.text


def defaults(scratch: Path) -> Arrays:
    del scratch
    return {
        "bytes": np.array(torch.get_default_dtype().itemsize),
        "deterministic": np.array(torch.are_deterministic_algorithms_enabled()),
    }


def test_torchs_defaults_are_those_of_this_process(crew: Workers) -> None:
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    try:
        (found,) = crew.compute([Unit("defaults", defaults, {})], "work")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    assert (int(found["bytes"]), bool(found["deterministic"])) == (8, True)


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_progress_moves_inside_a_unit(count: int, tmp_path: Path) -> None:
    progress = Heard()
    with Workers(RunFolder(tmp_path), count, progress) as pool:
        pool.compute([Unit("slow", slow, {})], "slow work")
    assert progress.stages == [("slow work", 1, 0)]
    inside = [amount for amount in progress.amounts if 0 < amount < 1]
    assert len(inside) >= 4
    assert inside == sorted(inside)
    assert progress.amounts[-1] == 0.0  # the unit is counted as a whole then
    assert progress.done == progress.over == 1


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (leave, r"a worker process left with exit code 7, in work: .*fewer --workers.*what is finished is kept"),
        pytest.param(
            killed, r"a worker process was killed, most often because memory ran out, in work", marks=pytest.mark.long
        ),
    ],
)
def test_a_worker_that_dies_is_one_sentence_and_what_is_finished_stays(function, says: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with Workers(run, 2) as pool:
        run.compute(Unit("done", pids, {"n": 1}))
        with pytest.raises(PatterningError, match=says):
            pool.compute([Unit("work", function, {})], "work")
        # the pool can still be used
        again = pool.compute([Unit("done", pids, {"n": 1}), Unit("next", pids, {"n": 2})], "work")
    assert [int(arrays["pid"][1]) for arrays in again] == [1, 2]


@pytest.mark.parametrize(
    ("function", "kind", "says"),
    [
        (refuses, PatterningError, r"^step_size is -1: it must be > 0\n"),
        pytest.param(odd, RuntimeError, r"^OddError: 1 and 2\n", marks=pytest.mark.long),
        pytest.param(exits, SystemExit, "no more", marks=pytest.mark.slow),
    ],
)
def test_errors_come_back_as_they_are(function, kind: type[BaseException], says: str, tmp_path: Path) -> None:
    with Workers(RunFolder(tmp_path), 2) as pool, pytest.raises(kind, match=says) as found:
        pool.compute([Unit("work", function, {})], "work")
    assert f"in {function.__name__}" in "".join(found.value.__notes__)  # the worker's traceback


def test_what_a_unit_prints_does_not_disturb(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Workers(RunFolder(tmp_path), 2) as pool:  # its process prints where this test listens
        (found,) = pool.compute([Unit("prints", prints, {})], "work")
    np.testing.assert_array_equal(found["x"], [1, 1])
    out, err = capfd.readouterr()
    assert out == ""
    assert "to standard output" in err
    assert "from a shell" in err


def test_no_more_processes_than_units(tmp_path: Path) -> None:
    with Workers(RunFolder(tmp_path), 1000) as pool:
        pool.compute([Unit("u", pids, {"n": 1})], "work")
        assert len(session_of(pool).crew) == 1
        processes = [process.process for process in session_of(pool).crew]
    assert all(process.returncode is not None for process in processes)
