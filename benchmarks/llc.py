"""λ̂ by SGLD beside exact sampling, the four responses beside re-sampling, alarms of two states: docs/results/llc.md.

    python benchmarks/llc.py                # all three, half an hour on one core
    python benchmarks/llc.py --only alarms

Reduced-rank regression, whose learning coefficient is known (Aoyagi & Watanabe, Neural Networks 18, 2005). Independent
copies of a problem side by side are independent chains of the ordinary sampler; their λ̂ add.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from zoo.known import Copies
from zoo.linear_networks import LinearNetwork, anchor, aoyagi_watanabe
from zoo.many import many_chains
from zoo.processes import autoregression
from zoo.reference import hamiltonian, linear_loss
from zoo.tiny_network import Reweighted, trained_network

from patterning.core.flat import FlatTask
from patterning.posterior.chains import ChainConfig
from patterning.posterior.llc_check import check_llc
from patterning.posterior.sgld import SGLD
from patterning.posterior.two_state import two_state_chains
from patterning.response.sample import SampledResponse
from patterning.response.solution_responses import four_responses

Floats = NDArray[np.float64]

N_BETA, COPIES = 100.0, 64
STEPS = (4e-4, 2e-4, 1e-4)
RELAXATIONS, BETWEEN, DRAWS = 2.0, 0.1, 40
"""Burn-in and the time between draws, in slowest relaxation times 2/γε."""


def problem(widths: tuple[int, int, int]) -> tuple[LinearNetwork, torch.Tensor]:
    """A two-layer linear network whose narrow layer is the rank of its target, and a solution."""
    start = anchor(widths, 0).float()
    blank = LinearNetwork(widths, torch.zeros(widths[-1], widths[0]))
    return LinearNetwork(widths, blank.product(start[None].double())[0]), start


def sampled(task: LinearNetwork, start: torch.Tensor, gamma: float, step: float, seed: int) -> tuple[float, float]:
    """λ̂ of SGLD and its standard error."""
    relaxation = 2 / (gamma * step)
    chains = ChainConfig(
        4, DRAWS, math.ceil(RELAXATIONS * relaxation), math.ceil(BETWEEN * relaxation), task.widths[0], seed
    )
    kernel = SGLD(N_BETA, gamma, step)
    check = check_llc(Copies(task, COPIES), start.repeat(COPIES), kernel, chains, localizations=(), half_step=False)
    for warning in check.warnings:
        print(f"  γ {gamma:g}, ε {step:g}: {warning}", file=sys.stderr)
    return check.rows[0].coefficient / COPIES, check.rows[0].standard_error / COPIES


def exact(task: LinearNetwork, start: torch.Tensor, gamma: float, seed: int) -> tuple[float, float]:
    """λ̂ of Hamiltonian Monte Carlo and its standard error."""
    leaps = {100.0: 20, 10.0: 40, 1.0: 80}[gamma]
    step = 0.6 / math.sqrt(4 * N_BETA + gamma) if gamma > 1 else 0.6 / math.sqrt(12 * N_BETA)
    found = hamiltonian(
        linear_loss(task), start.double().numpy(), N_BETA, gamma,
        step=step, leaps=leaps, burn_in=200, draws=1000, chains=200, seed=seed,
    )  # fmt: skip
    return found.coefficient(N_BETA)


def cell(value: tuple[float, float]) -> str:
    """Value ± error."""
    return f"{value[0]:.3f} ± {value[1]:.3f}"


def regression(seed: int) -> None:
    """The table of λ̂."""
    print("| widths, rank | λ | γ | exact (HMC) | " + " | ".join(f"SGLD, ε {step:g}" for step in STEPS) + " | ε → 0 |")
    print("|" + "---|" * (5 + len(STEPS)))
    for widths in ((4, 3, 4), (7, 2, 7)):
        task, start = problem(widths)
        limit, _ = aoyagi_watanabe(widths[0], widths[2], widths[1], widths[1])
        for gamma in (100.0, 10.0, 1.0):
            values = [sampled(task, start, gamma, step, seed) for step in STEPS]
            fine, finest = values[-2:]
            end = 2 * finest[0] - fine[0], math.hypot(2 * finest[1], fine[1])
            cells = " | ".join(cell(value) for value in (exact(task, start, gamma, seed), *values, end))
            print(f"| {'-'.join(map(str, widths))}, {widths[1]} | {limit:g} | {gamma:g} | {cells} |", flush=True)


def network(seed: int) -> None:
    """P, T and F along directions of a trained network, beside what re-sampling under 1 ± α s finds."""
    task, solution = trained_network()
    start, q, alpha = solution.float(), task.base_weights.numpy(), 0.1
    kernel = SGLD(40.0, 40.0, 2e-4)

    def chains(of: FlatTask, number: int) -> SampledResponse:
        config = ChainConfig(4, 100, 1000, 40, 12, seed=1000 * seed + number)
        return many_chains(of, start, kernel, config, copies=64)

    print("| s follows | response | predicted | measured |\n|---|---|---|---|")
    pilot = four_responses(chains(task, 1), kernel)
    base = chains(task, 0)
    assert base.moments is not None
    responses, at_anchor = four_responses(base, kernel), base.moments.at_anchor
    for name in ("llc-total", "llc-posterior", "free-energy"):
        s = pilot.row(name).values
        s = s / np.sqrt(q @ s**2)
        ends = []
        for sign in (1, -1):
            rho = 1 + sign * alpha * s
            losses = chains(Reweighted(task, torch.from_numpy(rho)), 0).watched_traces / rho
            rise = losses - at_anchor
            log_z = -np.log(np.exp(-sign * alpha * kernel.n_beta * (base.watched_traces @ (q * s))).mean(0))
            ends.append(
                np.stack([kernel.n_beta * (rise @ q).mean(0), kernel.n_beta * (rise @ (q * rho)).mean(0), log_z])
            )
        slopes = (ends[0] - ends[1]) / (2 * alpha)
        along = responses.along(s)
        for row, slope in zip(("llc-posterior", "llc-total", "free-energy"), slopes, strict=True):
            measured = float(slope.mean()), float(slope.std(ddof=1) / len(slope) ** 0.5)
            predicted = float(along[row].values[0]), float(along[row].standard_error[0])
            print(f"| {name} | {row} | {cell(predicted)} | {cell(measured)} |", flush=True)


def alarms(seed: int) -> None:
    """Rates at which `two_state_chains` flags a call of 4 chains: AR(1), squares of it, and chains with a switch."""
    shapes: dict[str, Callable[[Floats], Floats]] = {
        "AR(1)": lambda x: x,
        "AR(1) squared": np.square,
        "3 more sds in a fifth of one chain": lambda x: x + 3 * _stretch(x),
        "5 more": lambda x: x + 5 * _stretch(x),
        "8 more": lambda x: x + 8 * _stretch(x),
    }
    calls, coefficients = 1000, (0.0, 0.5, 0.8, 0.9, 0.97)
    print("| trace | draws | " + " | ".join(f"a = {a:g}" for a in coefficients) + " |\n|" + "---|" * 7)
    for name, change in shapes.items():
        for draws in (20, 50, 100, 400):
            rates = []
            for a in coefficients:
                rng = np.random.default_rng([seed, draws])
                flagged = 0
                for call in range(calls if "more" not in name else calls // 5):
                    trace = change(autoregression(a, draws, 4, seed=int(rng.integers(2**31)) + call))
                    flagged += bool(two_state_chains({"L": trace}, false_alarm=0.05))
                rates.append(flagged / (calls if "more" not in name else calls // 5))
            print(f"| {name} | {draws} | " + " | ".join(f"{rate:.1%}" for rate in rates) + " |", flush=True)


def _stretch(x: Floats) -> Floats:
    """1 in the middle fifth of the second chain."""
    inside = np.zeros_like(x)
    inside[2 * len(x) // 5 : 3 * len(x) // 5, 1] = 1
    return inside


def main() -> None:
    """Run and print."""
    parts = {"regression": regression, "network": network, "alarms": alarms}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(parts), choices=list(parts))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.only:
        begun = time.process_time()
        print(f"\n## {name}\n", flush=True)
        parts[name](arguments.seed)
        print(f"\n{time.process_time() - begun:.0f} CPU seconds", flush=True)


if __name__ == "__main__":
    main()
