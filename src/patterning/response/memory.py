"""How much memory χ will take, from shapes and one row's graph, before anything is allocated; and what would fit."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.models.components import Component
from patterning.models.footprint import graph_bytes
from patterning.models.restricted import CELLS_AT_ONCE, ENOUGH_CELLS, MOST_BYTES
from patterning.posterior.chains import ChainConfig
from patterning.response.one_component import Work

PROCESS = 400e6
"""Bytes of a worker process before it holds a model: Python, PyTorch and what they import."""
SPARE = 0.9
"""Share of the free memory that may be taken."""
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Plan:
    """What is to be computed, as far as memory depends on it. `stored`: positions lie on the disk."""

    estimator: str
    chains: ChainConfig
    rows: int
    observables: int = 0
    workers: int = 1
    stored: bool = False

    @property
    def replicas(self) -> int:
        """Chains and, for all estimators but the covariance, their mirror images."""
        return self.chains.chains if self.estimator == "covariance" else self.chains.replicas


@dataclass(frozen=True)
class Need:
    """Bytes that a component takes at the most, by what they are for."""

    component: str
    models: float
    states: float
    positions: float
    graph: float
    processes: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.models + self.states + self.positions + self.graph + self.processes

    def __str__(self) -> str:
        """For a person."""
        parts = {
            "copies of the model": self.models, "states of the chains": self.states,
            "positions that are kept": self.positions, "activations": self.graph, "worker processes": self.processes,
        }  # fmt: skip
        named = [f"{size(value)} of {what}" for what, value in parts.items() if value > 0.02 * self.total]
        return f"{size(self.total)} ({', '.join(named)})"


def needed(task: Task, component: Component, plan: Plan) -> Need:
    """What a component takes besides what the task holds already.

    Copies of the model: w*, and a clamped copy with its own w*, with the whole row, its parameters and their gradients
    for observables; or, at another time, the rows at which a task's fingerprint is taken. States: replicas × P_C
    numbers of positions, gradients, noise and what an update makes of them, and the parameter tensors that a part of is
    free. Positions: those of every step, which the pathwise estimator goes back through, and the adjoints of the steps
    between two draws, three times. Activations: what one call keeps (`models.footprint`), which second derivatives keep
    three times, and a forward derivative twice.
    """
    module = task.module
    whole = 4.0 * task.num_parameters
    held = sum(p.numel() * p.itemsize for p in (*module.parameters(), *module.buffers()))
    free, masks = 4.0 * component.count(module), component.masks
    touched = sum(4.0 * module.get_parameter(name).numel() for name, mask in masks.items() if mask is not None)
    clamped = whole + held + free + (3 * whole if plan.observables else 0.0)
    models = whole + max(clamped, 3 * whole)
    sample = graph_bytes(task, component)
    t, batch = task.samples_per_row, plan.chains.batch_size
    together = 1 if task.device.type == "cpu" and batch * t >= ENOUGH_CELLS else plan.replicas
    if plan.estimator == "first-order":
        states, positions, copies = 5 * free + 2 * touched, 0.0, 2.0
        cells = float(plan.rows * t)
    else:
        states = plan.replicas * 6 * free + together * 2 * touched
        second = plan.estimator != "covariance"
        kept = (2 if plan.stored else plan.chains.steps + 1) + 3 * plan.chains.steps_between_draws
        positions = plan.replicas * free * kept if second else 0.0
        copies = 3.0 if second else 1.3
        cells = float(max(batch * t * together, plan.rows * t))
    at_once, most_bytes = (table.get(task.device.type, table["other"]) for table in (CELLS_AT_ONCE, MOST_BYTES))
    most = at_once if sample == 0 else min(at_once, max(t, most_bytes / sample))
    graph = copies * sample * min(cells, most)
    if plan.estimator != "first-order":
        graph += 16.0 * plan.replicas * plan.rows * t
    return Need(component.name, models, states, positions, graph)


def check_memory(task: Task, components: Sequence[Component], plan: Plan) -> Need:
    """The component that takes most; raises `PatterningError` where that is more than is free, with what would fit.

    With several workers, as many components as there are workers are computed at once, each in a process with a copy of
    the task.
    """
    need = largest_need(task, components, plan)
    limit = SPARE * free_bytes(task.device)
    if need.total <= limit:
        return need
    fits = [words for words, other in _smaller(plan) if largest_need(task, components, other).total <= limit]
    smaller = [c.name for c in components if needed(task, c, replace(plan, workers=1)).total <= limit]
    if smaller and len(smaller) < len(components):
        fits.append(f"components={smaller[:4]!r}")
    advice = f"what fits: {'; '.join(fits)}" if fits else "name smaller components (a head, a layer), or fewer probes"
    raise PatterningError(
        f"χ of component {need.component!r} needs about {need}, and {size(limit)} can be had on this machine; {advice}"
    )


def largest_need(task: Task, components: Sequence[Component], plan: Plan) -> Need:
    """The component that takes most; with several workers, all that are computed at once, each in its process."""
    need = max((needed(task, component, plan) for component in components), key=lambda found: found.total)
    count = min(plan.workers, len(components))
    if count < 2:
        return need
    apart = _apart(task) + need.total
    return replace(need, processes=count * apart - need.total)


def component_memory(*, work: Work) -> float:
    """Bytes of a process that computes one component, for executors that place jobs by them (`core.store.Unit`)."""
    settings = work.settings
    plan = Plan(settings.estimator, work.chains, len(settings.rows), len(settings.observables))
    return needed(work.task, work.component, plan).total + _apart(work.task)


def _apart(task: Task) -> float:
    """Bytes of a process and its copy of the model, before anything is computed."""
    return PROCESS + sum(p.numel() * p.itemsize for p in task.module.parameters())


def _smaller(plan: Plan) -> list[tuple[str, Plan]]:
    """What takes less memory, in words, from the nearest to what was asked for on."""
    found: list[tuple[str, Plan]] = []
    if plan.workers > 1:
        found.append(("workers=1", replace(plan, workers=1)))
    if plan.estimator in ("auto", "pathwise"):
        for draws in (plan.chains.draws // 2, plan.chains.draws // 4):
            if draws >= 4:
                few = replace(plan.chains, draws=draws)
                found.append((f"draws={draws}", replace(plan, chains=few, workers=1)))
        found.append(("estimator='covariance'", replace(plan, estimator="covariance", workers=1)))
    if plan.estimator != "first-order":
        found.append(("estimator='first-order'", replace(plan, estimator="first-order", workers=1)))
    return found


def free_bytes(device: torch.device) -> float:
    """Memory that can still be had: of a GPU, or of the machine within the limits of its container."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    known = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        known = [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        most, used = ((CGROUP / f"memory.{what}").read_text(encoding="utf-8").strip() for what in ("max", "current"))
        known += [float(most) - float(used)] if most != "max" else []
    except (OSError, ValueError, IndexError):
        pass
    if known:
        return max(0.0, min(known))
    try:
        return 0.8 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):  # a system that does not say
        return float("inf")


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
