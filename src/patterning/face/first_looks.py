"""First-order χ of several components: a first look, without sampling."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.functions import OfModule
from patterning.core.give_back import give_back
from patterning.core.task import Task
from patterning.core.workers import Workers
from patterning.models.components import ComponentLike, find_component
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior.chains import ChainConfig, Kernel
from patterning.response.capability import try_gradient, try_slopes
from patterning.response.components import ComponentResponse
from patterning.response.first_look import first_look, sharded_look
from patterning.response.one_component import PhiOf
from patterning.response.sample import SampledResponse


def first_looks(
    task: Task, anchor: Tensor, components: Sequence[ComponentLike], kernel: Kernel, config: ChainConfig, rows: Tensor,
    *, observables: Mapping[str, OfModule] | None = None, phi: PhiOf | Tensor = "probes", shards: int | None = None,
    pool: Workers | None = None,
) -> ComponentResponse:  # fmt: skip
    """First-order χ of each component for the probed `rows`; of the kernel only nβ and γ count.

    Without `observables`, of the component loss of `phi`. With `shards`, rows are read by the workers of `pool`. A
    component that cannot be read is refused in the result; `PatterningError` where none of them can.
    """
    functions = dict(observables or {})
    responses: dict[str, SampledResponse] = {}
    refused: dict[str, str] = {}
    chosen = [find_component(task.module, what) for what in components]
    settings: dict[str, Any] = {
        "localization": kernel.localization, "n_beta": kernel.n_beta, "observables": functions, "phi": phi,
        "component_loss": not functions,
    }  # fmt: skip
    for component in chosen:
        free = Restricted(task, anchor, component)
        try_gradient(free)
        try:
            warnings = try_slopes(free, kernel.localization, functions)
            if shards is None or pool is None:
                responses[component.name] = first_look(free, Probe(free, rows), **settings)
            else:
                responses[component.name] = sharded_look(free, rows, shards, pool, **settings)
            look = responses[component.name]
            responses[component.name] = replace(look, warnings=(*look.warnings, *warnings))
        except PatterningError as error:
            refused[component.name] = str(error)
        del free
        give_back(task.num_parameters)  # the next copy of the model would stand beside this one
    if not responses:
        raise PatterningError("; ".join(f"{name}: {why}" for name, why in refused.items()))
    samples = task.samples(rows)
    return ComponentResponse(
        by_component=responses, rows=samples.row, positions=samples.position,
        n_free={component.name: component.count(task.module) for component in chosen}, estimator="first-order",
        kernel=kernel, chains=replace(config, antithetic=False), fingerprint=task.fingerprint,
        phi=phi if isinstance(phi, str) else "rows", refused=refused,
    )  # fmt: skip
