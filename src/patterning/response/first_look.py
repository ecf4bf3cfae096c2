r"""The first look: χ to first order in 1/γ, by one gradient and one forward derivative, without sampling.

For a Gaussian posterior of covariance I/γ in the component's coordinates,

.. math:: \chi_j(\phi) \to -\tfrac{1}{\gamma}\,\nabla\phi(w^*)\cdot\nabla[\ell_j - L](w^*)

It takes seconds where sampling takes minutes, and knows nothing of the curvature around w*: on a head of a small GPT-2
its rank correlation with pathwise χ was 0.82. At a minimum of L it says nothing of the component loss, whose gradient
is 0 there. It has no Monte Carlo error; its halves are made from the two halves of the rows that φ is a mean over,
where φ is one, and say how well these rows determine it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.store import Arrays, Unit, fingerprint
from patterning.core.task import Task
from patterning.core.workers import Workers
from patterning.models.components import Component
from patterning.models.probe import Probe, shard_rows
from patterning.models.restricted import ENOUGH_CELLS, Restricted
from patterning.response.adjoint import ModelObservable, ModelReading, mean_gradient
from patterning.response.one_component import PhiOf
from patterning.response.sample import COMPONENT_LOSS, SampledResponse
from patterning.response.susceptibility import Susceptibility


def first_look(
    free: Restricted,
    probe: Probe,
    *,
    localization: float,
    n_beta: float,
    observables: Mapping[str, ModelObservable],
    phi: PhiOf | Tensor = "data",
    component_loss: bool = True,
) -> SampledResponse:
    """First-order χ of one component for the probe's samples, as a `SampledResponse` of estimator "first-order".

    Raises `PatterningError` where no observable has a gradient in the component.
    """
    gradients = phi_gradients(free, probe, observables, phi, component_loss)
    tangents = {name: [along(free, probe, part) for part in parts] for name, parts in gradients.items()}
    at_anchor = probe.at_anchor.double().cpu().numpy()
    return looked(free, tangents, at_anchor, probe.samples.weight, localization=localization, n_beta=n_beta)


def looked(
    free: Restricted,
    tangents: Mapping[str, Sequence[np.ndarray]],
    at_anchor: np.ndarray,
    weights: np.ndarray,
    *,
    localization: float,
    n_beta: float,
) -> SampledResponse:
    """First-order χ from ∇φ·∇ℓ_j (n,) of each observable: of the whole of φ, and of its two halves."""
    rows = {
        name: [-(own - own @ weights) / localization if np.any(own) else own for own in parts]
        for name, parts in tangents.items()
    }
    wrong = [int(np.argmin(np.isfinite(own[0]))) for own in tangents.values() if not np.isfinite(own[0]).all()]
    if wrong:
        raise PatterningError(
            f"component {free.component.name!r}: the derivative of φ or of the loss of sample {wrong[0]} is NaN or "
            "infinite, though the loss is finite (as with -inf in a softmax): put large finite numbers, or torch.where "
            "before it"
        )
    if len(weights) == 1:
        raise PatterningError(
            f"component {free.component.name!r}: a single sample is probed, and χ is relative to the mean over "
            "those that are, so that it is 0: probe several"
        )
    if all(not np.any(row[0]) for row in rows.values()):
        raise PatterningError(
            f"component {free.component.name!r}: no observable has a gradient in it at w*, so that a first look sees "
            "nothing; sample it (estimator='auto')"
        )
    chi = np.stack([row[0] for row in rows.values()])
    halves = np.stack([np.stack([row[1 + half] for row in rows.values()]) for half in (0, 1)])
    response = Susceptibility(
        observables=tuple(rows),
        n_beta=n_beta,
        base_weights=weights,
        chi=chi,
        standard_error=np.abs(halves[0] - halves[1]) / 2,
        degrees_of_freedom=math.inf,
        halves=halves,
        mean_losses=at_anchor,
        mean_losses_error=np.zeros_like(at_anchor),
        by_chain=halves,
    )
    return SampledResponse(
        susceptibility=response,
        traces={name: np.zeros((0, 0)) for name in rows},
        diagnostics={},
        sample_diagnostics={},
        watched_traces=np.zeros((0, 0, 0)),
        excluded={},
        rise=0.0,
        estimator="first-order",
        note="a first look: to first order in 1/γ, without sampling",
    )


def phi_gradients(
    free: Restricted,
    probe: Probe | None,
    observables: Mapping[str, ModelObservable],
    phi: PhiOf | Tensor,
    with_loss: bool,
) -> dict[str, list[Tensor]]:
    """∇φ (P_C,) of every observable: whole, and of two halves of what it is a mean over (the same where unknown).

    Without a `probe`, the gradient of the loss of rows `phi` is summed a few rows at a time.
    """
    gradients: dict[str, list[Tensor]] = {}
    if with_loss:
        if phi == "data" if isinstance(phi, str) else False:
            rows = (free.base_weights > 0).nonzero()[:, 0]
            halves = [mean_gradient(free, rows[half::2]) for half in (0, 1)]
        elif probe is None:
            assert isinstance(phi, Tensor)
            rows = phi
            halves = [
                mean_gradient(free, rows[half::2]) if len(rows) > 1 else mean_gradient(free, rows) for half in (0, 1)
            ]
        else:
            rows = phi if isinstance(phi, Tensor) else torch.cat(probe.chunks).cpu()
            halves = [_mean_slope(Probe(free, rows[half::2])) if len(rows) > 1 else None for half in (0, 1)]
            halves = [part for part in halves if part is not None] or [_mean_slope(probe)] * 2
        mass = _masses(free, rows)
        gradients[COMPONENT_LOSS] = [(mass[0] * halves[0] + mass[1] * halves[1]) / sum(mass), *halves]
    for name, function in observables.items():
        slope = ModelReading(name, free, function)(free.anchor[None])[2][0]
        gradients[name] = [slope] * 3
    return gradients


def _masses(free: Restricted, rows: Tensor) -> tuple[float, float]:
    """What the even and the odd of `rows` weigh in a mean over all of them; rows count alike where none has a share."""
    rows, cells = rows.cpu(), free.task.sample_weights
    shares = free.base_weights.cpu()[rows].double()
    if not bool((shares > 0).any()):
        shares = torch.ones(len(rows)).double() if cells is None else cells.cpu()[rows].double().sum(1)
    return (float(shares[::2].sum()), float(shares[1::2].sum())) if len(rows) > 1 else (0.5, 0.5)


def _mean_slope(probe: Probe) -> Tensor:
    weights = torch.from_numpy(probe.samples.weight).to(probe.restricted.anchor.device)
    return probe.slope(probe.restricted.anchor[None], weights)[2][0]


def along(free: Restricted, probe: Probe, gradient: Tensor) -> np.ndarray:
    """∇φ · ∇ℓ_j, (n,)."""
    if not bool(gradient.any()):
        return np.zeros(len(probe))
    try:
        tangent = probe.along(free.anchor[None], gradient[None])[1][0]
    except PatterningError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"
        raise PatterningError(
            f"component {free.component.name!r}: the loss has no forward derivative, which a first look takes "
            f"({reason}); sample it instead: estimator='covariance'"
        ) from error
    return tangent.detach().double().cpu().numpy()


def shard_unit(*, reading: "ShardLook", scratch: Path) -> Arrays:
    """A shard of a first look: `tangents` (gradients, n) and `at_anchor` (n,)."""
    del scratch
    free = Restricted(reading.task, reading.anchor, reading.component)
    probe = Probe(free, reading.rows, 1, reading.of)
    gradients = torch.from_numpy(reading.gradients).to(free.anchor)
    tangents = np.stack([along(free, probe, gradient) for gradient in gradients])
    return {"tangents": tangents, "at_anchor": probe.at_anchor.double().cpu().numpy()}


@dataclass(frozen=True)
class ShardLook:
    """Probed `rows`, of `of` in all, and the `gradients` of φ (m, P_C) that their losses are differentiated along."""

    task: Task
    anchor: Tensor
    component: Component
    rows: Tensor
    of: int
    gradients: np.ndarray
    key: str

    @property
    def fingerprint(self) -> str:
        """`key` is the task's."""
        masks = {name: "all" if mask is None else mask.cpu().numpy() for name, mask in self.component.masks.items()}
        together = self.of * self.task.samples_per_row < ENOUGH_CELLS
        return fingerprint(self.key, self.anchor.cpu().numpy(), masks, self.rows.numpy(), together, self.gradients)


