"""Ray as an executor: the same bits as local processes, whatever dies on the way."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import patterning as pt
from patterning.core.errors import PatterningError
from patterning.core.executors import LocalProcesses, Ray
from patterning.core.progress import Progress, report_progress
from patterning.core.store import RunFolder, Unit
from patterning.core.workers import Workers

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning")]
"""Ray leaves files and processes of its own open when it shuts down."""
Arrays = dict[str, np.ndarray]


class Data:
    """A tensor with a name for the key."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.fingerprint, self.tensor = name, tensor


def train(seed: int, data: Data, scratch: Path, marks: str = "", seconds: float = 0.0) -> Arrays:
    """A few steps of float32 training, whose bits depend on the number of threads. It marks each try by its process."""
    del scratch
    if marks:
        (Path(marks) / f"{seed}-{os.getpid()}").touch()
    begun = time.monotonic()
    while (gone := time.monotonic() - begun) < seconds:
        report_progress(0.5 + 0.5 * gone / seconds)
        time.sleep(0.05)
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(256, 64, generator=generator)
    for _ in range(20):
        w = w - 1e-3 * data.tensor.T @ torch.tanh(data.tensor @ w)
    return {"w": w.numpy(), "norm": np.array(float(w.norm()))}


DATA = Data("data", torch.randn(512, 256, generator=torch.Generator().manual_seed(0)))


