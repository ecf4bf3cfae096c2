"""Memory is estimated before anything is allocated, within a factor of 1.5, and what does not fit is refused."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import patterning as pt
from patterning.core.give_back import LARGE_MODEL, give_back
from patterning.models.components import find_component
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.posterior.chains import ChainConfig
from patterning.response import memory
from patterning.response.memory import Plan, check_memory, needed

TOKENS = torch.randint(40, (16, 8), generator=torch.Generator().manual_seed(0))
CHAINS = ChainConfig(4, 20, 40, 4, 8, 0, matched=True, antithetic=True)


@pytest.fixture(scope="module")
def task() -> pt.Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pt.Task(LanguageModel(LanguageConfig(40, 8, 2, 2, 16)), next_token_losses, TOKENS)


def test_what_is_counted(task: pt.Task) -> None:
    full, head = (find_component(task.module, name) for name in ("full", "l1h0"))
    pathwise = needed(task, full, Plan("pathwise", CHAINS, 16))
    assert pathwise.positions == 4 * task.num_parameters * 8 * (40 + 80 + 1 + 12)  # 8 replicas at every step
    assert needed(task, full, Plan("covariance", CHAINS, 16)).positions == 0
    assert needed(task, head, Plan("pathwise", CHAINS, 16)).positions < pathwise.positions / 5
    assert needed(task, head, Plan("pathwise", CHAINS, 16)).graph < pathwise.graph  # what lies below keeps nothing
    one, two = (check_memory(task, [full, head], Plan("pathwise", CHAINS, 16, workers=count)) for count in (1, 2))
    assert two.total > 2 * one.total


def test_what_does_not_fit_is_refused_before_anything_is_computed(
    task: pt.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = find_component(task.module, "full")
    plan = Plan("pathwise", CHAINS, 16)
    low, high = (needed(task, full, Plan(name, CHAINS, 16)).total for name in ("covariance", "pathwise"))
    monkeypatch.setattr(memory, "free_bytes", lambda device: (low + high) / 2 / memory.SPARE)
    with pytest.raises(pt.PatterningError, match=r"'full' needs about .*positions that are kept") as refusal:
        check_memory(task, [full], plan)
    assert "estimator='covariance'" in str(refusal.value)
    called: list[int] = []
    with pytest.raises(pt.PatterningError, match=r"what fits: .*estimator='covariance'.*components=\['l1h0'\]"):
        pt.measure(
            task, {"x": lambda model: called.append(1)}, ["full", "l1h0"], sampler=pt.SGLD(30, 300, 1e-4),
            estimator="pathwise", progress=False,
        )  # fmt: skip
    assert not called
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0.0)
    with pytest.raises(pt.PatterningError, match="name smaller components"):
        check_memory(task, [full], plan)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library")
def test_what_was_freed_goes_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")

    blocks = [bytearray(20_000) for _ in range(10_000)]
    last = bytearray(20_000)  # above them all: what lies below stays with the process
    del blocks
    before = resident()
    give_back(LARGE_MODEL + 1)
    assert before - resident() > 100e6
    assert len(last) == 20_000


SCRIPT = """
import sys
import torch
import patterning as pt
import patterning.face.measure as face
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.response.memory import check_memory

def kilobytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

def watched(*arguments):
    global need, before
    need = check_memory(*arguments)
    open("/proc/self/clear_refs", "w").write("5")
    before = kilobytes("VmRSS")
    return need

face.check_memory = watched
torch.manual_seed(0)
model = LanguageModel(LanguageConfig(1000, 16, 3, 4, 384))
task = pt.Task(model, next_token_losses, torch.randint(1000, (24, 16)))
pt.measure(task, components=[sys.argv[2]], sampler=pt.SGLD(30, 3000, 1e-6), chains=2, draws=4, burn_in=4,
           steps_between_draws=3, batch_size=8, estimator=sys.argv[1], budget=1, reliability=None, progress=False)
print(need.total / 1e3 / (kilobytes("VmHWM") - before))
"""


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("estimator", "component"),
    [
        ("first-order", "full"),
        pytest.param("first-order", "l1h1", marks=pytest.mark.slow),
        pytest.param("pathwise", "full", marks=pytest.mark.slow),
        pytest.param("covariance", "full", marks=pytest.mark.slow),
        pytest.param("pathwise", "l1h1", marks=pytest.mark.slow),
    ],
)
def test_the_estimate_is_within_a_factor_of_the_measured_peak(estimator: str, component: str) -> None:
    # Large blocks go back to the system at once, so that what was freed before is not counted as still there.
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, estimator, component]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    assert 1 / 1.5 < float(done.stdout.split()[-1]) < 1.5
