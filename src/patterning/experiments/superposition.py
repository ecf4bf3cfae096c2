"""The superposition experiment, top to bottom like a method section: choose by data which shape is learned.

Noisy training of the toy model of superposition ends as a hexagon or as one of six pentagons. The free-energy gap,
sampled around these seven solutions, gives weights for the 24 groups of data that favour one of them; retraining shows
what they do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from patterning.core.errors import PatterningError
from patterning.core.rng import Stream, generator
from patterning.core.settings import read_yaml
from patterning.core.store import Arrays, RunFolder, Unit
from patterning.core.workers import Progress, Workers
from patterning.experiments import superposition_page
from patterning.experiments.superposition_settings import (
    DEFAULT,
    PRESETS,
    Ask,
    SuperpositionConfig,
    TrainSettings,
    load_config,
    preset_config,
)
from patterning.intervention.permute import permuted
from patterning.posterior.around import Around, Landscape, Schedule, judge_chains, sample_around
from patterning.posterior.langevin import descend, walk
from patterning.posterior.sgld import SGLD
from patterning.response.solutions import gap_parts, predict_shares, prediction_intervals, symmetric_shares
from patterning.study.conduct import conduct, keeping_results, read_json_results
from patterning.tasks import superposition as toy
from patterning.verification.proportions import compare_shares, paired_share_difference, share_interval

__all__ = ["DEFAULT", "PRESETS", "load_config", "preset_config", "print_table", "run_superposition", "write_page"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Results = dict[str, Any]

UNIFORM = np.full(toy.GROUPS, 1 / toy.GROUPS)
DRAWN = 24
"""Runs of each arm whose weights are kept in `results.json`, for the page to draw."""
CLASSES = (np.array([0]), np.arange(1, len(toy.SOLUTIONS)))
"""Solutions that are alike by symmetry: the hexagon alone, and the six pentagons."""


def read_results(run: RunFolder) -> Results:
    """The results of a finished run; raises `PatterningError` when it has none or they are damaged."""
    return read_json_results(run, "superposition", lambda results: "agreement" in results)


def run_superposition(
    config: SuperpositionConfig, folder: Path, *, workers: int = 1, progress: Progress | None = None
) -> Results:
    """Run everything, or what a killed run left; write `results.json` and `report.html`; return the results.

    Raises `PatterningError` when the folder holds another configuration, training overflows, or chains cannot be
    trusted.
    """
    run, _ = conduct(config, folder, lambda path: load_config(read_yaml(path), str(path)), _stages, workers, progress)
    results = read_results(run)  # the page is made from what the file holds, as `patterning report` makes it
    with keeping_results(folder, folder / "results.json"):
        write_page(run, results)
    return results


print_table, write_page = superposition_page.print_table, superposition_page.write_page


def _stages(config: SuperpositionConfig, run: RunFolder, workers: int, progress: Progress | None) -> Results:
    with Workers(run, workers, progress) as pool:
        solutions = sample_solutions(config, pool)
        counts = count_pilots(config, pool)
        shares = symmetric_shares(CLASSES, counts)
        gaps = read_gaps(config, solutions, shares)
        arms = plan_arms(config, {name: gap["s"] for name, gap in gaps.items()})
        predicted = predict(config, pool, solutions, counts, arms)  # on disk before the first arm is trained
        trained = pool.compute([train(config, arm.rho, config.first_seed, config.seeds) for arm in arms], "Retrain")
    table = tabulate(config, arms, predicted, trained)
    return {
        "experiment": "superposition",
        "config": config.model_dump(mode="json"),
        "pilot_counts": counts,
        "base_shares": shares,
        "solutions": [solution.summary() for solution in solutions],
        "directions": [{"target": name} | gap for name, gap in gaps.items()],
        "arms": table,
        "agreement": [agreement(arms, table, ask.target) for ask in config.asks],
    }


# The seven solutions and what is around them


def chains_unit(
    *, n_beta: float, kernel: Mapping[str, float], schedule: Mapping[str, int], seed: int, chains: Sequence[int],
    scratch: Path,
) -> Arrays:  # fmt: skip
    """The minima `w` (7, 18), and the numbered chains around each: `losses`, `states` as `sample_around` gives them."""
    del scratch
    w = toy.find_minima()
    losses, states = sample_around(_landscape(), w, SGLD(n_beta=n_beta, **kernel), Schedule(**schedule), seed, chains)
    return {"w": w, "losses": losses, "states": states}


def sample_solutions(config: SuperpositionConfig, pool: Workers) -> list[Around]:
    """Chains around each solution, judged; two units, so that two workers share them."""
    sampling = config.sampling
    common = {
        "n_beta": config.n_beta,
        "kernel": {"localization": sampling.localization, "step_size": sampling.step_size},
        "schedule": {name: getattr(sampling, name) for name in ("steps", "burn_in", "steps_between_draws")},
        "seed": sampling.seed,
    }
    halves = np.array_split(np.arange(sampling.chains), 2)
    units = [Unit("chains", chains_unit, common | {"chains": half.tolist()}) for half in halves]
    parts = pool.compute(units, "Sample around seven solutions")
    losses, states = (np.concatenate([part[name] for part in parts], axis=2) for name in ("losses", "states"))
    return [
        judge_chains(_landscape(), k, w, losses[:, k], states[:, k], config.n_beta, force=config.force)
        for k, w in enumerate(parts[0]["w"])
    ]


def _landscape() -> Landscape:
    return Landscape(
        toy.gradient_under(np.ones(toy.GROUPS)), toy.group_losses, toy.end_states, toy.SOLUTIONS, toy.RATE, steps=200
    )


# Training


def train_unit(*, rho: Floats, n_beta: float, train: Mapping[str, Any], seeds: Sequence[int], scratch: Path) -> Arrays:
    """Noisy training of `seeds` under weights `rho`: final parameters `w` (r, 18), and the solutions `states` (r,)."""
    del scratch  # a unit takes seconds; a killed one is run again whole
    settings, gradient = TrainSettings(**train), toy.gradient_under(rho)
    start = settings.init_scale * np.stack([generator(s, Stream.INIT).standard_normal(toy.PARAMETERS) for s in seeds])
    kernel = SGLD(n_beta=n_beta, localization=1.0, step_size=2 * settings.learning_rate / n_beta)
    noisy = walk(gradient, start, np.zeros(toy.PARAMETERS), kernel, [(s, 0) for s in seeds], settings.steps)
    w = descend(gradient, noisy, toy.RATE, settings.quiet_steps)
    overflowed = int((~np.isfinite(w).all(axis=1)).sum())
    if overflowed:
        raise PatterningError(f"{overflowed} of {len(seeds)} training runs overflowed: lower train.learning_rate")
    return {"w": w, "states": toy.end_states(w)}


def train(config: SuperpositionConfig, rho: Floats, first_seed: int, seeds: int) -> Unit:
    """A unit of training."""
    numbers = list(range(first_seed, first_seed + seeds))
    settings = {"rho": rho, "n_beta": config.n_beta, "train": config.train.model_dump(), "seeds": numbers}
    return Unit("train", train_unit, settings)


def count_pilots(config: SuperpositionConfig, pool: Workers) -> Ints:
    """How many unweighted pilot runs end in each solution (7,); what is missing to `pilot_seeds` ended in none."""
    halves = np.array_split(np.arange(config.pilot_seeds), 2)
    units = [train(config, np.ones(toy.GROUPS), int(half[0]), len(half)) for half in halves]
    states = np.concatenate([part["states"] for part in pool.compute(units, "Train unweighted pilot runs")])
    return np.bincount(states, minlength=toy.OTHER + 1)[: toy.OTHER]


# Directions, arms, predictions


@dataclass(frozen=True)
class Arm:
    """A set of weights ρ (24,) to train under; `ask` names the target. `partial`: a part of the gap."""

    label: str
    kind: Literal["unweighted", "ask", "permuted", "heuristic", "partial"]
    ask: str
    rho: Floats


def read_gaps(config: SuperpositionConfig, solutions: Sequence[Around], shares: Floats) -> dict[str, dict[str, Any]]:
    """The free-energy gap for each target, with its parts (`gap_parts`)."""
    at_minimum = np.stack([solution.at_minimum for solution in solutions])
    mean_losses = np.stack([solution.mean_losses for solution in solutions])
    places = {ask.target: toy.SOLUTIONS.index(ask.target) for ask in config.asks}
    return {name: gap_parts(at_minimum, mean_losses, shares, k, UNIFORM) for name, k in places.items()}


def plan_arms(config: SuperpositionConfig, directions: Mapping[str, Floats]) -> list[Arm]:
    """Unweighted, every ask, permuted draws of each, and weights to compare with."""
    arms = [Arm("unweighted", "unweighted", "", np.ones(toy.GROUPS))]
    weights = {ask.target: 1 + ask.alpha * directions[ask.target] for ask in config.asks}
    arms += [Arm(f"{name}, asked", "ask", name, rho) for name, rho in weights.items()]
    every = np.ones(toy.GROUPS, dtype=bool)
    for i, (name, rho) in enumerate(weights.items()):
        for draw in range(config.permuted):
            dealt = permuted(rho, UNIFORM, every, seed=i * config.permuted + draw)
            arms.append(Arm(f"{name}, permuted, draw {draw + 1}", "permuted", name, dealt))
    for ask in config.asks:
        arms += _other_weights(ask, directions[ask.target])
    return arms


def _other_weights(ask: Ask, s: Floats) -> list[Arm]:
    """A plain heuristic for the same ask, and what of the gap is left when the heuristic's part is taken out of it."""
    if ask.target == "hexagon":
        ramp = np.tile(np.linspace(-1, 1, toy.QUARTERS), toy.FEATURES)
        rest = _scaled(s - (s @ ramp) / (ramp @ ramp) * ramp)
        return [
            Arm("heuristic: ramp towards large μ", "heuristic", ask.target, 1 + ask.alpha * ramp),
            Arm("hexagon, orthogonal to the ramp", "partial", ask.target, 1 + ask.alpha * rest),
            Arm("hexagon, orthogonal, reversed", "partial", ask.target, 1 - ask.alpha * rest),
        ]
    feature = toy.SOLUTIONS.index(ask.target) - 1
    half = np.ones((toy.FEATURES, toy.QUARTERS))
    half[feature] = 0.5
    within = s.reshape(half.shape) - s.reshape(half.shape).mean(axis=1, keepdims=True)
    return [
        Arm(f"heuristic: half of feature {feature + 1}", "heuristic", ask.target, half.ravel() / half.mean()),
        Arm(f"{ask.target}, frequencies held", "partial", ask.target, 1 + ask.alpha * _scaled(within.ravel())),
    ]


