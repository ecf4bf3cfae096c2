"""Do the intervals of pathwise χ cover, on a language model? The model of the reliability table of `response.py`.

Independent runs (seeds: other noise, other minibatches) of four antithetic chains that share their minibatches. The
intervals of each run, from its first two chains, its last two, or all four, are compared with the mean of χ over the
other runs, whose own error is allowed for. Prints a markdown table; needs no devinterp.

    python benchmarks/error_bars.py [--runs 12] [COMPONENT ...]
"""

import argparse
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from response import SETTINGS, STEP, wide
from scipy.stats import t as student

from patterning.core.task import Task
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response.moderated import moderate
from patterning.response.pathwise import pathwise_chains

Floats = NDArray[np.float64]
CHAINS = ChainConfig(4, 20, 20, 4, 4, matched=True, antithetic=True)
ROWS = torch.arange(64)


def sampled(task: Task, name: str, runs: int) -> Floats:
    """χ of one component by run and chain: (runs, 4, n)."""
    free = Restricted(task, task.flatten(task.module), name)
    probe, n = Probe(free, ROWS, CHAINS.replicas), len(ROWS) * task.samples_per_row
    kernel, found = SGLD(step_size=STEP, **SETTINGS), []
    for seed in range(1000, 1000 + runs):
        chains = replace(CHAINS, seed=seed)
        (parts,) = pathwise_chains(free, probe, np.full(n, 1 / n), kernel, chains).values()
        found.append(parts.chi)
    return np.stack(found)


def rows(name: str, chi: Floats) -> list[str]:
    """What intervals from two and from four chains cover, plain and moderated; means ± standard errors over sets."""
    runs = chi.mean(1)
    scatter = runs.var(0, ddof=1).sum() / (chi.var(1, ddof=1) / chi.shape[1]).mean(0).sum()
    result = []
    for count in (2, 4):
        found = {kind: [] for kind in ("plain", "moderated")}
        for run in range(len(chi)):
            others = np.delete(runs, run, axis=0)
            truth, unsure = others.mean(0), 1.96 * others.std(0, ddof=1) / np.sqrt(len(others))
            large = np.abs(truth) >= np.quantile(np.abs(truth), 0.9)
            for part in np.split(chi[run], chi.shape[1] // count):
                variance, mean = part.var(0, ddof=1), part.mean(0)
                for kind, (own, freedom) in {
                    "plain": (variance, count - 1),
                    "moderated": moderate(variance, count - 1, np.abs(mean)),
                }.items():
                    half = student.ppf(0.975, freedom) * np.sqrt(own / count)
                    inside = np.abs(mean - truth) <= np.hypot(half, unsure)
                    found[kind].append((inside.mean(), inside[large].mean(), np.median(half), freedom))
        for kind, values in found.items():
            covered = [value[:3] for value in values]
            mean, error = np.mean(covered, 0), np.std(covered, 0, ddof=1) / np.sqrt(len(covered))
            result.append(
                f"| {name} | {count}, {kind} | {np.median([v[3] for v in values]):.1f} | {100 * mean[0]:.1f} ± "
                f"{100 * error[0]:.1f} | {100 * mean[1]:.1f} ± {100 * error[1]:.1f} | {mean[2]:.3g} | {scatter:.2f} |"
            )
    return result


def main() -> None:
    """Sample and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("components", nargs="*", default=["l0h0", "l0h3", "l1h0", "l1 mlp"])
    parser.add_argument("--runs", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task, _ = wide(1400)
    print(
        "| component | chains and as many mirror images, errors | degrees of freedom | coverage of 95 % intervals, % | "
        "of the tenth of largest χ | median half-width | variance of runs / stated |\n" + "|" + "---|" * 7
    )
    for name in arguments.components:
        print("\n".join(rows(name, sampled(task, name, arguments.runs))), flush=True)


if __name__ == "__main__":
    main()
