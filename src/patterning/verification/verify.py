"""`verify`: retrain under weights, under their controls and unweighted, over paired seeds, and say what was found.

The training loop is the user's, in any framework: `train(weights, seed)` returns whatever the measures can read. The
same seed in every arm is a pair. What is claimed follows the one rule of `verification.rule`.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patterning.core.errors import PatterningError, check_whole
from patterning.core.identity import digest
from patterning.core.store import Arrays, RunFolder, Unit
from patterning.core.workers import Progress, Workers
from patterning.intervention.data_weights import Weights
from patterning.verification.arms import Arm
from patterning.verification.effects import Effect, paired_effect
from patterning.verification.evidence import Evidence
from patterning.verification.proportions import paired_share_difference
from patterning.verification.rule import Verdict, judge, level_for

Train = Callable[[Weights, int], Any]
"""(weights, seed) → a trained model, or whatever the measures take. It must depend on these two alone."""


@dataclass(frozen=True)
class Measure:
    """A number read off what `train` returned, with the range that it can take.

    `function(result)` returns a float, or a bool for an outcome that happens or not (its share over seeds is shown,
    with intervals for shares). `low`, `high`: differences outside of what they allow are cut off the intervals.
    """

    function: Callable[[Any], Any]
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class TrainJob:
    """One training run and its measures; `fingerprint` covers the weights, the functions and the seed."""

    train: Train
    measures: Mapping[str, Measure]
    weights: Weights
    seed: int
    key: str

    @property
    def fingerprint(self) -> str:
        """What the numbers depend on."""
        return self.key


def run_job(*, job: TrainJob, scratch: Path) -> Arrays:
    """Train, and measure: a unit of work. Names → float64 scalars; `is_bool.<name>` says which were yes or no."""
    del scratch  # the user's loop resumes by itself, or starts again
    with torch.random.fork_rng(devices=[]):
        result = job.train(job.weights, job.seed)
        values: Arrays = {}
        for name, measure in job.measures.items():
            value = measure.function(result)
            if isinstance(value, torch.Tensor):
                value = value.item()
            yes_or_no = isinstance(value, bool | np.bool_)
            if not yes_or_no and not isinstance(value, int | float | np.number):
                raise PatterningError(f"measure {name!r} returned {type(value).__name__}: it must return a number")
            if not np.isfinite(float(value)):
                raise PatterningError(f"measure {name!r} is {value} after training with seed {job.seed}")
            if not measure.low <= float(value) <= measure.high:
                raise PatterningError(
                    f"measure {name!r} is {float(value):.4g}, outside of its range {measure.low:g} to {measure.high:g}"
                )
            values[name] = np.array(float(value))
            values[f"is_bool.{name}"] = np.array(float(yes_or_no))
    return values


def verify(
    train: Train,
    arms: Mapping[str, Weights],
    measures: Mapping[str, Measure | Callable[[Any], Any]],
    seeds: Sequence[int],
    *,
    controls: str | Sequence[str] = ("permuted",),
    extra: Mapping[str, Weights] | None = None,
    wanted: Mapping[str, Mapping[str, float]] | None = None,
    out: str | Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Evidence:
    """Evidence for what `arms` (name → weights) do to `measures`, against unweighted and permuted weights.

    Every arm is trained with every seed; the same seeds unweighted; and, with "permuted" among the `controls`, under
    its own weights dealt to other samples, dealt anew for each seed. `extra`: further arms that are only compared (a
    plain heuristic, say). `wanted`: arm → measure → sign of the change that was asked for; where it is missing, the
    weights' own target is taken for measures of the same name. `out`: a folder in which finished runs are found again
    after a kill; without one, nothing is kept. `workers`: processes of one thread each.

    Raises `PatterningError` for arms, measures or seeds that prove nothing, before anything is trained.
    """
    parsed = {name: m if isinstance(m, Measure) else Measure(m) for name, m in measures.items()}
    seeds, controls = list(seeds), [controls] if isinstance(controls, str) else controls
    _check(arms, extra or {}, parsed, seeds)
    _check_wanted(arms, parsed, wanted or {})
    check_whole("workers", workers, 1)
    plan = _plan(arms, controls, extra or {}, seeds)
    code = digest(train, parsed)
    units = [
        Unit(f"train-{name}", run_job, {"job": TrainJob(train, parsed, weights, seed, _key(code, weights, seed))})
        for name, planned in plan.items()
        for seed, weights in zip(seeds, planned.weights, strict=True)
    ]
    with _folder(out) as folder, Workers(RunFolder(folder), workers, progress) as pool:
        results = iter(pool.compute(units, "retraining every arm"))
    outcomes = {name: [next(results) for _ in seeds] for name in plan}
    return _evidence(parsed, seeds, outcomes, _signs(arms, parsed, wanted or {}), plan)


@dataclass(frozen=True)
class _Planned:
    """An arm to be: its kind, and its weights for each seed."""

    kind: str
    weights: list[Weights]


def _plan(
    arms: Mapping[str, Weights], controls: Sequence[str], extra: Mapping[str, Weights], seeds: Sequence[int]
) -> dict[str, _Planned]:
    """Every arm by name; the unweighted one first."""
    if unknown := set(controls) - {"permuted"}:
        raise PatterningError(f"unknown controls {', '.join(sorted(unknown))}: there is 'permuted'; others go in extra")
    first = next(iter(arms.values()))
    plain = replace(first, rho=np.ones_like(first.rho), facts={"what": UNWEIGHTED})
    plan = {UNWEIGHTED: _Planned("base", [plain] * len(seeds))}
    plan |= {name: _Planned("arm", [weights] * len(seeds)) for name, weights in arms.items()}
    if "permuted" in controls:
        for name, weights in arms.items():
            plan[permuted_name(name)] = _Planned("control", [weights.permuted(seed) for seed in seeds])
    return plan | {name: _Planned("extra", [weights] * len(seeds)) for name, weights in extra.items()}


UNWEIGHTED = "unweighted"


def permuted_name(arm: str) -> str:
    """The name of an arm's permuted control."""
    return f"{arm}, permuted"


