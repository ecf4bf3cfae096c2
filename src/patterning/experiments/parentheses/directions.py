"""Every reading of "more Nested" that the experiment compares, as a change s of the data weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from patterning.core.errors import PatterningError
from patterning.core.flat import evaluate
from patterning.core.store import Arrays, Unit
from patterning.core.workers import Workers
from patterning.experiments.parentheses import units
from patterning.experiments.parentheses.adaptive import HELD, held_direction
from patterning.experiments.parentheses.config import ParenthesesConfig
from patterning.experiments.parentheses.stages import chain_settings, chain_work, gather, join_chains, train_unit
from patterning.intervention.solve import Solution, solve
from patterning.intervention.weights import gaussian_scores
from patterning.response.ensemble import ensemble_susceptibility
from patterning.response.free_energy import gap_direction
from patterning.response.groups import cluster_samples, group_means
from patterning.response.retraining import half_splits, split_weights, training_response
from patterning.response.susceptibility import Susceptibility, rank_correlation, step_up, susceptibility
from patterning.tasks.parentheses import Parentheses

Floats = NDArray[np.float64]
TOWARD = ("nested", "equal_count")
RETRAINING_SEED = 1500
"""Seeds of the pilot pairs count from here: above the pilots', below the claim's."""


@dataclass(frozen=True)
class Direction:
    """`s` (n,) toward Nested; toward Equal-Count is its negative. None where it was refused, with why in `summary`."""

    name: str
    s: Floats | None
    summary: dict[str, Any]

    def toward(self, rule: str) -> Floats:
        """s (n,) toward `rule`."""
        assert self.s is not None
        return self.s if rule == "nested" else -self.s


def invert(
    config: ParenthesesConfig,
    task: Parentheses,
    pool: Workers,
    pilots: Sequence[Arrays],
    kernels: Mapping[str, dict[str, float]],
    responses: Mapping[str, Susceptibility],
    reliability: Sequence[Mapping[str, Any]],
) -> list[Direction]:
    """All directions. Only FALSE strings may move: TRUE ones stay at ρ = 1, which keeps the labels balanced."""
    free = ~task.train.labels
    a, b = responses["nested"], responses["equal_count"]
    usable = {(row["around"], row["observable"]): row["usable"] or config.force for row in reliability}
    held = "lower loss on the OOD set, loss on TRUE and on FALSE held"
    recipes: list[tuple[str, str, Callable[[], Found]]] = [
        (
            "llc-posterior",
            "lower ⟨φ⟩ = nβ⟨L - L(w*)⟩ (old L) around the Nested solution, higher around the Equal-Count one",
            lambda: _by_rows([(a, "llc"), (b, "llc")], [-1.0, 1.0], free, usable),
        ),
        ("gap", "free-energy gap between the two solutions", lambda: _gap(a, b, free)),
        (
            "ood",
            "lower loss on the OOD set, around the Nested solution",
            lambda: _by_rows([(a, "ood_loss")], [-1.0], free, usable),
        ),
        (
            "ood-held",
            f"{held}, around the Nested solution",
            lambda: _by_rows([(a, name) for name in HELD], [-1.0, 0.0, 0.0], free, usable),
        ),
        (
            "runs",
            "free-energy gap over all pilot runs: covariance of OOD accuracy with early loss on each string",
            lambda: _runs(config, task, pilots, free, grouped=False),
        ),
        (
            "runs-groups",
            "free-energy gap over all pilot runs, averaged within clusters of strings",
            lambda: _runs(config, task, pilots, free, grouped=True),
        ),
    ]
    for name in ("early-covariance", "early-first-order"):
        if config.early is not None and name in config.directions:
            found = _early(config, task, pool, pilots, kernels["nested"], name)
            what = f"{held}, mean over unfinished pilot runs at steps {', '.join(map(str, config.early.steps))}"
            recipes.append((name, what, lambda found=found: _mean(found, task, free)))
    what = (
        "OOD accuracy of pilot runs retrained with classes of FALSE strings up- and down-weighted, a finite difference"
    )
    recipes.append(("retraining", what, lambda: _retraining(config, task, pool)))
    found = [_direction(*recipe) for recipe in recipes if recipe[0] in config.directions]
    q = task.base_weights.numpy()
    for direction in found:
        if direction.s is not None:
            scores = gaussian_scores(direction.s, q, free)
            direction.summary["score_by_class"] = {
                name: float((q * scores)[mask].sum() / q[mask].sum())
                for name, mask in task.classes.items()
                if name != "TRUE"
            }
    return found


Found = tuple[Floats, dict[str, Any]]


def _direction(name: str, what: str, find: Callable[[], Found]) -> Direction:
    try:
        s, details = find()
    except PatterningError as error:
        return Direction(name, None, {"name": name, "what": what, "refused": str(error)})
    return Direction(name, s, {"name": name, "what": what, **details})


def _by_rows(
    picks: Sequence[tuple[Susceptibility, str]],
    target: Sequence[float],
    free: NDArray[np.bool_],
    usable: Mapping[tuple[str, str], bool],
) -> Found:
    """χ† of stacked rows; the target is in units of each row's own size. The first row must be reliable."""
    needed = [("nested", picks[0][1])] + ([("equal_count", "llc")] if picks[0][1] == "llc" else [])
    if missing := [f"{name} around {around}" for around, name in needed if not usable[around, name]]:
        raise PatterningError(f"χ is not reliable enough: {', '.join(missing)}")
    rows = [(response, response.observables.index(name)) for response, name in picks]
    chi = np.stack([response.chi[i] for response, i in rows])
    noise = np.stack([response.half_difference()[i] for response, i in rows])
    first = picks[0][0]
    size = np.sqrt((np.where(free, first.base_weights, 0.0) * chi**2).sum(1))
    solution = solve(chi, first.base_weights, np.array(target) * size, first.n_beta, noise=noise, free=free)
    return solution.s, _describe(solution)


