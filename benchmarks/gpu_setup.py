"""What `benchmarks/gpu.py` computes with: sizes, models, the floor of a computation, and matrix precision."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from patterning.core.task import Task
from patterning.models.language import LanguageConfig, next_token_losses
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.training.language import LanguageTraining, load_language, train_language

PAPER_STEPS, MODELS = 125_000, 270
"""Of the parentheses paper (arXiv 2507.06445)."""
KERNEL = SGLD(n_beta=30.0, localization=300.0, step_size=1e-3)
Results = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What is computed. Of either model: rows of data, steps of training, components, chains, and probed rows."""

    tiny: LanguageConfig
    tiny_rows: int
    tiny_steps: int
    tiny_parts: tuple[str, ...]
    tiny_chains: ChainConfig
    tiny_probes: int
    large: LanguageConfig
    large_rows: int
    large_batch: int
    large_steps: int
    large_parts: tuple[str, ...]
    large_chains: ChainConfig
    large_probes: int
    strings: dict[str, Any]
    replicas: tuple[int, ...]
    string_steps: int
    rounds: int
    matrix: int
    copied: int
    numbers: int


# The tiny model is that of benchmarks/response.py; the large one is the paper preset of induction, with 64 rows a step;
# the strings, models and steps those of the parentheses paper (arXiv 2507.06445).
FULL = Sizes(
    tiny=LanguageConfig(64, 64, 2, 4, 64), tiny_rows=1024, tiny_steps=800,
    tiny_parts=tuple(f"l{layer} mlp" if i == 4 else f"l{layer}h{i}" for layer in range(2) for i in range(5)),
    tiny_chains=ChainConfig(2, 20, 20, 4, 4, matched=True, antithetic=True), tiny_probes=64,
    large=LanguageConfig(5000, 1024, 2, 8, 256, mlp_ratio=0, positions="shortformer", unembed_bias=True),
    large_rows=512, large_batch=64, large_steps=150, large_parts=("l0h0", "l0h1", "l1h0", "l1h1"),
    large_chains=ChainConfig(2, 6, 8, 4, 64, matched=True, antithetic=True), large_probes=16,
    strings={"max_length": 40, "draws": 200_000, "layers": 3, "heads": 4, "width": 64, "test_strings": 200,
             "distinct": True},
    replicas=(16, 80, 270), string_steps=2000, rounds=8, matrix=8192, copied=1 << 28, numbers=1 << 24,
)  # fmt: skip
TOY = Sizes(
    tiny=LanguageConfig(20, 12, 2, 2, 8), tiny_rows=48, tiny_steps=20, tiny_parts=("l0h0",),
    tiny_chains=ChainConfig(2, 4, 4, 2, 4, matched=True, antithetic=True), tiny_probes=8,
    large=LanguageConfig(50, 16, 2, 2, 16, mlp_ratio=0, positions="shortformer", unembed_bias=True), large_rows=32,
    large_batch=4, large_steps=6, large_parts=("l1h0",),
    large_chains=ChainConfig(2, 4, 2, 1, 4, matched=True, antithetic=True), large_probes=4,
    strings={"max_length": 10, "draws": 200, "layers": 1, "heads": 2, "width": 8, "test_strings": 20},
    replicas=(2,), string_steps=6, rounds=1, matrix=64, copied=1 << 16, numbers=1 << 12,
)  # fmt: skip


@dataclass
class Bench:
    """What the sections share: the device, the sizes, and what was found so far."""

    device: torch.device
    sizes: Sizes
    until: float
    results: Results = field(default_factory=dict)
    models: dict[str, Tensor] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds that are left."""
        return self.until - time.monotonic()

    def seconds(self, call: Callable[[], Any]) -> float:
        """Wall time, until the device is done."""
        self.wait()
        begun = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - begun

    def wait(self) -> None:
        """Until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rate(self, what: str) -> float:
        """Of the section `card`; NaN where it failed."""
        return float(self.results.get("card", {}).get(what, float("nan")))


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write, each once, views aside."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation."""
        del types
        found = func(*args, **(kwargs or {}))
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not view:
            parts = tree_flatten((args, kwargs, found))[0]
            self.total += sum(x.numel() * x.itemsize for x in parts if isinstance(x, Tensor))
        return found


def floor_of(bench: Bench, call: Callable[[], Any]) -> Results:
    """Operations and bytes of a call, and the seconds that either takes at the rates of the card."""
    with FlopCounterMode(display=False) as flops, Traffic() as traffic:
        call()
    count = flops.get_total_flops()
    by_flops, by_bytes = count / bench.rate("float32 flop/s"), traffic.total / bench.rate("bytes/s")
    return {"flop": count, "bytes": traffic.total, "floor, s": max(by_flops, by_bytes)}


@contextmanager
def precision(kind: str) -> Iterator[None]:
    """Matrix products in "float32" or, rounded inside, in "tf32"."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def rows_of(config: LanguageConfig, count: int) -> Tensor:
    """Rows of frequent and rare tokens (Zipf's law), half of which repeat a stretch: it rewards induction."""
    rng, length = np.random.default_rng(0), config.context
    law = 1 / np.arange(1, config.vocabulary + 1)
    rows = rng.choice(config.vocabulary, (count, length), p=law / law.sum())
    half = length // 2
    rows[::2, half : 2 * half] = rows[::2, :half]
    return torch.from_numpy(rows)


def trained(bench: Bench, name: str) -> tuple[Task, Tensor]:
    """The task of the "tiny" or the "large" model on the CPU, at a checkpoint trained on the device (once)."""
    sizes = bench.sizes
    config, count, steps = getattr(sizes, name), getattr(sizes, f"{name}_rows"), getattr(sizes, f"{name}_steps")
    rows = rows_of(config, count)
    if name not in bench.models:
        own = LanguageTraining(steps, min(32, count), 3e-3, steps // 10)
        run = train_language(config, rows, None, own, seed=0, checkpoints=[], measure=lambda _: {}, device=bench.device)
        bench.models[name] = run.final
    task = Task(load_language(config, bench.models[name]), next_token_losses, rows)
    return task, task.own_row()
