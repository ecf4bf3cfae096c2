"""What `patterning measure` and `patterning llc` do: load the user's task, sample its components, write the result.

χ is stored first (`chi.zarr`), and table, `results.json` and page are made from what is stored: an error in any of them
costs nothing, and `patterning report` makes them again.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from patterning.console.llc import check_components
from patterning.console.request import Request, observables_of, prepare
from patterning.console.texts import Shown, load_again
from patterning.core.errors import PatterningError
from patterning.core.executors import Executor
from patterning.core.identity import digest
from patterning.core.locks import NAME as LOCK
from patterning.core.plain import Document
from patterning.core.store import RunFolder, strict_json, write_json, write_whole
from patterning.core.task import Task
from patterning.core.terminal import print_fitting
from patterning.core.user_code import as_given
from patterning.core.workers import Progress, Workers, one_thread
from patterning.face.before_sampling import chosen_sampler, untrained_sentence
from patterning.face.first_looks import first_looks
from patterning.face.response_page import (
    CHECK_HEAD,
    check_rows,
    component_cells,
    component_table,
    response_page,
    warnings_of,
)
from patterning.face.rows import attributes_of_data
from patterning.face.say import Say
from patterning.posterior.find_settings import Found
from patterning.posterior.sgld import SGLD
from patterning.response.components import ComponentResponse, Estimator, component_response
from patterning.response.estimate import estimate_cost
from patterning.response.observables import try_observables
from patterning.response.store import excluded_chains, open_response, save_response
from patterning.response.thinning import Spacing, measure_spacing
from patterning.study.conduct import keeping_results
from patterning.verification.stored import is_claim

if TYPE_CHECKING:
    import xarray

CHECK = "check.json"
"""File of a folder that holds checks of λ̂."""
ASSUMED_BETWEEN = 4
"""Steps between draws that `dry` reckons with where they are still to be measured."""


def dry(request: Request) -> Document:
    """Time and memory of one round of chains for each component, and of all together."""
    task, names, probes = prepare(request)
    observables = observables_of(request, task)
    try_observables(observables, task.flatten(task.module), task.data)
    assumed = not request.steps_between_draws
    if assumed:
        request = replace(request, steps_between_draws=ASSUMED_BETWEEN)
    costs = estimate_cost(
        task, task.flatten(task.module), names, request.chain_config, probes=probes, estimator=request.estimator,
        observables=len(observables) or 1, kernel=kernel if isinstance(kernel := request.kernel, SGLD) else None,
    )  # fmt: skip
    return {
        "request": vars(request),
        "steps_between_draws_are_assumed": assumed,
        "rows": len(task.base_weights),
        "probed_rows": len(probes),
        "costs": [asdict(cost) for cost in costs],
        "seconds_of_a_round": sum(cost.seconds for cost in costs),
    }


def print_costs(results: Document, console: Console) -> None:
    """What `dry` found, as a table."""
    request, total = results["request"], results["seconds_of_a_round"]
    if results["steps_between_draws_are_assumed"]:
        console.print(f"steps between draws are measured first; assumed here: {ASSUMED_BETWEEN}")
    table = Table(
        title=f"one round of {request['chains']} chains, {results['probed_rows']} of {results['rows']} rows probed"
    )
    for head in ("component", "free coordinates", "seconds", "MB"):
        table.add_column(head, justify="left" if head == "component" else "right")
    for cost in results["costs"]:
        size = f"{cost['free_coordinates']:,}"
        table.add_row(cost["component"], size, f"{cost['seconds']:.1f}", f"{cost['megabytes']:.0f}")
    console.print(table)
    rounds = 1 if request["estimator"] == "first-order" else request["rounds"]
    console.print(f"all components: {total:.0f} s on one worker, up to {total * rounds:.0f} s in all rounds")


def sample_to(request: Request, out: Path, where: Executor | int, progress: Progress | None = None) -> Document:
    """Sample into the folder `out`, or go on where a killed run stood: `chi.zarr`, `results.json`, `report.html`.

    Returns what `results.json` holds. Raises `PatterningError` for a wrong request, before anything is sampled; for a
    folder that holds something else or is in use; and where the page cannot be made, which costs nothing else.
    """
    chosen_before = request.kernel  # settings that cannot serve are refused before the task is loaded
    task, names, probes = prepare(request)
    out = as_given(out)
    _check_folder(out)
    shown = Shown.of(task, request.decode)
    run = RunFolder(out)
    with run.lock(), one_thread():
        if (out / "chi.zarr").exists():
            _check_same(request, task, out)
            request = _stored_request(request, out)
        else:
            with Workers(run, where, progress) as pool:
                request = _sample(request, task, names, probes, chosen_before, out, pool)
        if request.check and not (out / CHECK).exists():
            publish(out, shown)  # what was sampled is there whatever becomes of its check
            kernel = cast("SGLD", request.kernel)
            with Workers(run, where, progress) as pool:
                write_json(out / CHECK, check_components(task, names, kernel, request.chain_config, probes, pool))
        return publish(out, shown)


def _sample(
    asked: Request, task: Task, names: list[str], probes: torch.Tensor, sampler: SGLD | str, out: Path, pool: Workers
) -> Request:
    """Store χ in `out`; return the request with the settings that were found: nβ, γ, ε, steps between draws."""
    anchor, observables = task.flatten(task.module), observables_of(asked, task)
    try_observables(observables, anchor, task.data)
    untrained = untrained_sentence(task, anchor)
    settings = chosen_sampler(task, anchor, names, sampler, asked.batch_size, asked.seed, Say(True))
    kernel = cast("SGLD", settings.kernel)
    request = replace(
        asked, n_beta=kernel.n_beta, localization=kernel.localization, step_size=kernel.step_size, sampler="sgld"
    )
    phi = asked.phi_of(len(probes), len(task.base_weights))
    spacing: list[Spacing] = []
    if asked.estimator == "first-order":
        responses = first_looks(
            task, anchor, names, kernel, request.chain_config, probes, observables=observables, phi=phi
        )
    else:
        request, spacing = _spaced(request, task, names, probes, kernel, pool)
        responses = component_response(
            task, anchor, names, kernel, request.chain_config, probes=probes,
            estimator=cast("Estimator", request.estimator), phi=phi, reliability=request.reliability,
            rounds=request.rounds, pool=pool, observables=observables, component_loss=asked.observables is None,
        )  # fmt: skip
    _store(task, responses, asked, request, spacing, out, settings, untrained, digest(observables))
    return request


def _stored_request(request: Request, out: Path) -> Request:
    """The request with the settings that the stored χ was sampled with."""
    stored = json.loads(open_response(out / "chi.zarr")["susceptibility"].attrs.get("request", "{}"))
    found = ("n_beta", "localization", "step_size", "sampler", "steps_between_draws")
    return replace(request, **{name: stored[name] for name in found if name in stored})


def _spaced(
    request: Request, task: Task, names: list[str], probes: torch.Tensor, kernel: SGLD, pool: Workers
) -> tuple[Request, list[Spacing]]:
    """The request with its steps between draws, and the measurement where there was one: the median of components."""
    if request.steps_between_draws:
        return request, []
    chains = replace(request, steps_between_draws=1).chain_config
    spacing = measure_spacing(
        task, task.flatten(task.module), names, kernel, chains, probes=probes, estimator=request.estimator, pool=pool
    )
    return replace(request, steps_between_draws=int(np.median([each.steps for each in spacing]))), spacing


def _check_folder(out: Path) -> None:
    """Raise where `out` is a folder of something else: its results would be written over."""
    if (out / "config.yaml").exists():
        raise PatterningError(f"{out} holds a run of `patterning run`: name another folder with --out")
    if not (out / "chi.zarr").exists() and is_claim(out):
        raise PatterningError(f"{out} holds the proof of `patterning verify`: name another folder with --out")
    begun = any((out / name).exists() for name in (LOCK, "units", "chi.zarr"))
    if out.is_dir() and any(out.iterdir()) and not begun:
        raise PatterningError(f"{out} exists and is not the folder of a response: name another one with --out")


def _check_same(request: Request, task: Task, out: Path) -> None:
    """Raise where the stored χ is an answer to another request than this one."""
    settings = open_response(out / "chi.zarr")["susceptibility"].attrs
    asked = json.loads(settings.get("asked", "{}"))
    asked = (
        {"device": None, "sampler": "sgld"} | asked | {"task": request.task, "decode": request.decode}
    )  # the file may be named from another folder, and texts are for the page alone
    same = asked == vars(request)
    if not same or settings["task"] != task.fingerprint:
        raise PatterningError(f"{out / 'chi.zarr'} exists, of another request: name another folder with --out")
    if settings.get("observables", "") not in ("", digest(observables_of(request, task))):
        raise PatterningError(
            f"{out / 'chi.zarr'} exists, of other observables than {request.observables} holds now: name another "
            "folder with --out"
        )


def _store(
    task: Task, responses: ComponentResponse, asked: Request, found: Request, spacing: list[Spacing], out: Path,
    settings: Found, untrained: str, observables: str,
) -> None:  # fmt: skip
    more = {
        "calibration": settings.text,
        "verdict": settings.verdict,
        "untrained": untrained,
        "observables": observables,
        **attributes_of_data(task, responses.rows),
        "asked": json.dumps(vars(asked)),
        "request": json.dumps(vars(found)),  # the same, with what was measured in place of what was not known
        "spacing": json.dumps(strict_json([asdict(each) for each in spacing])),
    }
    save_response(responses, out / "chi.zarr", more)


def publish(out: Path, shown: Shown | None = None) -> Document:
    """Write `results.json` and `report.html` from the stored χ; return what `results.json` holds.

    `shown`: the samples for the page; None: the task of the stored request is loaded again.
    Raises `PatterningError` when χ is not there or damaged, and where the page cannot be made.
    """
    if not (out / "chi.zarr").exists():
        raise PatterningError(f"{out} has no chi.zarr yet: give the command that began it again, it resumes")
    tree = open_response(out / "chi.zarr")
    settings = tree["susceptibility"].attrs
    with keeping_results(out, out / "chi.zarr"):
        check = json.loads((out / CHECK).read_text(encoding="utf-8")) if (out / CHECK).exists() else None
        shown = shown or load_again(_last_request(out, settings), settings["task"])
        results = results_of(tree, check, shown.why)
        if shown.task is not None:
            results["request"]["decode"] = shown.source
        write_json(out / "results.json", strict_json(results))
        task = results["request"].get("task")
        title = f"Susceptibilities of {task}" if task else "Susceptibilities"
        page = response_page(tree, title, check, task=shown.task, decode=shown.decode)
        write_whole(out / "report.html", page.encode(errors="replace"))
    return results


def _last_request(out: Path, settings: Mapping[Any, Any]) -> Document:
    """The request of the χ in `out`; what turns its samples into text may be of a later one."""
    stored = json.loads(settings.get("request", "{}"))
    try:
        last = json.loads((out / "results.json").read_text(encoding="utf-8"))["request"]
    except (OSError, ValueError, KeyError):
        return stored
    return stored | {"decode": last["decode"]} if "decode" in last else stored


def results_of(tree: "xarray.DataTree", check: Document | None, by_number: str = "") -> Document:
    """What `results.json` holds; of a χ that Python measured, the request is the settings of its sampler.

    `by_number`: why the page shows samples by their numbers, where it does.
    """
    settings, table = tree["susceptibility"].attrs, component_table(tree)
    known = {name: float(settings[name]) for name in ("n_beta", "localization", "step_size") if name in settings}
    notes = [f"the page shows samples by their numbers: {by_number}"] if by_number else []
    return {
        "request": json.loads(settings.get("request", "{}")) or known,
        "spacing": json.loads(settings.get("spacing", "[]")),
        "table": table,
        "excluded": excluded_chains(tree),
        "warnings": warnings_of(tree, table) + (check or {}).get("warnings", []) + notes,
        "check": check,
    }


def print_results(results: Document, console: Console) -> None:
    """The table of `results.json` on a terminal, with what is to be said of it."""
    request = results["request"]
    sampler = ", ".join(
        f"{sign} {request[name]:g}"
        for sign, name in (("nβ", "n_beta"), ("γ", "localization"), ("ε", "step_size"))
        if name in request
    )
    print_fitting(console, *component_cells(results["table"], request), sampler)
    if results["spacing"]:
        measured = ", ".join(f"{each['component']} {each['steps']}" for each in results["spacing"])
        steps = request["steps_between_draws"]
        console.print(f"{steps} steps between draws, the median of {measured}", highlight=False)
    if results.get("check"):
        cells = [row.cells for row in check_rows(results["check"])]
        print_fitting(console, CHECK_HEAD, cells, "λ̂ at half the step and at other γ")
        for line in results["check"]["verdicts"]:
            console.print(line, highlight=False, markup=False)
    for line in results["warnings"]:
        console.print(f"note: {line}", style="yellow", highlight=False, markup=False)