def _gap(a: Susceptibility, b: Susceptibility, free: NDArray[np.bool_]) -> Found:
    s, _ = gap_direction(a, b)
    error = np.hypot(a.mean_losses_error, b.mean_losses_error)
    return s, {"median_z": float(np.median(np.abs(s[free]) / np.maximum(error[free], 1e-300)))}


def _runs(
    config: ParenthesesConfig, task: Parentheses, pilots: Sequence[Arrays], free: NDArray[np.bool_], *, grouped: bool
) -> Found:
    """χ over the ensemble of pilot runs, of the early steps where there are any, otherwise of the end.

    With `grouped`, averaged within clusters of FALSE strings that the pilot runs found alike (by log loss).
    """
    outcome = gather(list(pilots))["ood_accuracy"]
    q = task.base_weights.numpy()
    names = ["final"] if config.early is None else [f"at_{step}" for step in config.early.steps]
    losses = np.stack([_losses(task, np.concatenate([pilot[name] for pilot in pilots])) for name in names])
    response = ensemble_susceptibility("ood_accuracy", outcome, losses.mean(0), q)
    chi, halves = response.chi[0], response.halves[:, 0]
    groups = None
    if grouped:
        profiles = np.log(losses[:, :, free].reshape(-1, free.sum()).T + 0.01)
        groups = cluster_samples(profiles - profiles.mean(0), 6 if config.early is None else config.early.groups)
        chi, halves = chi.copy(), halves.copy()
        for row in (chi, *halves):
            row[free] = group_means(row[free], groups, q[free])
    reliability = step_up(rank_correlation(halves[0, free], halves[1, free]))
    if reliability < config.min_reliability and not config.force:
        raise PatterningError(f"χ over {len(outcome)} runs has reliability {reliability:.2f}")
    s = solve(chi[None], q, np.array([1.0]), 1.0, free=free).s
    if groups is not None:
        s[free] = group_means(s[free], groups, q[free])  # members tie exactly, so that ranks do not part them
    return s, {"reliability": reliability, "runs": len(outcome)}


