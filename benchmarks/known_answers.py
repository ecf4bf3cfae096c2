"""Bias and coverage against the zoo of known answers: prints the tables of docs/results/zoo.md.

Each row is `--seeds` independent estimates, each from 4 chains as a user would run them.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # before this folder, whose zoo.py is this script

from zoo.cases import CASES
from zoo.known import Estimates, Known, Sample, estimate
from zoo.responses import Responses, estimate_pathwise

from patterning.posterior.chains import ChainConfig

SHORTER = 10

MEANS = (
    "| case | φ | λ | truth, ε → 0 | truth of the chain | mean estimate ± se | bias / se | coverage of ± 1.96 se |\n"
    + "|"
    + "---|" * 8
)
CHI = (
    "| case | χ of | truth | draws a chain (independent) | centred: mean ± se | bias / se | coverage | "
    "unbiased: mean ± se | bias / se | coverage |\n" + "|" + "---|" * 10
)

RESPONSES = (
    "| case | chains | response, ε → 0 | of the chain | draws a chain | mean estimate ± se | bias / se | coverage | "
    "expansion |\n" + "|" + "---|" * 9
)


def coverage(sample: Sample, truth: float) -> str:
    """Share in per cent with its exact binomial interval."""
    found = binomtest(sample.covered(truth), len(sample.values))
    interval = found.proportion_ci(0.95)
    return f"{100 * found.statistic:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def cells(sample: Sample, truth: float) -> str:
    """Mean with its standard error, bias, coverage."""
    return f"{sample.mean:.4g} ± {sample.standard_error:.2g} | {sample.bias_z(truth):+.1f} | {coverage(sample, truth)}"


def mean_rows(known: Known, found: Estimates) -> list[str]:
    """⟨φ⟩: one row an observable."""
    rows = []
    for i, name in enumerate(known.observables):
        limit = f"{known.learning_coefficient:g}" if i == 0 else ""
        truths = " | ".join(f"{round(value, 9) + 0.0:.4g}" for value in (known.means_without_step[i], known.means[i]))
        rows.append(f"| {known.name} | {name} | {limit} | {truths} | {cells(found.means[i], known.means[i])} |")
    return rows


def chi_rows(known: Known, found: Estimates, draws: int) -> list[str]:
    """χ at the sample where it is largest: one row an observable."""
    rows = []
    for i, name in enumerate(known.observables):
        truth = float(known.chi[i, found.column[i]])
        both = f"{cells(found.chi[i], truth)} | {cells(found.unbiased[i], truth)}"
        size = f"{draws} ({found.independent[i]:.0f})"
        rows.append(f"| {known.name} | {name}, j = {found.column[i]} | {truth:.4g} | {size} | {both} |")
    return rows


def response_row(known: Known, config: ChainConfig, found: Responses) -> str:
    """Pathwise χ of L at the sample where it is largest."""
    limit = float(known.chi_without_step[0, found.column]) / known.kernel.n_beta
    chains = f"{config.chains}{' and their mirror images' if config.antithetic else ''}"
    return (
        f"| {known.name}, j = {found.column} | {chains} | {limit:.4g} | {found.truth:.4g} | {config.draws} | "
        f"{cells(found.chi, found.truth)} | {found.expansion:.2g} |"
    )


def pathwise(names: list[str], seeds: int) -> None:
    """The table of the pathwise estimator: a tenth and a hundredth of the draws that the covariance gets."""
    print("\n".join(["", "pathwise χ of L:", "", RESPONSES]))
    for name in names:
        if name == "preconditioned":
            continue
        for draws, antithetic in ((200, False), (20, False), (20, True)):
            config = replace(CASES[name].config, draws=draws, antithetic=antithetic, seed=CASES[name].config.seed + 70)
            known = CASES[name].make()
            print(response_row(known, config, estimate_pathwise(known, config, seeds)), flush=True)


def pooled(results: list[tuple[Known, Estimates, int]]) -> str:
    """Coverage over all rows."""
    covered = [
        [
            getattr(found, estimator)[i].covered(float(known.chi[i, j])) / len(found.chi[i].values)
            for known, found, _ in results
            for i, j in enumerate(found.column)
        ]
        for estimator in ("chi", "unbiased")
    ]
    centred, unbiased = (100 * sum(shares) / len(shares) for shares in covered)
    return f"coverage over all rows: centred {centred:.1f} %, unbiased {unbiased:.1f} %"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=400, help="independent estimates a row")
    parser.add_argument("--seed", type=int, default=0, help="added to the seed of each case")
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--pathwise", action="store_true", help="only the table of the pathwise estimator")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.pathwise:
        pathwise(arguments.only, arguments.seeds)
        return
    start, long, short, settings = time.time(), [], [], []
    for number, name in enumerate(arguments.only):
        known, full = CASES[name].make(), CASES[name].config
        full = replace(full, seed=full.seed + 100 * arguments.seed)
        for results, config in (
            (long, full),
            (short, replace(full, draws=full.draws // SHORTER, seed=full.seed + 50)),
        ):
            progress = f"{time.time() - start:4.0f} s  {number + 1}/{len(arguments.only)} {name}, {config.draws} draws"
            print(f"\r{progress:70}", end="", file=sys.stderr, flush=True)
            results.append((known, estimate(known, config, arguments.seeds), config.draws))
        kernel = known.kernel
        settings.append(
            f"| {known.name} | {kernel.n_beta:g} | {kernel.localization:g} | {kernel.step_size:g} | {full.chains} | "
            f"{full.draws} | {full.steps_between_draws} | {full.burn_in} | {full.seed} |"
        )
    progress = f"{time.time() - start:.0f} s, {arguments.seeds} estimates a row"
    print(f"\r{progress:70}", file=sys.stderr)
    print("\n".join([MEANS, *(row for known, found, _ in long for row in mean_rows(known, found))]))
    for results, title in ((long, "χ"), (short, f"χ, {1 / SHORTER:g} of the draws")):
        print("\n".join(["", f"{title} ({pooled(results)}):", "", CHI]))
        print("\n".join(row for known, found, draws in results for row in chi_rows(known, found, draws)))
    header = "| case | nβ | γ | ε | chains | draws | steps between draws | burn-in | seed |\n|" + "---|" * 9
    print("\n".join(["", header, *settings]))


if __name__ == "__main__":
    main()
