"""What errors become on the command line, and where output goes."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from patterning.cli import main
from patterning.console.shell import Output, main_of, sentence_of
from patterning.core.errors import PatterningError
from patterning.core.store import strict_json, write_whole


def run(command, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main_of(command, Output())
    return status, *capsys.readouterr()


def raising(error: BaseException):
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PatterningError("it is\nwrong [red] here"), "error: it is wrong [red] here"),
        (
            PermissionError(13, "Permission denied", "/some/where"),
            "error: /some/where cannot be read or written: Permi",
        ),
        (
            OSError(28, "No space left on device"),
            "error: a file, or standard output, cannot be read or written: No spa",
        ),
        (MemoryError(), "error: memory ran out (MemoryError): use fewer --workers, --chains or --probes"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "error: memory ran out"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "error: memory ran out"),
    ],
)
def test_errors_become_one_sentence_and_exit_status_2(error, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(raising(error), capsys)
    assert (status, out) == (2, "")
    assert err.startswith(says)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), KeyError("x"), ValueError("bad")])
def test_a_fault_of_the_package_keeps_its_traceback(error: Exception) -> None:
    assert sentence_of(error) is None
    with pytest.raises(type(error)):
        main_of(raising(error), Output())


def test_notes_go_to_standard_error_as_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        logging.getLogger("patterning").warning("a unit [x] was damaged")

    assert run(command, capsys) == (0, "", "note: a unit [x] was damaged\n")
    assert logging.getLogger("patterning").handlers == []


def test_the_current_folder_may_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    status, _, err = run(lambda: pytest.fail("it began"), capsys)
    assert status == 2
    assert "the current folder is gone" in err


def test_json_is_all_of_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    output = Output()
    with output.reserved(True):
        print("from Python")
        os.system("echo from a shell")
    output.show({"a": np.float32(0.5), "b": [float("nan"), np.arange(2)], 3: True}, pytest.fail, True, None)
    out, err = capfd.readouterr()
    assert json.loads(out) == {"a": 0.5, "b": [None, [0, 1]], "3": True}
    assert "from Python" in err
    assert "from a shell" in err


def test_strict_json() -> None:
    assert strict_json({"x": (float("inf"), -1, None, "y", Path("z"), np.bool_(False))}) == {
        "x": [None, -1, None, "y", "z", False]
    }
    with pytest.raises(TypeError, match="set has no JSON form"):
        strict_json({1})


def test_an_output_that_cannot_be_written_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    status = main_of(lambda: Output().show({"a": 1}, pytest.fail, True, None), Output())
    assert status == 2
    assert "No space left on device" in capsys.readouterr().err


def test_write_whole_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    write_whole(tmp_path / "x", b"old")
    monkeypatch.setattr(os, "fsync", full)
    says = r"x cannot be written \(No space left on device\): make room there.*what is finished is kept"
    with pytest.raises(PatterningError, match=says):
        write_whole(tmp_path / "x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"
    with pytest.raises(PatterningError, match="cannot be written"):
        write_whole(tmp_path / "x" / "below", b"new")


CODE = """
import sys
from patterning.console.shell import Output, main_of
output = Output()
def command():
    for i in range(20_000 if "long" in sys.argv else 3):
        output.out.print(f"χ line {i}")
    output.error("and a word on standard error: χ")
sys.exit(main_of(command, output))
"""


@pytest.mark.parametrize(
    ("redirection", "status"),
    [("long | head -1", 0), (">&-", 0), ("2>&-", 0), (">&- 2>&- <&-", 0), (">/dev/full", 2), ("2>/dev/full", 0)],
)
def test_streams_in_every_state(redirection: str, status: int, tmp_path: Path) -> None:
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "code.py").write_text(CODE)
    line = f"{sys.executable} {tmp_path / 'code.py'} {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_narrow_alphabet_prints_all_the_same(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "code.py")],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    assert ("χ line 2" if encoding == "utf-8" else "\\u03c7 line 2") in done.stdout.decode(encoding)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 2, ""),
        (["frobnicate"], 2, "error: No such command 'frobnicate'."),
        (["report"], 2, "error: Missing argument"),
        (["report", "x", "--frobnicate"], 2, "error: No such option: --frobnicate"),
        (["run", "parentheses", "--workers", "-1"], 2, "error: Invalid value for '--workers'"),
        (["llc", "x.py:t", "--n-beta", "abc", "--localization", "1", "--step-size", "1", "--out", "o"], 2,
         "error: Invalid value for '--n-beta'"),
        (["llc", "x.py:t", "--n-beta", "1", "--localization", "1", "--step-size", "nan", "--out", "o"], 2,
         "error: step_size is nan: it must be a finite number"),
        (["llc", "x.py:t", "--n-beta", "inf", "--localization", "1", "--step-size", "1", "--out", "o"], 2,
         "error: n_beta is inf: it must be a finite number"),
        (["llc", "x.py:t", "--n-beta", "1", "--localization", "1", "--step-size", "1", "--out", "o", "--seed", "-1"], 2,
         "error: Invalid value for '--seed'"),
        (["llc", "x.py:t", "--n-beta", "1", "--localization", "1", "--step-size", "1", "--out", "o", "--burn-in", "-5"],
         2, "error: Invalid value for '--burn-in'"),
        (["report", "x" * 300], 2, "error: "),
        (["run", "--config", "x" * 300], 2, "error: "),
    ],
)  # fmt: skip
def test_bad_command_lines(
    arguments: list[str], status: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["patterning", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == status
    err = capsys.readouterr().err
    assert err.startswith(says)
    assert len(err.splitlines()) == (1 if says else 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [", "\0", "\xff", "experiment: [x]\n", "experiment: parentheses\n"])
def test_a_damaged_configuration_is_one_sentence(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("latin-1"))
    for arguments in (["run", "--config", str(path), "--out", str(tmp_path / "out")], ["report", str(tmp_path)]):
        monkeypatch.setattr(sys, "argv", ["patterning", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        err = capsys.readouterr().err
        assert stop.value.code == 2
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
