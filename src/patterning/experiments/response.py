"""What `patterning response` and `patterning llc` do: load the user's task, sample its components, write the result."""

import importlib
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from patterning.core.task import LossTask
from patterning.errors import PatterningError
from patterning.models.components import find_component, list_components
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.report.response_page import HEAD, component_rows, response_page
from patterning.response.components import ComponentResponse, Estimator, component_response
from patterning.response.estimate import estimate_cost
from patterning.response.one_component import PhiOf
from patterning.response.store import save_response
from patterning.response.thinning import Spacing, measure_spacing
from patterning.store import RunFolder, write_json, write_whole
from patterning.workers import Progress, Workers

ASSUMED_BETWEEN = 4
"""Steps between draws that `dry` reckons with where they are still to be measured."""


@dataclass(frozen=True)
class Request:
    """The arguments of the command line; `steps_between_draws` 0: to be measured."""

    task: str
    components: str
    n_beta: float
    localization: float
    step_size: float
    chains: int
    draws: int
    burn_in: int
    steps_between_draws: int
    batch_size: int
    probes: int
    estimator: str
    reliability: float | None
    rounds: int
    seed: int
    phi: str = "probes"
    antithetic: bool = False

    @property
    def chain_config(self) -> ChainConfig:
        """Chains that share their minibatches, with their mirror images where the estimator gains by them."""
        return ChainConfig(
            self.chains, self.draws, self.burn_in, self.steps_between_draws, self.batch_size, self.seed, matched=True,
            antithetic=self.antithetic and self.estimator != "covariance",
        )  # fmt: skip


def load_task(where: str) -> LossTask:
    """The task that `FILE.py:NAME()` returns; `PatterningError` says what is wrong."""
    file, _, name = where.rpartition(":")
    path = Path(file)
    if not name or path.suffix != ".py" or not path.is_file():
        raise PatterningError(f"{where} does not name a function: write FILE.py:NAME, with a file that exists")
    sys.path.insert(0, str(path.resolve().parent))  # worker processes get this path too
    try:
        module = importlib.import_module(path.stem)
    except ImportError as error:
        raise PatterningError(f"{path} cannot be imported: {error}") from None
    build = getattr(module, name, None)
    if not callable(build):
        raise PatterningError(f"{path} has no function {name}")
    task = build()
    if not isinstance(task, LossTask):
        raise PatterningError(f"{where}() returned a {type(task).__name__}: it must return a LossTask")
    return task


def _prepare(request: Request) -> tuple[LossTask, list[str], torch.Tensor]:
    task = load_task(request.task)
    names = [name.strip() for name in request.components.split(",") if name.strip()]
    names = names or list_components(task.module) or ["full"]
    for name in names:
        find_component(task.module, name)
    n = len(task.base_weights)
    if not 0 <= request.probes <= n:
        raise PatterningError(f"probes is {request.probes}: there are {n} rows")
    count = request.probes or n
    return task, names, torch.arange(count) * n // count


def answer(request: Request, out: Path, workers: int, progress: Progress, console: Console, *, dry_run: bool) -> None:
    """What the commands do: sample into `out`, or with `dry_run` say what it would cost."""
    if dry_run:
        dry(request, console)
    else:
        sample_to(request, out, workers, progress, console)


def dry(request: Request, console: Console) -> None:
    """Print time and memory of one round of chains for each component."""
    task, names, probes = _prepare(request)
    if not request.steps_between_draws:
        request = replace(request, steps_between_draws=ASSUMED_BETWEEN)
        console.print(f"steps between draws are measured first; assumed here: {ASSUMED_BETWEEN}")
    costs = estimate_cost(
        task, task.flatten(task.module), names, request.chain_config, probes=probes, estimator=request.estimator
    )
    table = Table(title=f"one round of {request.chains} chains, {len(probes)} of {len(task.base_weights)} rows probed")
    for head in ("component", "free coordinates", "seconds", "MB"):
        table.add_column(head, justify="left" if head == "component" else "right")
    for cost in costs:
        table.add_row(cost.component, f"{cost.free_coordinates:,}", f"{cost.seconds:.1f}", f"{cost.megabytes:.0f}")
    console.print(table)
    total = sum(cost.seconds for cost in costs)
    console.print(f"all components: {total:.0f} s on one worker, up to {total * request.rounds:.0f} s in all rounds")


def _spaced(
    request: Request, task: LossTask, names: list[str], probes: torch.Tensor, kernel: SGLD, pool: Workers
) -> tuple[Request, list[Spacing]]:
    """The request with its steps between draws, and the measurement where there was one: the median of components."""
    if request.steps_between_draws:
        return request, []
    chains = replace(request, steps_between_draws=1).chain_config
    found = measure_spacing(
        task, task.flatten(task.module), names, kernel, chains, probes=probes, estimator=request.estimator, pool=pool
    )
    return replace(request, steps_between_draws=int(np.median([one.steps for one in found]))), found


def sample_to(request: Request, out: Path, workers: int, progress: Progress, console: Console) -> ComponentResponse:
    """Sample, write `chi.zarr`, `results.json` and `report.html` into `out`, print the table."""
    kernel = SGLD(request.n_beta, request.localization, request.step_size)
    task, names, probes = _prepare(request)
    if (out / "chi.zarr").exists():
        raise PatterningError(f"{out / 'chi.zarr'} exists: name another folder with --out")
    run = RunFolder(out)
    run.create()
    with Workers(run, workers, progress) as pool:
        request, spacing = _spaced(request, task, names, probes, kernel, pool)
        found = component_response(
            task, task.flatten(task.module), names, kernel, request.chain_config, probes=probes,
            estimator=cast("Estimator", request.estimator), phi=cast("PhiOf", request.phi),
            reliability=request.reliability, rounds=request.rounds, pool=pool,
        )  # fmt: skip
    rows = component_rows(found)
    facts: dict[str, Any] = {
        "request": vars(request),
        "spacing": [asdict(one) for one in spacing],
        "table": [dict(zip(HEAD, row.cells, strict=True)) for row in rows],
    }
    write_json(out / "results.json", facts)
    write_whole(out / "report.html", response_page(found, f"Susceptibilities of {request.task}").encode())
    save_response(found, out / "chi.zarr")  # last: it marks a finished run
    table = Table()
    for head in HEAD:
        table.add_column(head, justify="left" if head == "component" else "right")
    for row in rows:
        table.add_row(*row.cells)
    console.print(table)
    if spacing:
        measured = ", ".join(f"{one.component} {one.steps}" for one in spacing)
        console.print(f"{request.steps_between_draws} steps between draws, the median of {measured}", highlight=False)
    console.print(f"page: {out / 'report.html'}", highlight=False)
    return found
