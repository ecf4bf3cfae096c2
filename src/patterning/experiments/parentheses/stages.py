"""The stages up to χ: pilot runs, the two solutions, sampler settings, chains, reliability."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterning.core.errors import PatterningError
from patterning.core.store import Arrays, Unit
from patterning.core.workers import Workers
from patterning.experiments.parentheses import units
from patterning.experiments.parentheses.config import ParenthesesConfig
from patterning.posterior.diagnostics import diagnose
from patterning.response.moments import Moments, join
from patterning.response.susceptibility import Susceptibility, susceptibility
from patterning.tasks.parentheses import Parentheses, name_rule

PILOT_SEED = 1000
"""Pilot runs count from here; the claim's seeds from `first_seed`, above any pilot."""

Measures = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Solution:
    """A trained run to work around: `flat` parameters (P,) and what it measures."""

    name: str
    seed: int
    flat: NDArray[np.float32]
    measures: dict[str, float]

    @property
    def summary(self) -> dict[str, Any]:
        """For `results.json`."""
        return {"name": self.name, "seed": self.seed, **self.measures, "rule": name_rule(self.measures)}


def train_unit(
    config: ParenthesesConfig,
    name: str,
    seed: int,
    rho: NDArray[np.float64],
    starts: Sequence[int] = (0,),
    keep: Sequence[int] = (),
) -> Unit:
    """The unit that trains one seed under weights `rho` (segments, n), keeping its parameters at steps `keep`."""
    return Unit(
        name,
        units.train_unit,
        {
            "task": config.task.model_dump(),
            "train": config.train.model_dump(),
            "seeds": [seed],
            "rho": rho,
            "starts": list(starts),
            "keep": list(keep),
        },
    )


def unweighted(config: ParenthesesConfig, name: str, seed: int, keep: Sequence[int] = ()) -> Unit:
    """The unit that trains one seed on the data as it is."""
    n = len(units.build_task(config.task.model_dump()).base_weights)
    return train_unit(config, name, seed, np.ones((1, n)), keep=keep)


def gather(results: list[Arrays]) -> Measures:
    """Structure measures of many one-seed units, each (seeds,)."""
    names = [name for name in results[0] if name.endswith("accuracy") or name.startswith("agree_")]
    return {name: np.concatenate([result[name] for result in results]) for name in names}


def train_pilots(config: ParenthesesConfig, pool: Workers) -> list[Arrays]:
    """Unweighted runs on the pilot seeds, used for every choice and for no claim."""
    seeds = range(PILOT_SEED, PILOT_SEED + config.pilot_seeds)
    keep = () if config.early is None else config.early.steps
    return pool.compute([unweighted(config, "pilot", seed, keep) for seed in seeds], "pilot runs, unweighted")


def choose_solutions(config: ParenthesesConfig, pilots: list[Arrays]) -> dict[str, Solution]:
    """The most Nested-like and the most Equal-Count-like pilot among those that learned the task."""
    measures = gather(pilots)
    learned = np.flatnonzero(measures["id_accuracy"] >= config.solution_accuracy)
    if len(learned) < 2:
        best = ", ".join(f"{value:.3f}" for value in sorted(measures["id_accuracy"], reverse=True)[:4])
        raise PatterningError(
            f"{len(learned)} of {len(pilots)} pilot runs reached ID accuracy {config.solution_accuracy} (best: {best}) "
            "and two are needed: train longer (train.steps), use more pilot_seeds, or lower solution_accuracy"
        )
    ood = measures["ood_accuracy"]
    picks = {"nested": learned[ood[learned].argmax()], "equal_count": learned[ood[learned].argmin()]}
    return {
        name: Solution(
            name=name,
            seed=PILOT_SEED + int(i),
            flat=pilots[i]["final"][0],
            measures={key: float(value[i]) for key, value in measures.items()},
        )
        for name, i in picks.items()
    }