def sharded_look(
    free: Restricted,
    rows: Tensor,
    shards: int,
    pool: Workers,
    *,
    localization: float,
    n_beta: float,
    observables: Mapping[str, ModelObservable],
    phi: PhiOf | Tensor = "data",
    component_loss: bool = True,
) -> SampledResponse:
    """`first_look` of `rows` in shards, each a unit of work. χ of observables of the module has the same bits.

    The gradient of the component loss of the probed rows is summed in another order, and agrees up to rounding.
    """
    phi = rows if isinstance(phi, str) and phi == "probes" else phi
    gradients = phi_gradients(free, None, observables, phi, component_loss)
    kinds, places = list[Tensor](), dict[str, list[int]]()
    for name, parts in gradients.items():
        for part in parts:
            if not any(part is kind for kind in kinds):
                kinds.append(part)
        places[name] = [next(i for i, kind in enumerate(kinds) if kind is part) for part in parts]
    stacked, key = torch.stack(kinds).cpu().numpy(), free.task.fingerprint
    parts = [
        part for part in shard_rows(free, rows, 1, shards)
        if free.task.sample_weights is None or bool(free.task.sample_weights[part].any())
    ]  # fmt: skip
    work = [
        Unit("look", shard_unit, {"reading": ShardLook(
            free.task, free.whole_anchor, free.component, part, len(rows), stacked, key
        )}) for part in parts
    ]  # fmt: skip
    found = pool.compute(work, f"first look at {free.component.name}")
    tangents = np.concatenate([arrays["tangents"] for arrays in found], axis=1)
    at_anchor = np.concatenate([arrays["at_anchor"] for arrays in found])
    return looked(
        free, {name: [tangents[i] for i in own] for name, own in places.items()}, at_anchor,
        free.task.samples(rows).weight, localization=localization, n_beta=n_beta,
    )  # fmt: skip
