"""What χ, its inversion and weights cost as data grows: prints the tables of docs/results/scale.md.

Each line of a table is measured in a process of its own, on one thread: CPU seconds, wall seconds, and by how much the
peak memory rises over what the imports and the data take (Linux). Seed 0.

    python benchmarks/scale.py [chi] [inversion] [extend] [plan] [--quick]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import patterning as pt
from patterning.intervention.chunked import Chunk, invert_chunks
from patterning.intervention.solve import solve
from patterning.models.components import find_component
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior.chains import ChainConfig, loss_and_gradient
from patterning.response.draws import Chains, chains_unit, sampled
from patterning.response.shards import Reading, Shard, sums_unit

SAMPLER = pt.SGLD(n_beta=30, localization=300, step_size=1e-3)
ROWS, CHUNK = 50, 100_000


def peak_bytes() -> int:
    """Largest resident memory of this process since its peak was cleared."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def cost(call: Callable[[], object]) -> dict[str, float]:
    """CPU and wall seconds of a call, and the rise of the peak memory in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, cpu, wall = peak_bytes(), time.process_time(), time.perf_counter()
    call()
    spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    return spent | {"memory": (peak_bytes() - before) / 1e6}


def classifier(rows: int) -> pt.Task:
    """A tanh network of 340 parameters and `rows` labelled points; every row is a sample."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 16, generator=generator)
    y = (x @ torch.randn(16, 4, generator=generator)).argmax(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))
    return pt.Task(net, lambda model, batch: cross_entropy(model(batch[0]), batch[1], reduction="none"), (x, y))


def weight(model: nn.Module) -> torch.Tensor:
    """An observable that costs nothing to read."""
    return next(model.parameters()).square().sum()


def chi_of(rows: int, shards: int) -> dict[str, float]:
    """χ of one observable for every row."""
    task = classifier(rows)

    def measure(task: pt.Task, shards: int | None) -> None:
        pt.measure(
            task, {"weight": weight}, sampler=SAMPLER, estimator="covariance", chains=4, draws=8, burn_in=8,
            steps_between_draws=1, budget=1, progress=False, shards=shards,
        )  # fmt: skip

    measure(classifier(64), shards or None)  # what is imported and compiled at first use
    return cost(lambda: measure(task, shards or None))


def worker_of(rows: int, draws: int) -> dict[str, float]:
    """One shard of 50,000 rows, as a worker reads it, where `rows` are probed in all."""
    task = classifier(rows)
    config = ChainConfig(4, draws, 8, 1, 32, matched=True)
    with tempfile.TemporaryDirectory() as folder:
        chains = Chains(
            task, task.own_row(), find_component(task.module, "full"), SAMPLER, config, None, 0, "", Path(folder)
        )
        sums = sampled(chains_unit(chains=chains, scratch=Path(folder))).sums
        shard = Shard(torch.arange(50_000), rows, 0, 50_000)
        reading = Reading(chains, sums, shard, None, np.zeros((draws, 4, 1)), np.zeros(1), 4)
        return cost(lambda: sums_unit(reading=reading, scratch=Path(folder)))


def matrix(samples: int, seed: int) -> np.ndarray:
    """χ and its noise, (2, 50, samples), with singular values over three decades."""
    rng = np.random.default_rng(seed)
    both = rng.standard_normal((2, ROWS, samples))
    mix = np.linalg.qr(np.random.default_rng(0).standard_normal((ROWS, ROWS)))[0] * np.logspace(0, -3, ROWS)
    return np.stack([mix @ both[0], 1e-5 * both[1]])


def invert_in_memory(samples: int) -> dict[str, float]:
    """`solve` of 50 rows."""
    chi, noise = matrix(samples, 1)
    return cost(lambda: solve(chi, np.full(samples, 1.0), np.eye(ROWS)[0], 1.0, noise=noise))


def invert_by_svd(samples: int) -> dict[str, float]:
    """The singular value decompositions that `solve` took before."""
    chi, noise = matrix(samples, 1)

    def both() -> None:
        np.linalg.svd(chi, full_matrices=False)
        np.linalg.svd(noise, compute_uv=False)

    return cost(both)