def calibrate_samplers(
    config: ParenthesesConfig, pool: Workers, solutions: Mapping[str, Solution]
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """γ and ε for the wanted rise around each solution: kernel settings by solution, and the records."""
    sampling = config.sampling
    settings = {
        "n_beta": sampling.n_beta,
        "rise": sampling.rise,
        "steps": sampling.pilot_steps,
        "batch_size": sampling.batch_size,
    }
    found = pool.compute(
        [
            Unit(
                f"calibrate-{name}",
                units.calibrate_unit,
                {"task": config.task.model_dump(), "anchor": solution.flat, "settings": settings},
            )
            for name, solution in solutions.items()
        ],
        "sampler settings",
    )
    kernels = {
        name: {
            "n_beta": sampling.n_beta,
            "localization": float(result["localization"]),
            "step_size": float(result["step_size"]),
        }
        for name, result in zip(solutions, found, strict=True)
    }
    records = [
        {
            "around": name,
            **kernels[name],
            "wanted_rise": sampling.rise,
            "rise": float(result["rise"]),
            "pilots": [
                dict(zip(("localization", "step_size", "rise", "r_hat", "diverged"), row.tolist(), strict=True))
                for row in result["pilots"]
            ],
        }
        for name, result in zip(solutions, found, strict=True)
    ]
    return kernels, records


def chain_settings(config: ParenthesesConfig) -> dict[str, Any]:
    """The part of `ChainConfig` that all chains share."""
    sampling = config.sampling
    return {
        "draws": sampling.draws,
        "burn_in": sampling.burn_in,
        "steps_between_draws": sampling.steps_between_draws,
        "batch_size": sampling.batch_size,
    }


def chain_work(
    config: ParenthesesConfig, name: str, anchor: NDArray[np.float32], kernel: Mapping[str, float],
    chains: Mapping[str, Any], count: int,
) -> list[Unit]:  # fmt: skip
    """One unit for each of `count` chains around `anchor` (P,)."""
    return [
        Unit(
            f"chain-{name}-{chain}",
            units.chain_unit,
            {
                "task": config.task.model_dump(),
                "anchor": anchor,
                "kernel": dict(kernel),
                "chains": dict(chains),
                "chain": chain,
                "batches": config.sampling.batches,
            },
        )
        for chain in range(count)
    ]


def join_chains(name: str, found: Sequence[Arrays]) -> tuple[list[Arrays], list[str], Moments]:
    """The chains that did not diverge, why the others were left out, and the joined sums."""
    why = [bytes(result["diverged"]).decode() for result in found]
    healthy = [result for result, reason in zip(found, why, strict=True) if not reason]
    excluded = [reason for reason in why if reason]
    if len(healthy) < 2:
        raise PatterningError(
            f"{len(excluded)} of {len(found)} chains around {name} diverged ({excluded[0]}): "
            "lower sampling.rise or raise sampling.chains"
        )
    names = [entry.name for entry in fields(Moments)]
    return healthy, excluded, join([Moments(**{key: result[key] for key in names}) for result in healthy])


def sample_responses(
    config: ParenthesesConfig,
    pool: Workers,
    solutions: Mapping[str, Solution],
    kernels: Mapping[str, dict[str, float]],
) -> tuple[dict[str, Susceptibility], list[dict[str, Any]]]:
    """χ of the observables around each solution, and what the chains look like; diverged chains are left out."""
    count = config.sampling.chains
    work = [
        unit
        for name, solution in solutions.items()
        for unit in chain_work(config, name, solution.flat, kernels[name], chain_settings(config), count)
    ]
    found = pool.compute(work, "posterior chains")
    q = units.build_task(config.task.model_dump()).base_weights.numpy()
    responses, records = {}, []
    for i, name in enumerate(solutions):
        healthy, excluded, moments = join_chains(f"the {name} solution", found[i * count : (i + 1) * count])
        responses[name] = susceptibility(moments, units.OBSERVABLES, q, config.sampling.n_beta)
        records.append(_describe_chains(name, healthy, excluded, moments, q, config.sampling.n_beta))
    return responses, records


def _describe_chains(
    name: str, healthy: list[Arrays], excluded: list[str], moments: Moments, q: NDArray[np.float64], n_beta: float
) -> dict[str, Any]:
    trace = np.concatenate([result["phi_trace"] for result in healthy], axis=1)  # (draws, chains, k)
    trace = trace - moments.phi_anchor
    watched = np.concatenate([result["loss_trace"] for result in healthy], axis=1)
    anchor = float(moments.at_anchor @ q)
    return {
        "around": name,
        "title": f"around the {name.replace('_', '-')} solution",
        "excluded": excluded,
        "loss_at_anchor": anchor,
        "trace": (anchor + trace[:, :, 0].T / n_beta).tolist(),
        "observables": {name: asdict(diagnose(trace[:, :, i])) for i, name in enumerate(units.OBSERVABLES)},
        "watched_samples": [asdict(diagnose(watched[:, :, i])) for i in range(watched.shape[2])],
    }


def check_reliability(
    config: ParenthesesConfig, task: Parentheses, responses: Mapping[str, Susceptibility]
) -> list[dict[str, Any]]:
    """Split-half reliability over the FALSE strings (the ones that will move), and a refusal where it is too low."""
    free = ~task.train.labels
    rows = []
    for name, response in responses.items():
        for i, (observable, value) in enumerate(response.reliability(free).items()):
            share = np.sort(response.chi[i] ** 2)[::-1]
            rows.append(
                {
                    "around": name,
                    "observable": observable,
                    "reliability": value,
                    "usable": bool(value >= config.min_reliability),
                    "median_z": float(np.median(np.abs(response.chi[i, free]) / response.standard_error[i, free])),
                    "top_percent_share": float(share[: max(1, len(share) // 100)].sum() / share.sum()),
                }
            )
    if not any(row["usable"] for row in rows) and not config.force:
        found = ", ".join(f"{row['observable']} around {row['around']}: {row['reliability']:.2f}" for row in rows)
        raise PatterningError(
            f"χ is too unreliable to invert: split-half reliability {found}; wanted {config.min_reliability}. "
            "Sample longer (sampling.draws, sampling.chains), or pass --force"
        )
    return rows


def describe_task(task: Parentheses) -> dict[str, Any]:
    """Sizes, and the share of each class of training strings."""
    q = task.base_weights.numpy()
    return {
        "samples": len(q),
        "draws": len(task.draws),
        "parameters": task.num_parameters,
        "id_test": len(task.id_test),
        "ood_test": len(task.ood_test),
        "class_share": {name: float(q[mask].sum()) for name, mask in task.classes.items()},
    }
