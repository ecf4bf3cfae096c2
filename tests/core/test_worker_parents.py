"""The process that workers belong to: a script without a guard, and one that is killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from patterning.core.store import RunFolder, Unit
from patterning.core.workers import Workers

def work(n, scratch):
    import os, time
    (Path(sys.argv[1]) / f"worker{n}").write_text(str(os.getpid()))
    time.sleep(60 if len(sys.argv) > 2 else 0)
    return {"n": np.array(n)}

with Workers(RunFolder(Path(sys.argv[1])), 2) as pool:  # no `if __name__ == "__main__"`
    print(sum(int(x["n"]) for x in pool.compute([Unit(f"u{n}", work, {"n": n}) for n in range(3)], "work")))
"""


@pytest.mark.long
def test_a_script_needs_no_guard_and_may_come_from_standard_input(tmp_path: Path) -> None:
    line = [sys.executable, "-", str(tmp_path)]
    done = subprocess.run(line, input=SCRIPT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "3", done.stderr


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.long
def test_workers_leave_when_their_parent_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-", str(tmp_path), "long"], stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(SCRIPT)
    process.stdin.close()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("worker*"))) < 2 or not all(f.read_text() for f in tmp_path.glob("worker*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = [int(file.read_text()) for file in tmp_path.glob("worker*")]
    assert all(alive(pid) for pid in workers)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