def _retraining(config: ParenthesesConfig, task: Parentheses, pool: Workers) -> Found:
    """χ of training itself for the classes of FALSE strings, on pairs of pilot seeds."""
    q, free = task.base_weights.numpy(), ~task.train.labels
    names = [name for name in task.classes if name != "TRUE"]
    groups = np.full(len(q), -1, dtype=np.int64)
    for g, name in enumerate(names):
        groups[task.classes[name]] = g
    signs = np.repeat(half_splits(len(names)), config.retraining.seeds_per_split, axis=0)
    weights = np.array(
        [[split_weights(side * row, groups, q, config.retraining.step) for side in (1, -1)] for row in signs]
    )
    work = [
        train_unit(config, "retraining", RETRAINING_SEED + i, rho[None])
        for i, pair in enumerate(weights)
        for rho in pair
    ]
    found = gather(pool.compute(work, "response of training, pilot pairs"))
    outcomes = found["ood_accuracy"].reshape(-1, 2)
    response = training_response(outcomes, weights, groups, q)
    if response.reliability < config.min_reliability and not config.force:
        raise PatterningError(
            f"the response of training has reliability {response.reliability:.2f} over {response.pairs} pairs of runs"
        )
    chi = np.where(free, response.chi[np.maximum(groups, 0)], 0.0)
    s = solve(chi[None], q, np.array([1.0]), 1.0, free=free).s
    return s, {
        "reliability": response.reliability,
        "runs": 2 * response.pairs,
        "classes": names,
        "chi": response.chi.tolist(),
        "standard_error": response.standard_error.tolist(),
        "id_accuracy": float(found["id_accuracy"].mean()),
    }


def _losses(task: Parentheses, flat: NDArray[np.float32]) -> NDArray[np.float32]:
    return evaluate(task.losses, torch.from_numpy(flat), len(task.base_weights)).numpy()


def _early(
    config: ParenthesesConfig,
    task: Parentheses,
    pool: Workers,
    pilots: Sequence[Arrays],
    kernel: Mapping[str, float],
    estimator: str,
) -> list[Solution | PatterningError]:
    """The held direction of some pilot runs at each early step, by one estimator."""
    assert config.early is not None
    early, free, q = config.early, ~task.train.labels, task.base_weights.numpy()
    anchors = [
        (f"pilot{i}-step{step}", pilots[i][f"at_{step}"][0])
        for step in early.steps
        for i in range(min(early.runs, len(pilots)))
    ]
    solutions: list[Solution | PatterningError] = []
    if estimator == "early-first-order":
        work = [
            Unit(
                f"first-order-{name}",
                units.first_order_unit,
                {"task": config.task.model_dump(), "anchor": anchor, "localization": kernel["localization"]},
            )
            for name, anchor in anchors
        ]
        for result in pool.compute(work, "early χ, first order"):
            solutions.append(_attempt(result["chi"], q, kernel["n_beta"], free, None))
        return solutions
    chains = chain_settings(config) | {"draws": early.draws, "burn_in": early.burn_in}
    work = [unit for name, anchor in anchors for unit in chain_work(config, name, anchor, kernel, chains, early.chains)]
    found = pool.compute(work, "early χ, covariance")
    rows = [units.OBSERVABLES.index(name) for name in HELD]
    for i, (name, _) in enumerate(anchors):
        try:
            moments = join_chains(name, found[i * early.chains : (i + 1) * early.chains])[2]
        except PatterningError as error:
            solutions.append(error)
            continue
        response = susceptibility(moments, units.OBSERVABLES, q, kernel["n_beta"])
        solutions.append(_attempt(response.chi[rows], q, kernel["n_beta"], free, response.half_difference()[rows]))
    return solutions


def _attempt(
    chi: Floats, q: Floats, n_beta: float, free: NDArray[np.bool_], noise: Floats | None
) -> Solution | PatterningError:
    try:
        return held_direction(chi, q, n_beta, free, noise)
    except PatterningError as error:
        return error


def _mean(found: Sequence[Solution | PatterningError], task: Parentheses, free: NDArray[np.bool_]) -> Found:
    """Mean of the runs' directions in rank scores, and how well the runs agree."""
    q = task.base_weights.numpy()
    scores = [gaussian_scores(item.s, q, free) for item in found if isinstance(item, Solution)]
    if len(scores) < 2:
        raise PatterningError(f"{len(found) - len(scores)} of {len(found)} early readings were below their noise")
    pairs = [rank_correlation(x[free], y[free]) for i, x in enumerate(scores) for y in scores[:i]]
    return np.mean(scores, axis=0), {"readings": len(scores), "agreement_between_readings": float(np.mean(pairs))}


def _describe(solution: Solution) -> dict[str, Any]:
    return {
        "rank": solution.rank,
        "condition": solution.condition,
        "singular_values": solution.singular_values.tolist(),
        "noise_floor": solution.noise_floor,
        "wanted": solution.wanted.tolist(),
        "predicted": solution.predicted.tolist(),
    }
