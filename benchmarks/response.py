"""χ side by side with devinterp 2.0.1, same process, same model, same batches of data, one thread, CPU seconds.

Needs the extra `peer`. Prints markdown tables: draws per CPU-second, measured three times in turn, with the floor (the
floating-point operations of our matrix products, at the rate of a 512 × 512 float32 product in this process); peak
memory of either side in its own process; and the CPU time to a split-half reliability of 0.9 for every component: for
ours (pathwise, antithetic chains) that of rounds until it is reached; for devinterp's loop the time of 4 x 40 draws,
extrapolated by Spearman-Brown from the reliability that the covariance of as many draws has, which is measured between
ten runs of our own chains.

    python benchmarks/response.py [--quick] [--reliability COMPONENT ... [--phi data]]
"""

import argparse
import contextlib
import importlib
import io
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.utils.flop_counter import FlopCounterMode

from patterning.core.task import Task
from patterning.models.components import find_component
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response.components import COMPONENT_LOSS, component_response
from patterning.response.one_component import Estimator, PhiOf

SETTINGS = {"n_beta": 30.0, "localization": 300.0}
STEP = 1e-3


def sequences(rng: np.random.Generator, count: int, vocabulary: int, length: int) -> torch.Tensor:
    """Markov text (b, t); half of the rows repeat a random segment, which rewards induction."""
    law = rng.dirichlet(np.full(vocabulary, 0.05), size=vocabulary).cumsum(1)
    rows = np.empty((count, length), dtype=np.int64)
    rows[:, 0] = rng.integers(vocabulary, size=count)
    for t in range(1, length):
        draws = rng.random(count)[:, None]
        rows[:, t] = np.minimum((law[rows[:, t - 1]] < draws).sum(1), vocabulary - 1)
    for row in rows[::2]:
        size = int(rng.integers(length // 8, length // 3))
        first = int(rng.integers(0, length - 2 * size + 1))
        second = int(rng.integers(first + size, length - size + 1))
        row[second : second + size] = row[first : first + size] = rng.integers(vocabulary, size=size)
    return torch.from_numpy(rows)


def trained(config: LanguageConfig, data: torch.Tensor, steps: int) -> LanguageModel:
    """A model trained by AdamW at 3e-3, decayed linearly to 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LanguageModel(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, s / 100) * (1 - s / steps))
        loss = torch.zeros(())
        for _ in range(steps):
            loss = next_token_losses(model, data[torch.randint(len(data), (32,))]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"trained {steps} steps, loss {float(loss.detach()):.3f}", file=sys.stderr)
    return model


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of this process."""
    begun = time.process_time()
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call()
    return time.process_time() - begun


def ours(
    task: Task, name: str, chains: ChainConfig, probes: int, estimator: Estimator = "covariance", phi: PhiOf = "probes"
):
    """χ of one component by this library; pathwise in up to 8 rounds, until it is reliable."""
    until = {"reliability": 0.9, "rounds": 8} if estimator == "pathwise" else {}
    return component_response(
        task, task.flatten(task.module), [name], SGLD(step_size=STEP, **SETTINGS), chains,
        probes=torch.arange(probes), estimator=estimator, phi=phi, **until,
    )  # fmt: skip


def theirs(task: Task, data: torch.Tensor, name: str, chains: ChainConfig, probes: int) -> None:
    """The same chains and readings by devinterp: half of the probed rows as each of its two observables."""
    from datasets import Dataset
    from devinterp.slt.sampling import sample  # pyright: ignore[reportMissingImports]

    rows = Dataset.from_dict({"input_ids": data.tolist()}).with_format("torch")
    per_draw = max(1, probes // 2 // chains.batch_size)
    sample(
        task.load(LanguageModel(cast("LanguageConfig", task.module.config)), task.flatten(task.module)), rows,
        {"train": (rows, per_draw), "probe": (rows, per_draw)}, lr=STEP,
        param_masks=dict(find_component(task.module, name).masks), num_chains=chains.chains, num_draws=chains.draws,
        batch_size=chains.batch_size, num_burnin_steps=chains.burn_in, num_steps_bw_draws=chains.steps_between_draws,
        num_init_loss_batches=per_draw, shuffle=True, device="cpu", **SETTINGS,
    )  # fmt: skip


def speed(
    label: str, task: Task, data: torch.Tensor, names: list[str], chains: ChainConfig, probes: int, times: int
) -> None:
    """Draws per CPU-second at equal settings, each side `times` in turn, after a first call that is not timed."""
    few = replace(chains, draws=4, burn_in=0)
    cpu_seconds(lambda: (ours(task, names[-1], few, probes), theirs(task, data, names[-1], few, probes)))  # imports
    mine, peer = np.zeros((2, len(names), times))
    for i, name in enumerate(names):
        for j in range(times):
            mine[i, j] = cpu_seconds(lambda name=name: ours(task, name, chains, probes))
            peer[i, j] = cpu_seconds(lambda name=name: theirs(task, data, name, chains, probes))
        draws = chains.chains * chains.draws
        with FlopCounterMode(display=False) as counted:
            ours(task, name, chains, probes)
        floor = counted.get_total_flops() / matrix_rate()
        cells = f"{draws / mine[i].mean():.1f} | {draws / peer[i].mean():.1f} | {times_as_long(mine[i], peer[i])}"
        print(f"| {label} | {name} | {cells} | {floor / mine[i].mean():.2f} |", flush=True)
    print(f"| {label} | all of these | | | {times_as_long(mine.sum(0), peer.sum(0))} | |", flush=True)


def times_as_long(mine: np.ndarray, peer: np.ndarray) -> str:
    """How many times as long the peer takes, with a standard error over the times measured, if there are several."""
    each = peer / mine
    error = f" ± {each.std(ddof=1) / np.sqrt(len(each)):.2f}" if len(each) > 1 else ""
    return f"{peer.sum() / mine.sum():.2f}{error}"


def matrix_rate() -> float:
    """Floating-point operations a second of a float32 matrix product, the best of 5."""
    a = torch.ones(512, 512)
    return max(2 * 512**3 * 10 / cpu_seconds(lambda: [a @ a for _ in range(10)]) for _ in range(5))


def memory(side: str, name: str) -> None:
    """Print by how many MB sampling raises this process's peak memory, over what the imports and the model take."""
    task, data = wide(trained_steps=0)
    importlib.import_module("devinterp.slt.sampling")  # both sides carry both libraries

    chains = ChainConfig(4, 4, 2, 1, 32, matched=True)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far (Linux)
    before = peak_kilobytes()
    if side == "ours":
        ours(task, name, chains, 192)
    else:
        theirs(task, data, name, chains, 192)
    print(f"{(peak_kilobytes() - before) / 1000:.0f}")


def peak_kilobytes() -> int:
    """Largest resident memory of this process since its peak was cleared."""
    return next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        if line.startswith("VmHWM")
    )


def wide(trained_steps: int) -> tuple[Task, torch.Tensor]:
    """The compute-bound case: 2 layers, width 64, context 64."""
    data = sequences(np.random.default_rng(0), 1024, 64, 64)
    config = LanguageConfig(64, 64, 2, 4, 64)
    model = trained(config, data, trained_steps) if trained_steps else LanguageModel(config)
    return Task(model, next_token_losses, data), data


def reliability(task: Task, data: torch.Tensor, names: list[str], quick: bool, phi: PhiOf = "probes") -> None:
    """CPU time to a split-half reliability of 0.9: ours as it is run, theirs extrapolated by Spearman-Brown."""
    chains = ChainConfig(2, 10 if quick else 20, 20, 4, 4, matched=True, antithetic=True)
    many = ChainConfig(4, 20 if quick else 40, 20, 1, 4, matched=True)
    print(
        f"\n| component | ours (pathwise, φ of the {phi}): reliability, chains and as many mirror images, CPU s "
        "| reliability of the peer's draws ± se | peer CPU s | to 0.9 |\n|---|---|---|---|---|"
    )
    total, left_out = np.zeros(2), np.zeros(4 if quick else 10)
    for name in names:
        box: list = []
        mine = cpu_seconds(lambda name=name, box=box: box.append(ours(task, name, chains, 64, "pathwise", phi)))
        own = next(iter(box[0].by_component.values()))
        peer = cpu_seconds(lambda name=name: theirs(task, data, name, many, 64))
        plain, without = covariance_reliability(task, name, many, len(left_out))
        cells = (
            f"{own.susceptibility.reliability()[COMPONENT_LOSS]:.2f}, {own.traces[COMPONENT_LOSS].shape[1]}, {mine:.1f}"
        )
        theirs_cell = f"{plain:.3f} ± {jackknife_error(without):.3f}"
        print(f"| {name} | {cells} | {theirs_cell} | {peer:.1f} | {peer * longer(plain):.0f} |", flush=True)
        total += [mine, peer * longer(plain)]
        left_out += [peer * longer(value) for value in without]
    ratio, error = total[1] / total[0], jackknife_error(left_out / total[0])
    print(f"| all | {total[0]:.0f} | | | {total[1]:.0f}: {ratio:.0f} ± {error:.0f} times |")


def covariance_reliability(task: Task, name: str, chains: ChainConfig, runs: int) -> tuple[float, np.ndarray]:
    """Reliability of the covariance of one run of `chains`, and the same without each of the `runs` (a jackknife).

    The mean rank correlation of χ between runs of other noise and minibatches: unlike one split half it is rarely
    below 0, and a time can be extrapolated from it.
    """
    found = [ours(task, name, replace(chains, seed=100 + run), 64).chi()[0] for run in range(runs)]
    r = np.asarray(spearmanr(found, axis=1)[0])
    apart = ~np.eye(runs, dtype=bool)
    kept = [np.arange(runs) != run for run in range(runs)]
    return float(r[apart].mean()), np.array([r[np.ix_(k, k)][apart[:-1, :-1]].mean() for k in kept])


def jackknife_error(left_out: np.ndarray) -> float:
    """Standard error of a number, from its values without each of the runs (Quenouille; Tukey)."""
    return float(np.sqrt(((left_out - left_out.mean()) ** 2).sum() * (1 - 1 / len(left_out))))


def longer(reliability: float) -> float:
    """How many times as long a run must be until 0.9, by Spearman-Brown."""
    return (0.9 / 0.1) * (1 - reliability) / reliability if reliability > 0 else float("inf")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer draws and components")
    parser.add_argument("--memory", nargs=2, metavar=("SIDE", "COMPONENT"), help=argparse.SUPPRESS)
    parser.add_argument("--reliability", nargs="+", metavar="COMPONENT", help="only the last table, of these")
    parser.add_argument("--phi", choices=("probes", "data"), default="probes", help="whose loss φ is in that table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        memory(*arguments.memory)
        return
    quick = arguments.quick
    times = 1 if quick else 3
    task, data = wide(300 if quick else 1400)
    if arguments.reliability:
        reliability(task, data, arguments.reliability, quick, arguments.phi)
        return
    tiny = sequences(np.random.default_rng(1), 256, 64, 16)
    small = Task(LanguageModel(LanguageConfig(64, 16, 2, 4, 16)), next_token_losses, tiny)
    heads = [f"l{layer} mlp" if i == 4 else f"l{layer}h{i}" for layer in range(2) for i in range(5)]
    print(
        "| model | component | ours, draws/s | devinterp, draws/s | ratio | floor / ours |\n|---|---|---|---|---|---|"
    )
    chains = ChainConfig(4, 4 if quick else 10, 2, 1, 32, matched=True)
    speed(
        "2 layers, width 64, 192 probes",
        task,
        data,
        ["full", "l0h0", "l1h0", "l1 mlp"] if quick else heads,
        chains,
        192,
        times,
    )
    if not quick:
        speed("the same, the whole model free", task, data, ["full"], chains, 192, times)
    chains = ChainConfig(8, 20 if quick else 40, 4, 1, 8, matched=True)
    speed("2 layers, width 16, context 16", small, tiny, ["full", "l0h0", "l1h0", "l1 mlp"], chains, 16, times)
    print("\n| component, 2 layers of width 64 | ours, MB | devinterp, MB |\n|---|---|---|")
    for name in ("full", "l1h0"):
        rise = [
            subprocess.run(
                [sys.executable, __file__, "--memory", side, name], capture_output=True, text=True, check=True
            )
            for side in ("ours", "theirs")
        ]
        print(f"| {name} | " + " | ".join(done.stdout.split()[-1] for done in rise) + " |", flush=True)
    reliability(task, data, ["l1h0", "l1 mlp"] if quick else heads, quick)


if __name__ == "__main__":
    main()
