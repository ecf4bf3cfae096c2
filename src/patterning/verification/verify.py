"""`verify`: retrain under weights, under their controls and unweighted, over paired seeds, and say what was found.

The training loop is the user's, in any framework: `train(weights, seed)` returns whatever the measures can read. The
same seed in every arm is a pair. What is claimed follows the one rule of `verification.rule`.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patterning.core.errors import PatterningError, check_whole
from patterning.core.executors import Executor, chosen
from patterning.core.identity import digest
from patterning.core.store import Arrays, RunFolder, Unit
from patterning.core.workers import Progress, Workers
from patterning.intervention.data_weights import Weights
from patterning.verification.arms import UNWEIGHTED, permuted_name
from patterning.verification.assemble import ArmRuns, Range, assemble
from patterning.verification.evidence import Evidence
from patterning.verification.jobs import Measure, Train, TrainJob, run_job
from patterning.verification.plan import Planned, parts_of_plan, plan_arms
from patterning.verification.recheck import CHANGED, NOT_REPEATED, note_on_repeat
from patterning.verification.stored import refuse_other_kind, store_claim
from patterning.verification.suspicion import STATE, notes_on_jumps, refuse_equal_outcomes, refuse_equal_states

COMPONENT_NAME = re.compile(r"l\d+ ?(h\d+|mlp|attention)")
"""Names of heads and layers, as `list_components` gives them."""


def verify(
    train: Train,
    arms: Mapping[str, Weights],
    measures: Mapping[str, Measure | Callable[[Any], Any]],
    seeds: Sequence[int],
    *,
    controls: str | Sequence[str] = ("permuted",),
    extra: Mapping[str, Weights] | None = None,
    wanted: Mapping[str, Mapping[str, float]] | None = None,
    recheck: bool = True,
    out: str | Path | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Evidence:
    """Evidence for what `arms` (name → weights) do to `measures`, against unweighted and permuted weights.

    `train` always gets `Weights`; those of the unweighted arm are all 1. Every arm is trained with every seed; the
    same seeds unweighted; and, with "permuted" among the `controls`, under its own weights dealt to other samples,
    dealt anew for each seed. `extra`: further arms that are only compared (a plain heuristic, say). `wanted`: arm →
    measure → sign of the change that was asked for (0: nothing was); where it is missing, the weights' own target is
    taken for measures of the same name. A target that is a component's own loss
    says nothing of the sign of a measure of that name: `wanted` must then say it. `out`: a folder in which finished
    runs are found again after a kill, and in which `results.json` is written at the end, for `patterning report`;
    without one, nothing is kept. `workers`: processes of one thread each; `executor`: other machines instead, such as
    `pt.Ray("head:6379")`.
    A run is found again by the code of `train` and of the measures, the values that these read, the weights and the
    seed. Files, environment variables and names that are put together at run time are no part of that; where such a
    change makes another run, `recheck` finds it, and refuses the folder.
    `recheck`: after the first three runs, the unweighted run of the first seed is made once more, and must end the same
    (`verification.recheck`). It costs one training run, in each call: where the first runs were found in `out`, the
    repetition shows whether `train` is still the function that made them.

    Raises `PatterningError` for arms, measures or seeds that prove nothing, before anything is trained; after three
    runs where the trained modules show that `train` does not use its seed or its weights; after the fourth where
    `train` goes on from earlier runs, or draws without its seed; and at the end where all outcomes do.
    """
    check_whole("workers", workers, 1)
    where = chosen(executor, workers)
    if not isinstance(controls, str | Sequence):
        raise PatterningError(f"controls is {controls!r}: give names, ('permuted',), or () for none")
    controls = [controls] if isinstance(controls, str) else controls
    seeds = _checked_seeds(seeds)
    parsed = _checked_measures(measures)
    _check(train, arms, extra or {}, parsed, wanted or {})
    plan = plan_arms(arms, controls, extra or {}, seeds)
    signs = _signs(arms, parsed, wanted or {})
    code = digest(train, {name: (m.function, m.low, m.high) for name, m in parsed.items()})
    units = {
        name: [
            Unit(
                f"train-{re.sub('[^A-Za-z0-9]+', '-', name)}",
                run_job,
                {"job": TrainJob(train, parsed, weights, seed, _key(code, weights, seed), name)},
            )
            for seed, weights in zip(seeds, planned.weights, strict=True)
        ]
        for name, planned in plan.items()
    }
    every = [unit for own in units.values() for unit in own]
    parts = partial(parts_of_plan, train, parsed, plan, seeds)
    with _folder(out) as folder, Workers(RunFolder(folder), where, progress, parts if out else None) as pool:
        pool.explain_misses(every)
        found = pool.run.load(units[UNWEIGHTED][0]) is not None
        _first_look(pool, units, next(iter(arms)), seeds)
        notes = _once_more(pool, units[UNWEIGHTED][0], parsed, recheck=recheck, found=found)
        results = iter(pool.compute(every, "retraining every arm"))
        outcomes = {name: [next(results) for _ in seeds] for name in plan}
        refuse_equal_states(outcomes, seeds, UNWEIGHTED)
        evidence = _evidence(parsed, seeds, outcomes, signs, plan)
        evidence = replace(evidence, notes=(*notes, *evidence.notes))
        if out is not None:
            store_claim(evidence, folder)
    return evidence


def _first_look(pool: Workers, units: Mapping[str, list[Unit]], arm: str, seeds: Sequence[int]) -> None:
    """Three runs first: seeds and weights that `train` does not use show in the modules that it returns."""
    base, other = units[UNWEIGHTED][:2], units[arm][:1]
    found = pool.compute([*base, *other], "a first look at train")
    refuse_equal_states({UNWEIGHTED: found[:2], arm: found[2:]}, seeds[:2], UNWEIGHTED)


def _once_more(
    pool: Workers, first: Unit, measures: Mapping[str, Measure], *, recheck: bool, found: bool
) -> tuple[str, ...]:
    """Notes on what the first run and the same run once more say of `train`; raises as `note_on_repeat` does.

    Where the first was `found` in the folder, the other is made now all the same: no key sees all that `train` reads.
    """
    if not recheck:
        return (NOT_REPEATED,)
    job = first.arguments["job"]
    second = Unit(f"{first.name}-again", run_job, {"job": replace(job, again=True)})
    if found and pool.run.load(second) is not None:  # that it repeats itself in one process was seen then
        pool.run.file_of(second).unlink()
        second = Unit(second.name, run_job, {"job": replace(job, again=True, after_one=False)})
    earlier, again = pool.compute([first, second], "the first run once more")
    return note_on_repeat(earlier, again, measures, job.seed, UNWEIGHTED, found=found)


def _checked_seeds(seeds: Sequence[int]) -> list[int]:
    if isinstance(seeds, int | str | bytes) or not hasattr(seeds, "__iter__"):
        raise PatterningError(f"seeds is {seeds!r}: give a list of whole numbers, range(6) say")
    found = list(seeds)
    for seed in found:
        check_whole("seed", seed, 0)
    if len(set(found)) < len(found):
        raise PatterningError("some seeds are named twice: a pair would be counted twice")
    if len(found) < 3:
        raise PatterningError(f"{len(found)} seeds give no interval: use at least 3, and 6 for evidence")
    return [int(seed) for seed in found]


def _check_names(what: str, given: Mapping[str, object]) -> None:
    for name in given:
        if not isinstance(name, str) or not name.strip():
            raise PatterningError(f"{what} has the name {name!r}: names are text, and not empty")


def _checked_measures(measures: Mapping[str, Measure | Callable[[Any], Any]]) -> dict[str, Measure]:
    if not isinstance(measures, Mapping):
        raise PatterningError(f"measures is {type(measures).__name__}: give names and functions, {{'loss': function}}")
    if not measures:
        raise PatterningError("there is no measure: what is to change must be measured")
    _check_names("measures", measures)
    for name in measures:
        if name.startswith("is_bool.") or name in (STATE, CHANGED):
            raise PatterningError(f"a measure is called {name!r}, a name that is kept for its results: rename it")
    parsed = {name: m if isinstance(m, Measure) else Measure(m) for name, m in measures.items()}
    for name, measure in parsed.items():
        if not callable(measure.function):
            raise PatterningError(f"measure {name!r} is no function of what train returns")
    return parsed


def _check(
    train: Train,
    arms: Mapping[str, Weights],
    extra: Mapping[str, Weights],
    measures: Mapping[str, Measure],
    wanted: Mapping[str, Mapping[str, float]],
) -> None:
    if not callable(train):
        raise PatterningError(f"train is {type(train).__name__}: it must be a function of (weights, seed)")
    for what, given in (("arms", arms), ("extra", extra), ("wanted", wanted)):
        if not isinstance(given, Mapping):
            raise PatterningError(f"{what} is {type(given).__name__}: give it by the names of arms, {{'more': …}}")
        _check_names(what, given)
    if not arms:
        raise PatterningError("there is no arm to verify: give a name and weights")
    names = [UNWEIGHTED, *arms, *(permuted_name(name) for name in arms), *extra]
    if len(set(names)) < len(names):
        raise PatterningError(
            f"names of arms must differ, {UNWEIGHTED!r} is taken, and '<arm>, permuted' is an arm's control (got "
            f"{', '.join(names)})"
        )
    every = {**arms, **extra}
    for name, weights in every.items():
        if not isinstance(weights, Weights):
            raise PatterningError(f"arm {name!r} is {type(weights).__name__}: it must be Weights (Weights.of_rows(ρ))")
    for name, weights in arms.items():
        if weights.swapped is None and np.ptp(weights.rho[weights.base_weights > 0]) == 0:
            raise PatterningError(f"arm {name!r} weighs everything alike: it is the unweighted arm, which is there")
    if len({weights.rho.shape for weights in every.values()}) > 1:
        shapes = ", ".join(f"{name} {weights.rho.shape}" for name, weights in every.items())
        raise PatterningError(f"the arms are of data of different lengths, or of rows and of tokens ({shapes})")
    if len({weights.data for weights in every.values() if weights.data}) > 1:
        raise PatterningError("the arms were made for different data, or for the same rows in another order")
    _check_wanted(arms, measures, wanted)


def _check_wanted(
    arms: Mapping[str, Weights], measures: Mapping[str, Measure], wanted: Mapping[str, Mapping[str, float]]
) -> None:
    for arm, signs in wanted.items():
        if arm not in arms:
            raise PatterningError(f"wanted names the arm {arm!r}: there are {', '.join(arms)}")
        if not isinstance(signs, Mapping):
            raise PatterningError(f"wanted[{arm!r}] is {signs!r}: give a sign for each measure, {{measure: +1}}")
        for name, sign in signs.items():
            if name not in measures:
                raise PatterningError(f"wanted[{arm!r}] names the measure {name!r}: there are {', '.join(measures)}")
            if isinstance(sign, bool) or not isinstance(sign, int | float | np.number) or not np.isfinite(sign):
                raise PatterningError(f"wanted[{arm!r}][{name!r}] is {sign!r}: it must be a number, its sign counts")


def _key(code: str, weights: Weights, seed: int) -> str:
    more: tuple[object, ...] = () if weights.swapped is None else (weights.swapped,)
    if torch.get_default_dtype() != torch.float32:  # what train makes is of that type
        more = (*more, str(torch.get_default_dtype()))
    return digest(code, weights.rho, weights.ids, weights.base_weights, weights.free, dict(weights.facts), seed, *more)


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        folder = Path(out).expanduser().absolute()  # train may change the working folder
        refuse_other_kind(folder)
        yield folder
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "run"


def _signs(
    arms: Mapping[str, Weights], measures: Mapping[str, Measure], wanted: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """The sign that each arm was asked to move measures: 0 for those that were to be held; others are left out."""
    signs: dict[str, dict[str, float]] = {}
    for name, weights in arms.items():
        asked = weights.facts.get("target")
        numbers = asked.items() if isinstance(asked, Mapping) else ()
        own = {key: value for key, value in numbers if isinstance(value, int | float)}
        _refuse_signs_of_components(name, weights, {key: own[key] for key in own if own[key] and key in measures},
                                    wanted.get(name, {}))  # fmt: skip
        target = own | dict(wanted.get(name, {}))
        signs[name] = {measure: float(np.sign(target[measure])) for measure in measures if measure in target}
    return signs


def _refuse_signs_of_components(
    arm: str, weights: Weights, target: Mapping[str, float], wanted: Mapping[str, float]
) -> None:
    """Raise `PatterningError` where a measure bears the name of a target that is a component's own loss.

    Less of that loss is a component that the data pins down more closely: it does not say whether the measure should
    rise or fall. Weights of an earlier version do not know; there the form of the name (l1h0, l0 mlp) tells.
    """
    stated = weights.facts.get("component_losses")
    for name, sign in target.items():
        is_loss = name in stated if isinstance(stated, list | tuple) else bool(COMPONENT_NAME.fullmatch(name))
        if is_loss and name not in wanted:
            raise PatterningError(
                f"the measure {name!r} bears the name of a component whose own loss the weights of arm {arm!r} were "
                f"asked to {'lower' if sign < 0 else 'raise'} ({sign:+g}): that is no sign for the measure; say which "
                f"way it is to go, wanted={{{arm!r}: {{{name!r}: +1}}}} to rise, -1 to fall, 0 to stay"
            )


def _evidence(
    measures: Mapping[str, Measure],
    seeds: list[int],
    outcomes: Mapping[str, Sequence[Arrays]],
    signs: Mapping[str, Mapping[str, float]],
    plan: Mapping[str, Planned],
) -> Evidence:
    values = {
        arm: {name: np.array([float(run[name]) for run in runs]) for name in measures} for arm, runs in outcomes.items()
    }
    yes_or_no = {name: _is_bool(name, outcomes) for name in measures}
    constant = [name for name, planned in plan.items() if planned.kind != "control"]
    unclear = {name: _unclear(values, name, measures[name], yes_or_no) for name in measures}
    notes = refuse_equal_outcomes(values, seeds, UNWEIGHTED, constant, unclear, yes_or_no)
    notes += notes_on_jumps(values, UNWEIGHTED, [name for name in measures if not yes_or_no[name]])
    ranges = {name: Range(m.low, m.high, yes_or_no[name]) for name, m in measures.items()}
    arms = [
        ArmRuns(
            name, planned.kind, values[name], permuted_name(name) if permuted_name(name) in plan else None,
            signs.get(name, {}), dict(planned.weights[0].facts),
            held=[measure for measure, sign in signs.get(name, {}).items() if not sign],
        )
        for name, planned in plan.items()
    ]  # fmt: skip
    units = {name: m.unit or ("share of runs" if yes_or_no[name] else "") for name, m in measures.items()}
    found = assemble(arms, ranges, seeds, judge_all=True)
    return replace(found, notes=notes, units={name: unit for name, unit in units.items() if unit})


def _is_bool(name: str, outcomes: Mapping[str, Sequence[Arrays]]) -> bool:
    """Whether a measure is a yes or no; raises `PatterningError` where it is one after some runs only."""
    kinds = {bool(run[f"is_bool.{name}"]) for runs in outcomes.values() for run in runs}
    if len(kinds) > 1:
        raise PatterningError(f"measure {name!r} returned yes or no after some runs and a number after others")
    return kinds.pop()


def _unclear(
    values: Mapping[str, Mapping[str, np.ndarray]], name: str, measure: Measure, yes_or_no: Mapping[str, bool]
) -> bool:
    """Whether equal outcomes prove nothing: a yes or no, or numbers that all lie at an end of the stated range."""
    every = np.concatenate([arm[name] for arm in values.values()])
    return yes_or_no[name] or bool(np.isin(every, (measure.low, measure.high)).all())