def _scaled(s: Floats) -> Floats:
    return s / np.abs(s).max()


def predict_unit(*, counts: Ints, chain_means: Mapping[str, Floats], rhos: Floats, n_beta: float,
                 scratch: Path) -> Arrays:  # fmt: skip
    """Predicted `shares` of the solutions under each row of `rhos` (arms, 24), with limits `low`, `high`: (arms, 7)."""
    del scratch
    chains = [chain_means[name] for name in toy.SOLUTIONS]
    mean_losses = np.stack([means.mean(axis=0) for means in chains])
    base = symmetric_shares(CLASSES, counts)
    shares = np.stack([predict_shares(base, mean_losses, rho, UNIFORM, n_beta) for rho in rhos])
    low, high = prediction_intervals(CLASSES, counts, chains, rhos, UNIFORM, n_beta)
    return {"shares": shares, "low": low, "high": high}


def predict(
    config: SuperpositionConfig, pool: Workers, solutions: Sequence[Around], counts: Ints, arms: Sequence[Arm]
) -> Arrays:
    """`predict_unit` of all arms, as a unit of the run folder: its file is older than those of the arms."""
    means = {solution.name: solution.chain_means for solution in solutions}
    rhos = np.stack([arm.rho for arm in arms])
    arguments = {"counts": counts, "chain_means": means, "rhos": rhos, "n_beta": config.n_beta}
    return pool.compute([Unit("predictions", predict_unit, arguments)], "Predict every arm")[0]