def _check(
    arms: Mapping[str, Weights], extra: Mapping[str, Weights], measures: Mapping[str, Measure], seeds: Sequence[int]
) -> None:
    if not arms:
        raise PatterningError("there is no arm to verify: give a name and weights")
    for name, weights in (*arms.items(), *extra.items()):
        if not isinstance(weights, Weights):
            raise PatterningError(f"arm {name!r} is {type(weights).__name__}: it must be Weights (Weights.of_rows(ρ))")
    if not measures:
        raise PatterningError("there is no measure: what is to change must be measured")
    for name, measure in measures.items():
        if not callable(measure.function):
            raise PatterningError(f"measure {name!r} is no function of what train returns")
    names = [UNWEIGHTED, *arms, *(permuted_name(name) for name in arms), *extra]
    if len(set(names)) < len(names):
        raise PatterningError(f"names of arms must differ, and {UNWEIGHTED!r} is taken (got {', '.join(names)})")
    every = [*arms.values(), *extra.values()]
    if len({len(weights) for weights in every}) > 1:
        raise PatterningError(
            f"the arms are of data of different lengths ({', '.join(str(len(weights)) for weights in every)} rows)"
        )
    if len({weights.data for weights in every if weights.data}) > 1:
        raise PatterningError("the arms were made for different data: they cannot be compared")
    for seed in seeds:
        check_whole("seed", seed, 0)
    if len(set(seeds)) < len(seeds):
        raise PatterningError("some seeds are named twice: a pair would be counted twice")
    if len(seeds) < 3:
        raise PatterningError(f"{len(seeds)} seeds give no interval: use at least 3, and 6 for evidence")


def _check_wanted(
    arms: Mapping[str, Weights], measures: Mapping[str, Measure], wanted: Mapping[str, Mapping[str, float]]
) -> None:
    for arm, signs in wanted.items():
        if arm not in arms:
            raise PatterningError(f"wanted names the arm {arm!r}: there is {', '.join(arms)}")
        for name, value in signs.items():
            if name not in measures:
                raise PatterningError(f"wanted names the measure {name!r}: there is {', '.join(measures)}")
            if not (isinstance(value, int | float | np.number) and np.isfinite(value)):
                raise PatterningError(
                    f"wanted of {arm!r}, {name!r} is {value!r}: it must be a number (its sign counts)"
                )


def _key(code: str, weights: Weights, seed: int) -> str:
    return digest(code, weights.rho, weights.ids, weights.base_weights, seed)


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "run"


def _signs(
    arms: Mapping[str, Weights], measures: Mapping[str, Measure], wanted: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """The sign that each arm was asked to move each measure; 0 where nothing was asked."""
    signs: dict[str, dict[str, float]] = {}
    for name, weights in arms.items():
        target = {**weights.facts.get("target", {}), **wanted.get(name, {})}
        signs[name] = {measure: float(np.sign(target.get(measure, 0.0))) for measure in measures}
    return signs


def _evidence(
    measures: Mapping[str, Measure],
    seeds: list[int],
    outcomes: Mapping[str, Sequence[Arrays]],
    signs: Mapping[str, Mapping[str, float]],
    plan: Mapping[str, _Planned],
) -> Evidence:
    values = {
        arm: {name: np.array([float(run[name]) for run in runs]) for name in measures} for arm, runs in outcomes.items()
    }
    yes_or_no = {name: bool(outcomes[UNWEIGHTED][0][f"is_bool.{name}"]) for name in measures}
    table, verdicts = [], dict[tuple[str, str], Verdict]()
    for arm, planned in plan.items():
        control = permuted_name(arm) if permuted_name(arm) in outcomes else None
        effects, beyond = dict[str, Effect](), dict[str, Effect]()
        for name, measure in measures.items():

            def against(other: str, level: float = 0.95, name: str = name, arm: str = arm, measure: Measure = measure):
                return difference(values[arm][name], values[other][name], measure, yes_or_no[name], level)

            if arm != UNWEIGHTED:
                effects[name] = against(UNWEIGHTED)
            if control is not None:
                beyond[name] = against(control)
            if planned.kind == "arm":
                tried = sum(own[name] == signs[arm][name] for own in signs.values())
                level = level_for(tried)
                strict = None if control is None else against(control, level)
                verdicts[arm, name] = judge(against(UNWEIGHTED, level), strict, tried=tried, wanted=signs[arm][name])
        table.append(Arm(arm, planned.kind, values[arm], effects, beyond, dict(planned.weights[0].facts)))
    return Evidence(tuple(measures), yes_or_no, tuple(seeds), tuple(table), verdicts)


def difference(arm: np.ndarray, baseline: np.ndarray, measure: Measure, yes_or_no: bool, level: float = 0.95) -> Effect:
    """The paired difference of a measure with its interval, which stays inside of what the measure's range allows."""
    if yes_or_no:
        return paired_share_difference(arm > 0.5, baseline > 0.5, level=level)
    effect = paired_effect(arm, baseline, level=level)
    # the mean of the arm lies in the range, so the mean difference cannot leave it, less the baseline's mean
    least, most = measure.low - baseline.mean(), measure.high - baseline.mean()
    low, high = float(np.clip(effect.low, least, most)), float(np.clip(effect.high, least, most))
    return Effect(effect.difference, low, high, effect.pairs, level)
