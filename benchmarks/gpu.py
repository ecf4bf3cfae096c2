"""One command for a GPU: does it agree with the CPU, how fast is it, and how far from what the card can do?

    python benchmarks/gpu.py [--out gpu.json]     # at most 8 minutes on a GPU; without one, toy sizes on the CPU

Sections, each of which survives the failure of another; the JSON file is written after every one:

card         rates of matrix products (float32, tf32, bfloat16), of copies, and of random numbers
agreement    losses and χ against the CPU's; χ in lower precision against float64, in standard errors
training     tokens a second and the share of the card's matrix rate (MFU) of the 3,355,016-parameter model
chi          draws a second, and seconds to a reliability of 0.9, beside the floor: operations at the matrix rate, and
             bytes (inputs and outputs of every operation, once each) at the rate of copies, whichever takes longer
parentheses  steps a second with 16, 80 and 270 replicas, and models of 125,000 steps an hour
"""

import argparse
import json
import resource
import time
import traceback
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_setup import (
    FULL,
    KERNEL,
    MODELS,
    PAPER_STEPS,
    TOY,
    Bench,
    Results,
    floor_of,
    precision,
    rows_of,
    trained,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import patterning as pt
from patterning.core import philox
from patterning.core.rng import Stream
from patterning.core.task import Task
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior import chains as chain_module
from patterning.posterior.chains import ChainConfig
from patterning.response.components import COMPONENT_LOSS, component_response
from patterning.response.pathwise import pathwise_chains, summarise_pathwise
from patterning.tasks.parentheses import make_parentheses
from patterning.training.language import LanguageTraining, train_language
from patterning.training.weighted import TrainConfig, advance, init_state


def card(bench: Bench) -> Results:
    """Rates, each the best of 5."""
    n, device = bench.sizes.matrix, bench.device
    found: Results = {"threads": torch.get_num_threads()}
    if device.type == "cuda":
        found |= {
            "name": torch.cuda.get_device_name(device),
            "bytes": torch.cuda.get_device_properties(device).total_memory,
        }
    for kind, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.ones(n, n, device=device, dtype=dtype)
        with precision(kind):
            found[f"{kind} flop/s"] = 2 * n**3 / min(bench.seconds(lambda a=a: a @ a) for _ in range(5))
    a, b = torch.ones(2, bench.sizes.copied // 4, device=device)
    found["bytes/s"] = 2 * a.nbytes / min(bench.seconds(lambda: b.copy_(a)) for _ in range(5))
    count = bench.sizes.numbers
    found["normal numbers/s, philox"] = count / min(
        bench.seconds(lambda: philox.normal(0, Stream.NOISE, range(1), range(1), count, device)) for _ in range(5)
    )
    found["normal numbers/s, torch.randn"] = count / min(
        bench.seconds(lambda: torch.randn(count, device=device)) for _ in range(5)
    )
    return found


def agreement(bench: Bench) -> Results:
    """Losses of every row, and χ by every estimator, against the CPU."""
    here, anchor = trained(bench, "tiny")
    there = here.to(bench.device)
    rows = torch.arange(min(128, len(here.base_weights)))[None]
    with torch.no_grad():
        a = here.losses(anchor[None], rows)
        b = there.losses(anchor[None].to(there.device), rows.to(there.device)).cpu()
    found: Results = {"losses, largest relative difference": float(((a - b) / a).abs().max())}
    found["losses agree to 1e-5"] = found["losses, largest relative difference"] <= 1e-5
    part, probes = bench.sizes.tiny_parts[0], range(bench.sizes.tiny_probes)
    for estimator in ("pathwise", "covariance"):
        config = replace(bench.sizes.tiny_chains, chains=8, antithetic=estimator == "pathwise")

        def chi(task: Task, config: ChainConfig = config, estimator: Any = estimator) -> Any:
            response = component_response(
                task, task.own_row(), [part], KERNEL, config, probes=probes, estimator=estimator
            )
            return response.by_component[part].susceptibility

        own, other = chi(there), chi(here)
        chain_module.NUMPY_KINDS = ()  # the CPU draws what a GPU draws: what is left is rounding
        try:
            same = chi(here)
        finally:
            chain_module.NUMPY_KINDS = ("cpu",)
        difference, error = own.chi - other.chi, np.hypot(own.standard_error, other.standard_error)
        joint = np.hypot(own.half_width(0.95), other.half_width(0.95))
        found[f"χ, {estimator}"] = {
            "share of entries within the joint 95 % intervals of both": float((np.abs(difference) <= joint).mean()),
            "root mean square of the difference in its standard errors": float(
                np.sqrt(((difference / error) ** 2).mean())
            ),
            "same random numbers: largest difference in standard errors": float(
                np.abs((own.chi - same.chi) / same.standard_error).max()
            ),
        }
    looks = [
        pt.measure(here, components=[part], sampler=KERNEL, probes=probes, estimator="first-order", progress=False,
                   device=place).chi for place in (bench.device, "cpu")
    ]  # fmt: skip
    found["χ, first-order, largest difference as a share of the largest χ"] = float(
        np.abs(looks[0] - looks[1]).max() / np.abs(looks[1]).max()
    )
    return found | {"precision": precisions(bench, here, there)}


def precisions(bench: Bench, here: Task, there: Task) -> Results:
    """χ of one component in float32, tf32 and bfloat16 products against float64: differences in standard errors."""
    part, probes = bench.sizes.tiny_parts[0], torch.arange(bench.sizes.tiny_probes)

    def chi(task: Task, anchor: Tensor) -> tuple[np.ndarray, np.ndarray]:
        free = Restricted(task, anchor, part)
        probe = Probe(free, probes, bench.sizes.tiny_chains.replicas)
        q = probe.samples.weight
        parts = pathwise_chains(free, probe, q, KERNEL, bench.sizes.tiny_chains)
        found = summarise_pathwise(parts, q, KERNEL.n_beta, probe.at_anchor.double().cpu().numpy()).susceptibility
        return found.chi, found.standard_error

    exact = Task(here.module, here.loss_fn, here.data).to(there.device)
    exact.module = exact.module.double()
    truth, error = chi(exact, there.own_row().double())
    coarse = Task(there.module, there.loss_fn, there.data, bfloat16=True)
    found: Results = {}
    for kind, task in (("float32", there), ("tf32", there), ("bfloat16", coarse)):
        with precision(kind):
            difference = np.abs(chi(task, task.own_row())[0] - truth) / error
        found[kind] = {"largest": float(difference.max()), "median": float(np.median(difference))}
    return found


def training(bench: Bench) -> Results:
    """The large model, as `train_language` trains it; the first call warms up."""
    sizes, found = bench.sizes, Results()
    rows = rows_of(sizes.large, sizes.large_rows)
    for kind in ("float32", "tf32", "bfloat16"):
        own = LanguageTraining(sizes.large_steps, sizes.large_batch, 1e-3, 10, bfloat16=kind == "bfloat16")

        def train(steps: int, own: LanguageTraining = own) -> None:
            run = train_language(
                sizes.large, rows, None, replace(own, steps=steps), seed=0, checkpoints=[], measure=lambda _: {},
                device=bench.device,
            )  # fmt: skip
            bench.models["large"] = run.final

        few = max(2, sizes.large_steps // 10)
        with precision(kind):
            with FlopCounterMode(display=False) as flops:
                train(1)
            start = bench.seconds(partial(train, few))
            whole = bench.seconds(partial(train, few + sizes.large_steps))
        step = max(whole - start, 0) / sizes.large_steps
        tokens = sizes.large_batch * (sizes.large.context - 1)
        found[kind] = {
            "ms a step": 1e3 * step or None,
            "tokens/s": tokens / step if step else None,
            "MFU": flops.get_total_flops() / step / bench.rate(f"{kind} flop/s") if step else None,
        }
        if bench.left() < 240:
            break
    return found


def chi(bench: Bench) -> Results:
    """χ of the parts of both models: by covariance (draws a second), and pathwise until it is reliable."""
    found = Results()
    for name in ("tiny", "large"):
        task, parts = trained(bench, name)[0].to(bench.device), getattr(bench.sizes, f"{name}_parts")
        for part in parts:
            if bench.left() < 60:
                found[f"{name} {part}"] = "no time left"
                continue
            found[f"{name} {part}"] = of_component(bench, task, name, part)
    return found


def of_component(bench: Bench, task: Task, name: str, part: str) -> Results:
    """One component."""
    config: ChainConfig = getattr(bench.sizes, f"{name}_chains")
    plain = replace(config, chains=config.replicas, antithetic=False)
    probes = range(getattr(bench.sizes, f"{name}_probes"))

    def run(config: ChainConfig, estimator: Any, rounds: int = 1) -> Any:
        return component_response(
            task, task.own_row(), [part], KERNEL, config, probes=probes, estimator=estimator, rounds=rounds,
            reliability=0.9, phi="data" if estimator == "pathwise" else "probes",
        ).by_component[part]  # fmt: skip

    run(replace(plain, draws=4, burn_in=0, steps_between_draws=1), "covariance")  # warms up
    few, many = replace(plain, burn_in=0, draws=4), replace(plain, burn_in=0, draws=4 + plain.draws)
    draws = plain.draws * plain.chains
    spent = bench.seconds(lambda: run(many, "covariance")) - bench.seconds(lambda: run(few, "covariance"))
    boxes: list[Any] = []
    pathwise = bench.seconds(lambda: boxes.append(run(config, "pathwise", bench.sizes.rounds)))
    free = Restricted(task, task.own_row(), part)
    flat, index = free.init(range(plain.chains)), torch.arange(plain.batch_size, device=task.device)
    one = floor_of(bench, lambda: chain_module.loss_and_gradient(free, flat, index.expand(plain.chains, -1)))
    steps = plain.draws * plain.steps_between_draws
    own = boxes[0]
    return {
        "draws/s": draws / spent if spent > 0 else None,
        "ms a step of all chains": 1e3 * spent / steps if spent > 0 else None,
        "floor of a step, ms": 1e3 * one["floor, s"],
        "flop of a step": one["flop"],
        "bytes of a step": one["bytes"],
        "pathwise, s": pathwise,
        "reliability": own.susceptibility.reliability()[COMPONENT_LOSS],
        "chains": own.traces[COMPONENT_LOSS].shape[1],
    }


def parentheses(bench: Bench) -> Results:
    """Training at the paper's size."""
    task, sizes = make_parentheses(**bench.sizes.strings).to(bench.device), bench.sizes
    found: Results = {"parameters": task.num_parameters}
    rho = torch.ones(len(task.base_weights), dtype=torch.float64)
    for count in sizes.replicas:
        seeds = list(range(count))
        config = TrainConfig(2 * sizes.string_steps, min(64, len(task.draws)))
        state = advance(task, config, init_state(task, seeds), seeds, rho, 2)  # warms up
        spent = bench.seconds(
            lambda state=state, c=config, s=seeds: advance(task, c, state, s, rho, sizes.string_steps)
        )
        step = spent / (sizes.string_steps - 2)
        hour = count * 3600 / (PAPER_STEPS * step)
        found[f"{count} replicas"] = {
            "ms a step": 1e3 * step,
            f"models of {PAPER_STEPS:,} steps an hour": hour,
            f"hours for {MODELS} models": MODELS / hour,
        }
        if bench.left() < 3 * spent:
            found["stopped"] = f"after {count} replicas, for want of time"
            break
    return found


SECTIONS = {part.__name__: part for part in (card, agreement, training, chi, parentheses)}


def run_section(bench: Bench, name: str) -> Results:
    """Its results, or its error; with its time and the most memory that it held."""
    begun = time.monotonic()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        found = SECTIONS[name](bench)
    except Exception as error:
        traceback.print_exc()
        found: Results = {"error": f"{type(error).__name__}: {error}"}
    if bench.device.type == "cuda":
        found["peak memory, MB"] = torch.cuda.max_memory_allocated() / 1e6
    else:
        found["largest resident memory of the process so far, MB"] = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        )
    return found | {"seconds": time.monotonic() - begun}


def main() -> None:
    """Run the sections, print them, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS], default=[*SECTIONS])
    parser.add_argument("--seconds", type=float, default=470.0, help="what all sections may take")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    bench = Bench(device, TOY if device.type == "cpu" else FULL, time.monotonic() + arguments.seconds)
    bench.results |= {"torch": torch.__version__, "device": str(device), "toy": device.type == "cpu"}
    for name in arguments.only:
        bench.results[name] = run_section(bench, name)
        print(json.dumps({name: bench.results[name]}, indent=1, ensure_ascii=False), flush=True)
        arguments.out.write_text(json.dumps(bench.results, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