# Outcomes


def tabulate(
    config: SuperpositionConfig, arms: Sequence[Arm], predicted: Arrays, trained: Sequence[Arrays]
) -> list[dict[str, Any]]:
    """A row for each arm; under `outcomes`, for each target, what was predicted, what came, and paired differences."""
    hits = {
        ask.target: np.stack([part["states"] == toy.SOLUTIONS.index(ask.target) for part in trained])
        for ask in config.asks
    }
    table = []
    for i, (arm, part) in enumerate(zip(arms, trained, strict=True)):
        table.append(
            asdict(arm)
            | {
                "outcomes": {name: outcome(name, arms, i, hit, predicted) for name, hit in hits.items()},
                "states": part["states"],
                "columns": np.round(part["w"][:DRAWN, : 2 * toy.FEATURES], 3),
                "live": toy.live_features(part["w"][:DRAWN]),
            }
        )
    return table


def outcome(name: str, arms: Sequence[Arm], i: int, hits: NDArray[np.bool_], predicted: Arrays) -> dict[str, Any]:
    """How often arm `i` ends in the solution `name`; `hits` (arms, seeds) are of all arms, in the order of the seeds.

    `effect` is the paired difference to the unweighted arm. An arm that asks for `name` has `beyond` too: the
    differences to the permuted draw and to the heuristic that give it most often.
    """
    k, count, seeds = toy.SOLUTIONS.index(name), int(hits[i].sum()), hits.shape[1]
    low, high = share_interval(count, seeds)
    beyond = {}
    if arms[i].kind == "ask" and arms[i].ask == name:
        for kind in ("permuted", "heuristic"):
            rivals = [j for j, arm in enumerate(arms) if arm.kind == kind and arm.ask == name]
            best = max(rivals, key=lambda j: int(hits[j].sum()))
            beyond[kind] = {"label": arms[best].label} | asdict(paired_share_difference(hits[i], hits[best]))
    forecast = {"share": predicted["shares"][i, k], "low": predicted["low"][i, k], "high": predicted["high"][i, k]}
    effect = asdict(paired_share_difference(hits[i], hits[0])) if i > 0 else None
    return {"share": count / seeds, "low": low, "high": high, "predicted": forecast, "effect": effect, "beyond": beyond}


def agreement(arms: Sequence[Arm], table: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Predicted against realised shares of `name`, over the unweighted, the asked and the permuted arms."""
    rows = [row for arm, row in zip(arms, table, strict=True) if arm.kind in ("unweighted", "ask", "permuted")]
    predicted = np.array([row["outcomes"][name]["predicted"]["share"] for row in rows])
    hits = np.stack([row["states"] == toy.SOLUTIONS.index(name) for row in rows])
    return {"target": name, "arms": len(rows)} | asdict(compare_shares(predicted, hits))