def invert_from_disk(samples: int, folder: str) -> dict[str, float]:
    """`invert_chunks` and its scores from files of 100,000 samples of χ and noise each."""
    paths = sorted(Path(folder).glob("*.npy"))[: samples // CHUNK]

    def chunks() -> Iterator[Chunk]:
        for path in paths:
            part = np.load(path)
            chunk = Chunk(part[0], part[1], np.ones(CHUNK))
            del part
            yield chunk
            del chunk

    def whole() -> None:
        found = invert_chunks(chunks, np.eye(ROWS)[0], 1.0)
        with (Path(folder) / "s.bin").open("wb") as file:
            for s in found.scores(chunks):
                s.tofile(file)

    return cost(whole)


def extend_rows(rows: int) -> dict[str, float]:
    """Weights of a corpus of `rows` rows of 15 predictions by a transformer of 2 layers of width 16."""
    import pyarrow
    import pyarrow.parquet

    task = texts(256)
    chi = pt.measure(
        task, {"logit": lambda m: m(torch.tensor([[2, 3]]))[0, 1, 4]}, sampler=SAMPLER, estimator="first-order",
        probes=range(64), progress=False,
    )  # fmt: skip
    probed = chi.invert({"logit": 1}).weights(0.5, force=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.parquet"
        tokens = torch.randint(64, (rows, 16), generator=torch.Generator().manual_seed(1))
        pyarrow.parquet.write_table(pyarrow.table({"tokens": tokens.tolist()}), path, row_group_size=1000)
        del tokens
        out = Path(folder) / "rho.parquet"
        return cost(lambda: probed.extend_to(out, task, path, force=True, progress=False))


def texts(rows: int) -> pt.Task:
    """Random tokens, and an untrained transformer: what it costs does not depend on what it has learned."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LanguageModel(LanguageConfig(64, 16, 2, 4, 16))
    tokens = torch.randint(64, (rows, 16), generator=torch.Generator().manual_seed(0))
    return pt.Task(model, lambda m, batch: next_token_losses(m, batch["tokens"]), {"tokens": tokens})


MEASURES = {
    "chi": chi_of, "worker": worker_of, "memory": invert_in_memory, "svd": invert_by_svd, "disk": invert_from_disk,
    "extend": extend_rows,
}  # fmt: skip


def measured(name: str, *arguments: int | str) -> dict[str, float]:
    """One of `MEASURES`, in a process of its own."""
    line = [sys.executable, __file__, "--one", json.dumps([name, *arguments])]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} {arguments}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def cells(spent: dict[str, float]) -> str:
    """As cells of a table."""
    return f"{spent['cpu']:.1f} | {spent['wall']:.1f} | {spent['memory']:,.0f}"


def table_of_chi(quick: bool) -> None:
    """Time and memory against n, with and without shards of 50,000 rows."""
    sizes = [1_000, 10_000, 100_000] + ([] if quick else [1_000_000])
    print("\n| samples | CPU s | wall s | MB | in shards: CPU s | wall s | MB |\n|---|---|---|---|---|---|---|")
    seconds = []
    for n in sizes:
        whole, parts = measured("chi", n, 0), measured("chi", n, max(2, n // 50_000))
        seconds.append(whole["cpu"])
        print(f"| {n:,} | {cells(whole)} | {cells(parts)} |", flush=True)
    slopes = np.diff(np.log(seconds)) / np.diff(np.log(sizes))
    print(f"\nLog-log slope of CPU seconds between neighbours: {', '.join(f'{slope:.2f}' for slope in slopes)}")
    print("\n| a shard of 50,000 rows, of | draws of 4 chains | CPU s | wall s | MB |\n|---|---|---|---|---|")
    for n, draws in ((100_000, 8), (100_000, 64), *([] if quick else [(1_000_000, 8)])):
        print(f"| {n:,} | {draws} | {cells(measured('worker', n, draws))} |", flush=True)


def table_of_inversion(quick: bool) -> None:
    """In memory, by the former decomposition, and from disk."""
    print("\n| 50 rows and a noise matrix | CPU s | wall s | MB |\n|---|---|---|---|")
    small = 100_000 if quick else 1_000_000
    print(f"| {small:,} samples in memory, `solve` | {cells(measured('memory', small))} |", flush=True)
    print(f"| the same, singular value decompositions alone | {cells(measured('svd', small))} |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        count = 10 if quick else 100
        for number in range(count):
            np.save(Path(folder) / f"{number:04d}.npy", matrix(CHUNK, number))
        for samples in (count * CHUNK // 10, count * CHUNK):
            name = f"{samples:,} samples from disk, in chunks of {2 * ROWS * CHUNK * 8 / 1e6:.0f} MB"
            print(f"| {name} | {cells(measured('disk', samples, folder))} |", flush=True)


def table_of_extension(quick: bool) -> None:
    """Rows a second."""
    print("\n| rows of 15 predictions | CPU s | wall s | MB | rows a CPU second |\n|---|---|---|---|---|")
    for rows in (10_000, 20_000) if quick else (10_000, 100_000):
        spent = measured("extend", rows)
        print(f"| {rows:,} | {cells(spent)} | {rows / spent['cpu']:,.0f} |", flush=True)


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of matrix products."""
    with FlopCounterMode(display=False) as counted:
        call()
    return counted.get_total_flops()


def table_of_plan(_quick: bool) -> None:
    """What χ of a large model would take: operations counted here, scaled by parameters and tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LanguageModel(LanguageConfig(64, 64, 8, 4, 64))
    tokens = torch.randint(64, (32, 64), generator=torch.Generator().manual_seed(0))
    task = pt.Task(model, next_token_losses, tokens)
    count = sum(p.numel() for p in model.parameters())
    unit = 2.0 * count * tokens.numel()  # a forward pass, by the usual count of 2 operations a parameter and token
    steps, readings = [], []
    rows, names = torch.arange(len(tokens)), [name for name in pt.components(model) if "embed" not in name]
    for name in names:
        free = Restricted(task, task.own_row(), name)
        free.out_of_reach  # noqa: B018 - found once a component, and no part of a step
        probe, flat = Probe(free, rows), free.anchor[None]
        steps.append(operations(lambda free=free, flat=flat: loss_and_gradient(free, flat, rows[None])) / unit)
        readings.append(operations(lambda probe=probe, flat=flat: probe(flat)) / unit)
    step, reading = float(np.mean(steps)), float(np.mean(readings))
    print(f"\n{len(names)} components of 8 layers, in forward passes: a step {step:.2f}, a reading {reading:.2f}")
    parameters, components, probes, chains, draws, burn_in, every, batch = 1.4e9, 410, 4e6, 4, 20, 40, 4, 32 * 1024
    sampling = components * chains * (burn_in + draws * every) * batch * step * 2 * parameters
    read = components * chains * draws * probes * reading * 2 * parameters
    print("\n| part | operations | GPU-hours at 400 TFLOP/s | at 150 TFLOP/s |\n|---|---|---|---|")
    for name, total in (("sampling", sampling), ("reading", read), ("both", sampling + read)):
        print(f"| {name} | {total:.2g} | {total / 400e12 / 3600:,.0f} | {total / 150e12 / 3600:,.0f} |")
    print(f"\nDraws on disk: {chains * draws * parameters * 4 / 1e9:,.0f} GB; "
          f"χ with {chains} chains, float64: {components * probes * (chains + 5) * 8 / 1e9:,.0f} GB")  # fmt: skip


TABLES = {"chi": table_of_chi, "inversion": table_of_inversion, "extend": table_of_extension, "plan": table_of_plan}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], help="which of them (default: all)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the data")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        name, *rest = json.loads(arguments.one)
        print(json.dumps(MEASURES[name](*rest)))
        return
    for name in arguments.tables or TABLES:
        TABLES[name](arguments.quick)


if __name__ == "__main__":
    main()
