"""One process at a time in a folder."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from patterning.core.errors import PatterningError
from patterning.core.locks import NAME, hold
from patterning.core.store import RunFolder, Unit
from patterning.core.workers import Workers

HOLDER = """
import sys, time
from pathlib import Path
from patterning.core.store import RunFolder
from patterning.core.workers import Workers
with Workers(RunFolder(Path(sys.argv[1])), 1):
    (Path(sys.argv[1]) / "units" / "x.safetensors.part").write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def one(scratch: Path) -> dict[str, np.ndarray]:
    del scratch
    return {"x": np.ones(1)}


def test_a_second_process_is_told_who_has_the_folder_and_touches_nothing(tmp_path: Path, holder) -> None:
    run = RunFolder(tmp_path)
    pid = holder.pid
    says = rf"{tmp_path} is in use by process {pid} \(.*since .*\): wait until it ends, stop it \(kill {pid}\)"
    for enter in (run.create, Workers(run, 1).__enter__, lambda: Workers(run, 1).compute([], "x")):
        with pytest.raises(PatterningError, match=says):
            enter()
    link = tmp_path.with_name(f"{tmp_path.name}-link")
    link.symlink_to(tmp_path)
    with pytest.raises(PatterningError, match="is in use by process"), Workers(RunFolder(link), 2):
        pass
    assert (run.units / "x.safetensors.part").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_free_and_its_leftovers_are_cleared(number: int, tmp_path: Path, holder) -> None:
    os.kill(holder.pid, number)
    holder.wait()
    run = RunFolder(tmp_path)
    with Workers(run, 1) as pool:
        assert pool.compute([Unit("one", one, {})], "work")[0]["x"] == 1
        assert not list(run.units.glob("*.part"))


def test_a_process_may_hold_a_folder_twice(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "new" / "run")
    with run.lock():
        with Workers(run, 1) as pool:
            part = run.units / "mine.part"
            part.write_text("in work")
            run.create()  # within: what is half-written is this process's own
            pool.compute([Unit("one", one, {})], "work")
        assert part.exists()
        with hold(run.path) as first:
            assert not first
    assert (run.path / NAME).read_text() == ""
    with hold(run.path) as first:
        assert first
        assert json.loads((run.path / NAME).read_text())["pid"] == os.getpid()
    run.create()
    assert not part.exists()


def test_unfinished_results_are_cleared_but_not_a_users_files(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for name in ("chi.zarr.1-0.part", "chi.zarr.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    (tmp_path / "results.json.12.part").write_text("{")
    (tmp_path / "download.part").write_text("the user's")
    run.create()
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, "download.part", "units"]


def test_what_cannot_be_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "locked" / NAME).mkdir(parents=True)
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "units").write_text("x")
    for name, says in (
        ("file", "there is a file of that name"),
        ("file/below", "a part of its path is a file"),
        ("link", "it is a link to nowhere"),
        ("locked", "Is a directory"),
        ("x" * 300, "File name too long"),
        ("units", "there is a file of that name"),
    ):
        with pytest.raises(PatterningError, match=rf"cannot be used as a folder \({says}\): name another one"):
            RunFolder(tmp_path / name).create()


def test_a_holder_that_has_not_said_who_it_is(tmp_path: Path, holder) -> None:
    (tmp_path / NAME).write_text("")
    with pytest.raises(PatterningError, match="is in use by another process: wait until it ends, stop it, or name"):
        RunFolder(tmp_path).create()


def test_a_file_system_without_locks_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from patterning.core import locks

    class NoLocks:
        LOCK_EX = LOCK_NB = 0

        @staticmethod
        def lockf(*_: object) -> None:
            raise OSError(37, "No locks available")

    monkeypatch.setattr(locks, "fcntl", NoLocks)
    RunFolder(tmp_path).create()
    assert "file system without locks" in caplog.text


def test_two_pools_at_once_leave_one_result(tmp_path: Path) -> None:
    """Started together, one is refused and the other finishes."""
    script = HOLDER.replace("time.sleep(60)", "time.sleep(2)")
    line = [sys.executable, "-c", script, str(tmp_path)]
    started = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate() for process in started]
    assert sorted(process.returncode for process in started) == [0, 1, 1]
    assert sum("is in use by" in err for _, err in answers) == 2