def units_of(count: int, **options: Any) -> list[Unit]:
    """Their key leaves out where tries are marked and how long they take: the numbers are the same."""
    units = [Unit(f"train{seed}", train, {"seed": seed, "data": DATA, **options}) for seed in range(count)]
    for unit in units:
        unit.__dict__["key"] = f"{unit.name}-key"
    return units


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "units").iterdir()}


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What local processes write."""
    folder = tmp_path_factory.mktemp("local")
    with Workers(RunFolder(folder), LocalProcesses(2)) as pool:
        pool.compute(units_of(12), "training")
    return files_of(folder)


class Heard(Progress):
    def __init__(self) -> None:
        self.words, self.amounts, self.done = list[str](), list[float](), 0

    def within(self, units: float) -> None:
        self.amounts.append(units)

    def where(self, words: str) -> None:
        self.words.append(words)

    def advance(self) -> None:
        self.done += 1


def compute(folder: Path, units: list[Unit], progress: Progress | None = None, **options: Any) -> list[Arrays]:
    with Workers(RunFolder(folder), Ray(**options), progress) as pool:
        return pool.compute(units, "training")


@pytest.mark.parametrize("shared", [False, True])
def test_the_same_bits_as_local_processes(shared: bool, cluster, local: dict[str, bytes], tmp_path: Path) -> None:
    progress = Heard()
    found = compute(tmp_path, units_of(12, seconds=0.0 if shared else 1.2), progress, shared=shared)
    assert files_of(tmp_path) == local
    assert len(found) == progress.done == 12
    if not shared:
        assert any(0 < amount < 2 for amount in progress.amounts)
        assert "(2) " in progress.words[-1]  # both machines have this host's name
        assert progress.words[-1].count("/min") == 2


def test_errors_and_what_is_wrong_with_the_cluster(cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(scratch: Path) -> Arrays:
        raise PatterningError("step_size is -1: it must be > 0")

    with pytest.raises(PatterningError, match=r"^step_size is -1: it must be > 0\n") as found:
        compute(tmp_path, [Unit("refuses", refuses, {})])
    assert "in refuses" in "".join(found.value.__notes__)
    with pytest.raises(
        PatterningError, match=r"no machine of the cluster can hold train0, which takes 3 CPUs: the largest"
    ):
        compute(tmp_path, units_of(1), cpus=3)
    with pytest.raises(PatterningError, match=r"can hold big, which takes 1 CPU, 1e\+06 GB of memory"):
        compute(tmp_path, [Unit("big", refuses, {}, lambda: 1e15)])
    from patterning.core import ray_cluster

    monkeypatch.setattr(ray_cluster, "versions", lambda: {"torch": "1.0"})
    with pytest.raises(PatterningError, match=r"machine .* of the cluster cannot compute jobs of this process: torch"):
        compute(tmp_path, units_of(1))


def killer_of(marks: Path, when: Callable[[list[Path]], bool]) -> threading.Thread:
    """Kills the process of the first marked try, once."""

    def run() -> None:
        while not when(found := sorted(marks.iterdir(), key=lambda file: file.stat().st_mtime_ns)):
            time.sleep(0.05)
        os.kill(int(found[0].name.split("-")[1]), signal.SIGKILL)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def tries_of(marks: Path) -> dict[int, int]:
    seeds = [int(file.name.split("-")[0]) for file in marks.iterdir()]
    return {seed: seeds.count(seed) for seed in set(seeds)}


def test_a_worker_killed_in_a_job(cluster, local: dict[str, bytes], tmp_path: Path) -> None:
    marks, progress = tmp_path / "marks", Heard()
    marks.mkdir()
    thread = killer_of(marks, bool)
    compute(tmp_path / "run", units_of(3, marks=str(marks), seconds=1.5), progress)
    thread.join()
    assert files_of(tmp_path / "run") == {
        name: data for name, data in local.items() if name in files_of(tmp_path / "run")
    }
    assert len(files_of(tmp_path / "run")) == 3
    assert sum(tries_of(marks).values()) == 4  # one job ran twice, and the others did not
    assert progress.words[-1].endswith("1 run again")


def test_a_job_that_kills_its_process_is_given_up(cluster, tmp_path: Path) -> None:
    def dies(scratch: Path) -> Arrays:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with pytest.raises(PatterningError, match=r"^2 worker processes died in dies, one after the other \("):
        compute(tmp_path, [Unit("dies", dies, {})], retries=1)


def test_a_machine_removed_in_a_job(cluster, local: dict[str, bytes], tmp_path: Path) -> None:
    """Two more machines have room for a job each; one of them is removed while both are at work."""
    marks, progress = tmp_path / "marks", Heard()
    marks.mkdir()
    more = [cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20) for _ in range(2)]
    with ThreadPoolExecutor(1) as thread:  # Ray starts and removes machines in the main thread alone
        options: dict[str, Any] = {"cpus": 2, "retries": 0, "wait": 60}
        work = thread.submit(compute, tmp_path / "run", units_of(2, marks=str(marks), seconds=3.0), progress, **options)
        while len(list(marks.iterdir())) < 2:
            assert not work.done(), work.result()
            time.sleep(0.05)
        cluster.remove_node(more[0], allow_graceful=False)
        work.result()
    cluster.remove_node(more[1])
    assert files_of(tmp_path / "run") == {name: local[name] for name in files_of(tmp_path / "run")}
    assert len(files_of(tmp_path / "run")) == 2
    assert sum(tries_of(marks).values()) == 3
    assert progress.words[-1].endswith("1 run again")


DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
import test_ray
from pathlib import Path
test_ray.compute(Path(sys.argv[3]), test_ray.units_of(int(sys.argv[4]), marks=sys.argv[5], seconds=float(sys.argv[6])),
                 address=sys.argv[2], retries=50)
"""


def driver(cluster: Any, folder: Path, marks: Path, count: int, seconds: float) -> subprocess.Popen:
    line = [
        sys.executable,
        "-c",
        DRIVER,
        str(Path(__file__).parent),
        cluster.address,
        str(folder),
        str(count),
        str(marks),
    ]
    return subprocess.Popen([*line, str(seconds)], env={**os.environ, "PYTHONWARNINGS": "ignore"})


