"""What `patterning measure` and `patterning llc` are asked, and the task, components and observables that it names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch

from patterning.core.errors import PatterningError
from patterning.core.functions import ModuleFunction, OfModule
from patterning.core.task import Task
from patterning.core.user_code import call, load_object
from patterning.face.before_sampling import check_asked, default_phi
from patterning.models.components import find_component, list_components
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response.one_component import PhiOf

SAMPLERS = ("sgld", "calibrate")


@dataclass(frozen=True)
class Request:
    """The arguments of the command line, whose names have the meaning that they have for `patterning.measure`.

    `decode` names what turns a sample into text, for the page. `sampler` "sgld" takes nβ, γ and ε as they are given,
    and "calibrate" finds them. `steps_between_draws` 0: to be measured. Raises `PatterningError` for a number that is
    not finite, and where nβ, γ and ε are given to "calibrate" or are missing for "sgld".
    """

    task: str
    components: str
    n_beta: float | None
    localization: float | None
    step_size: float | None
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
    phi: str | None = None
    sampler: str = "sgld"
    antithetic: bool = False
    check: bool = False
    observables: str | None = None
    device: str | None = None
    decode: str | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise PatterningError(f"{name} is {value}: it must be a finite number")
        check_asked(
            self.estimator,
            self.phi,
            self.observables is not None,
            self.chains,
            self.draws,
            self.reliability,
            self.rounds,
        )
        numbers = (self.n_beta, self.localization, self.step_size)
        if self.sampler not in SAMPLERS:
            raise PatterningError(f"sampler {self.sampler!r} is not one of {', '.join(SAMPLERS)}")
        if self.sampler == "calibrate" and any(value is not None for value in numbers):
            raise PatterningError(
                "--sampler calibrate finds nβ, γ and ε: leave --n-beta, --localization and --step-size out"
            )
        if self.sampler == "sgld" and any(value is None for value in numbers):
            raise PatterningError(
                "SGLD needs --n-beta, --localization and --step-size; where they are not known, --sampler calibrate "
                "finds them"
            )

    @property
    def kernel(self) -> SGLD | str:
        """The sampler as `patterning.measure` takes it."""
        if self.n_beta is None or self.localization is None or self.step_size is None:
            return self.sampler
        return SGLD(self.n_beta, self.localization, self.step_size)

    def phi_of(self, probed: int, rows: int) -> PhiOf:
        """Whose loss φ is, of so many probed rows."""
        return cast("PhiOf", self.phi or default_phi(probed, rows, self.estimator))

    @property
    def chain_config(self) -> ChainConfig:
        """Chains, with their mirror images where the estimator gains by them."""
        between = self.steps_between_draws
        if self.estimator == "first-order":  # no chain is run
            between = max(1, between)
        return ChainConfig(
            self.chains, self.draws, self.burn_in, between, self.batch_size, self.seed,
            antithetic=self.antithetic and self.estimator not in ("covariance", "first-order"),
        )  # fmt: skip


def load_task(where: str) -> Task:
    """The task that `FILE.py:NAME()` returns; `PatterningError` says what is wrong, with file and line."""
    build = load_object(where)
    if isinstance(build, Task):
        return build
    if not callable(build):
        raise PatterningError(f"{where} is a {type(build).__name__}: it must be a function that returns a Task")
    task = call(where, build)
    if not isinstance(task, Task):
        hint = " (is its return missing?)" if task is None else ""
        raise PatterningError(f"{where}() returned a {type(task).__name__}{hint}: it must return a Task")
    return task


def prepare(request: Request) -> tuple[Task, list[str], torch.Tensor]:
    """The task, the names of its components, and the row numbers that χ gets columns for.

    Raises `PatterningError` for a component that the model does not have, and for more probes than rows.
    """
    task = load_task(request.task)
    task = task if request.device is None else task.to(request.device)
    names = [name.strip() for name in request.components.split(",") if name.strip()]
    names = names or list_components(task.module) or ["full"]
    for name in names:
        find_component(task.module, name)
    n = len(task.base_weights)
    if not 0 <= request.probes <= n:
        raise PatterningError(f"probes is {request.probes}: there are {n} rows")
    count = request.probes or n
    return task, names, torch.arange(count) * n // count


def observables_of(request: Request, task: Task) -> dict[str, OfModule]:
    """φ by name, where the request names functions of the module."""
    if request.observables is None:
        return {}
    found = load_object(request.observables)
    if not isinstance(found, Mapping):
        raise PatterningError(
            f"{request.observables} is a {type(found).__name__}: it must be a dict of names and functions of the module"
        )
    functions = cast("Mapping[str, ModuleFunction]", found)
    return {name: OfModule(task, name, function) for name, function in functions.items()}
