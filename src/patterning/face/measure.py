"""`measure`: from a task to χ in one call."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from patterning.core.anchors import check_anchor, warn_if_trained
from patterning.core.devices import DeviceLike
from patterning.core.errors import PatterningError, check_whole
from patterning.core.executors import Executor, chosen
from patterning.core.functions import ModuleFunction, OfModule
from patterning.core.give_back import give_back
from patterning.core.task import Task
from patterning.core.threads import undisturbed
from patterning.core.workers import one_thread
from patterning.face.before_sampling import Choice, check_asked, chosen_sampler, default_phi, untrained_sentence
from patterning.face.first_looks import first_looks
from patterning.face.keeping import keep, parts_of_chi, pool_for, refuse_folder_of_command
from patterning.face.response import Response
from patterning.face.rows import attributes_of_data
from patterning.face.say import Say, duration
from patterning.models.components import ComponentLike, find_component, list_components
from patterning.posterior.chains import ChainConfig, Kernel
from patterning.posterior.sgld import SGLD
from patterning.response.components import component_response, row_numbers
from patterning.response.estimate import estimate_cost
from patterning.response.memory import Need, Plan, check_memory, largest_need, size
from patterning.response.observables import try_observables
from patterning.response.one_component import Estimator, PhiOf
from patterning.response.sample import COMPONENT_LOSS
from patterning.response.store import to_tree


@undisturbed()
def measure(
    task: Task,
    observables: Mapping[str, ModuleFunction] | None = None,
    components: Sequence[ComponentLike] | ComponentLike | None = None,
    *,
    sampler: Kernel | Literal["calibrate"] = "calibrate",
    chains: int = 4,
    draws: int = 20,
    burn_in: int = 40,
    steps_between_draws: int = 4,
    batch_size: int = 32,
    at: nn.Module | Tensor | None = None,
    probes: Tensor | Sequence[int] | None = None,
    phi: PhiOf | Tensor | Sequence[int] | None = None,
    estimator: Choice = "auto",
    reliability: float | None = 0.9,
    budget: int = 4,
    seed: int = 0,
    workers: int = 1,
    executor: Executor | None = None,
    device: DeviceLike | None = None,
    out: str | Path | None = None,
    shards: int | None = None,
    progress: bool = True,
) -> Response:
    """χ of every (component, observable) for every probed sample, with errors.

    `observables`: name → φ, a function of the *module* that returns a scalar tensor. None: the component loss
    φ_C = L(w) - L(w*) of each component. `components`: names (``"l1h3"``, ``"l0 mlp"``, a parameter pattern) or
    `Component` masks; all else stays clamped at w*. None: every head and MLP known by name for component losses, all
    parameters together for observables. `at`: the checkpoint w*, a module or a parameter row; None: the task's module.

    `sampler`: `SGLD(n_beta, localization, step_size)`, or "calibrate" (where none is given), which finds γ and ε and
    says what it chose.
    `chains`, `draws`, `burn_in`, `steps_between_draws`, `batch_size` and `seed` make a round of chains. More rounds are
    run, up to `budget`, until every row has the split-half `reliability` (None: the whole budget is used).

    `estimator`: "pathwise" differentiates ⟨φ⟩ through the chain (little noise); "covariance" is χ as it is defined;
    "auto" is pathwise where that can serve (plain SGLD, steps that contract, a smooth φ), else the covariance;
    "first-order" is a first look without sampling, in seconds.

    `probes`: rows of the data that χ gets columns for, relative to the mean of these; None: all. `phi`: whose loss the
    component loss is, "probes", "data" (all rows) or row numbers; None: "data" where only some rows are probed and the
    estimator can read it.

    `device`: "cuda" moves the task to a GPU for this (docs/gpu.md); None: it is computed where the task's module is.
    `workers`: processes of one thread each; `executor`: other machines instead, such as `pt.Ray("head:6379")`. `out`: a
    folder in which finished components are found again after a kill, and in which χ is stored at the end, as chi.zarr,
    for `patterning report`.
    `shards`: sampling and reading are two jobs. Chains leave their draws on the disk (in `out`, 4 bytes for each free
    parameter, chain and draw; pathwise: chain and *step*, and as much again for each observable), and probed rows are
    read from them in so many parts, by any worker, with memory that depends neither on the probes nor on the draws.
    With the same `out`, other observables or probes are read from what is there, and cost no sampling (pathwise:
    another observable costs a way back through the chains). χ of `observables` has the same bits as without shards;
    pathwise χ agrees up to the rounding of a sum. "auto" is no estimator for it.
    `progress`: print what it will take, and how far it is.

    Raises `PatterningError` for what cannot serve, before anything is sampled, with the remedy; and where chains of
    every component left the neighbourhood of w*.
    """
    given, task = task, task if device is None else task.to(device)
    anchor = _checkpoint(task, at)
    names = _components(task, components, bool(observables))
    functions = _functions(task, observables)
    rows = row_numbers("probes", probes, len(task.base_weights))
    check_asked(estimator, phi, bool(functions), chains, draws, reliability, budget)
    estimator = _estimator(estimator, sampler)
    out = None if out is None else Path(out).expanduser().absolute()  # an observable may change the working folder
    if out is not None:
        refuse_folder_of_command(out)
    check_whole("workers", workers, 1)
    where = chosen(executor, workers)
    _check_shards(shards, estimator)
    if phi is None:
        phi = default_phi(len(rows), len(task.base_weights), estimator)
    if not isinstance(phi, str):
        phi = row_numbers("phi", phi, len(task.base_weights))
    antithetic = estimator in ("auto", "pathwise")
    config = ChainConfig(chains, draws, burn_in, steps_between_draws, batch_size, seed, antithetic=antithetic)
    parts = [find_component(task.module, what) for what in names]
    give_back(task.num_parameters)  # what is free then, can be had
    at_once = math.ceil(len(rows) / (shards or 1))
    plan = Plan(estimator, config, at_once, len(functions), workers, stored=shards is not None)
    need = check_memory(task, parts, plan) if executor is None else largest_need(task, parts, plan)
    task.check_still_the_same()
    try_observables(functions, anchor, task.data)
    say = Say(progress)
    untrained = untrained_sentence(task, anchor)
    say(untrained)
    found = chosen_sampler(task, anchor, names, sampler, batch_size, seed, say)
    settings = {**vars(config), "sampler": found.kernel, "components": [one.name for one in parts], "probes": rows,
                "phi": phi, "estimator": estimator}  # fmt: skip
    depends_on = partial(parts_of_chi, task, anchor, functions, settings)
    if estimator == "first-order":
        say(f"a first look, without sampling; about {size(need.total)} of memory")
        with one_thread(), nullcontext() if shards is None else pool_for(out, where, progress, depends_on) as pool:
            response = first_looks(
                task,
                anchor,
                names,
                found.kernel,
                config,
                rows,
                observables=functions,
                phi=phi,
                shards=shards,
                pool=pool,
            )
    else:
        if progress:  # it takes a few calls of the model
            count = len(functions) or 1
            say(_expectation(task, anchor, names, found.kernel, config, rows, estimator, count, budget, need))
        with pool_for(out, where, progress, depends_on) as pool:
            response = component_response(
                task, anchor, names, found.kernel, config, probes=rows, observables=functions, estimator=estimator,
                phi=phi, reliability=reliability, rounds=budget, component_loss=not functions, pool=pool,
                shards=shards,
            )  # fmt: skip
    tree = to_tree(response)
    tree["susceptibility"].attrs.update(
        calibration=found.text,
        verdict=found.verdict,
        untrained=untrained,
        memory_estimate=need.total,
        **attributes_of_data(task, rows.cpu().numpy()),
    )
    if out is not None:
        keep(tree, out)
    return Response(tree, given)


def _checkpoint(task: Task, at: nn.Module | Tensor | None) -> Tensor:
    if at is None:
        warn_if_trained(task)
    anchor = task.own_row() if at is None else task.flatten(at) if isinstance(at, nn.Module) else at
    return check_anchor(task, anchor.to(task.device) if isinstance(anchor, Tensor) else anchor)


def _components(
    task: Task, components: Sequence[ComponentLike] | ComponentLike | None, observed: bool
) -> list[ComponentLike]:
    if components is None:
        known = [] if observed else [name for name in list_components(task.module) if "embed" not in name]
        return list(known) or ["full"]
    chosen = [components] if isinstance(components, str) or not isinstance(components, Sequence) else list(components)
    named = [find_component(task.module, what).name for what in chosen]
    if not named or len(set(named)) < len(named):
        raise PatterningError(
            f"components must be named once each, and at least one (got {', '.join(named) or 'none'})"
        )
    return chosen


def _functions(task: Task, observables: Mapping[str, ModuleFunction] | None) -> dict[str, OfModule]:
    if observables is not None and not isinstance(observables, Mapping):
        raise PatterningError(
            f"observables is {type(observables).__name__}: give names and functions of the module, {{'loss': function}}"
        )
    if COMPONENT_LOSS in (observables or {}):
        raise PatterningError(f"an observable is called {COMPONENT_LOSS!r}, which every component has: rename yours")
    for name, function in (observables or {}).items():
        if not callable(function):
            raise PatterningError(
                f"observable {name!r} is {type(function).__name__}: it must be a function of the module that returns a "
                "scalar tensor"
            )
    return {name: OfModule(task, name, function) for name, function in (observables or {}).items()}


def _estimator(estimator: Choice, sampler: Kernel | str) -> Choice:
    """The estimator that is to be tried; "auto" is no choice for a sampler that pathwise χ cannot go back through."""
    plain = isinstance(sampler, str | SGLD)
    return "covariance" if estimator == "auto" and not plain else estimator


def _check_shards(shards: int | None, estimator: str) -> None:
    if shards is None:
        return
    check_whole("shards", shards, 1)
    if estimator == "auto":
        raise PatterningError(
            "what chains must leave on the disk depends on the estimator, and 'auto' chooses it after they have run: "
            "give estimator='pathwise', 'covariance' or 'first-order' with shards"
        )


def _expectation(
    task: Task, anchor: Tensor, components: Sequence[ComponentLike], kernel: Kernel, config: ChainConfig,
    rows: Tensor, estimator: Estimator | str, observables: int, budget: int, need: Need,
) -> str:  # fmt: skip
    """What it will take, from one timed step and reading of each component."""
    costs = estimate_cost(
        task, anchor, components, config, probes=rows, estimator=estimator, kernel=kernel, observables=observables
    )
    seconds = sum(cost.seconds for cost in costs)
    again = f", up to {budget} rounds, {duration(budget * seconds)}" if budget > 1 else ""
    return (
        f"{len(costs)} component{'s' if len(costs) > 1 else ''}, {len(rows)} rows probed: about {duration(seconds)} a "
        f"round on one worker{again}; about {size(need.total)} of memory"
    )
