"""Training under weights in two processes: each step has the gradient of one process that sees all the rows."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

for library in ("transformers", "datasets", "accelerate"):
    pytest.importorskip(library)

from .two_processes import CASES, ROWS, run  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


@pytest.mark.slow  # two processes that import transformers: 25 CPU seconds
@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    script = str(Path(__file__).parent / "two_processes.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(tmp_path)], stderr=subprocess.PIPE, text=True,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": paths},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for case in CASES:
        alone = run(tmp_path, case, per_device_train_batch_size=ROWS)
        torch.testing.assert_close(first[case], alone, rtol=0, atol=1e-6)
        assert torch.equal(first[case], second[case])
    assert "average_tokens_across_devices" in first["refused"]