def test_the_driver_killed_and_resumed(cluster, local: dict[str, bytes], tmp_path: Path) -> None:
    marks, run = tmp_path / "marks", tmp_path / "run"
    marks.mkdir()
    process = driver(cluster, run, marks, 5, 1.0)
    while not list(run.glob("units/*.safetensors")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    finished = {int(name.removeprefix("train").split("-")[0]) for name in files_of(run) if not name.endswith(".part")}
    assert 0 < len(finished) < 5
    before = tries_of(marks)
    compute(run, units_of(5, marks=str(marks), seconds=0.1))
    assert files_of(run) == {name: local[name] for name in files_of(run)}
    assert len(files_of(run)) == 5
    assert all(tries_of(marks)[seed] == before[seed] for seed in finished)  # what was finished is not run again


class Net(nn.Module):
    """A line."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x)


def test_measure_and_verify_give_the_same_numbers(cluster) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 8, generator=generator), torch.randint(3, (60,), generator=generator)

    def loss(model: Any, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    torch.manual_seed(0)
    task = pt.Task(Net(), loss, (x, y))
    settings: dict[str, Any] = {
        "sampler": pt.SGLD(n_beta=30, localization=100, step_size=1e-3), "draws": 6, "burn_in": 4, "budget": 1,
        "reliability": None, "progress": False, "components": ["line.weight", "full"],
    }  # fmt: skip
    here, there = pt.measure(task, **settings), pt.measure(task, executor=pt.Ray(), **settings)
    np.testing.assert_array_equal(here.chi, there.chi)
    rho = here.invert({"full": -1}).weights(0.3, force=True)

    def fit(weights: pt.Weights, seed: int) -> nn.Module:
        return pt.fit(task, weights, seed, steps=10, learning_rate=1e-2, batch_size=20)

    measures = {"loss": lambda model: loss(model, (x, y)).mean()}
    proofs = [pt.verify(fit, {"arm": rho}, measures, range(3), executor=where) for where in (None, pt.Ray())]
    assert proofs[0].rows() == proofs[1].rows()


TASK = """
import torch
def train(weights, seed):
    torch.manual_seed(seed)
    start = torch.nn.Linear(3, 2).weight.sum().item()
    return start + float(weights.rho.mean()) + 1e-3 * float((weights.rho ** 2).sum())
measures = {"out": float}
"""


def test_the_command_line(cluster, in_process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(TASK)
    pt.Weights.of_rows(np.linspace(0.5, 1.5, 40)).to_parquet("rho.parquet")
    line = [
        "verify",
        "mine.py:train",
        "--measures",
        "mine.py:measures",
        "--arm",
        "a=rho.parquet",
        "--seeds",
        "0-2",
        "--json",
    ]
    there = in_process(*line, "--out", "there", "--executor", "ray", "--address", cluster.address)
    here = in_process(*line, "--out", "here", "--workers", "1")
    assert (there.returncode, here.returncode) == (0, 0), there.stderr + here.stderr
    assert there.stdout == here.stdout
    wrong = in_process(*line, "--out", "wrong", "--executor", "ray", "--workers", "2")
    assert wrong.returncode == 2
    assert "--workers 2 counts processes of this machine: leave it out with ray" in wrong.stderr


@pytest.mark.slow
def test_fifty_kills_lose_nothing(cluster, local: dict[str, bytes], tmp_path: Path) -> None:
    """Four workers and then the driver are killed, ten times over; the last driver ends with the same bits."""
    marks, run, kills = tmp_path / "marks", tmp_path / "run", 0
    generator = np.random.default_rng(0)
    marks.mkdir()
    process = None
    while kills < 50:
        if process is None or process.poll() is not None:
            assert process is None or process.returncode in (0, -signal.SIGKILL)
            if process is not None and process.returncode == 0:  # all was computed: begin again with some of it lost
                for file in sorted(run.glob("units/*.safetensors"))[: int(generator.integers(4, 9))]:
                    file.unlink()
            process = driver(cluster, run, marks, 12, 0.5)
        seen = set(marks.iterdir())
        while process.poll() is None and not (new := set(marks.iterdir()) - seen):
            time.sleep(0.02)
        if process.poll() is not None:
            continue
        time.sleep(float(generator.uniform(0, 0.6)))
        if kills % 5 == 4:
            process.kill()
            process.wait()
        else:
            try:
                os.kill(int(next(iter(new)).name.split("-")[1]), signal.SIGKILL)
            except ProcessLookupError:
                continue
        kills += 1
        finished = len(list(run.glob("units/*.safetensors")))
        print(f"{kills} killed, {finished} of 12 finished", flush=True)
    process.wait()
    compute(run, units_of(12))
    assert files_of(run) == local
