r"""First-order χ of any sample, as features for the predictor: slopes of all token losses along fixed directions.

With d_C the gradient of φ_C in the coordinates of component C at w*, the first-order part of χ_j(φ_C) is
:math:`-\tfrac{1}{\gamma} d_C \cdot \nabla \ell_j`: two passes for each component and row, without sampling. At a
checkpoint that is no minimum (a constant learning rate, a probe set of few rows) it is most of χ.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, jvp, vmap

from patterning.core.anchors import check_anchor
from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.models.components import ComponentLike
from patterning.models.language import LanguageModel, next_token_losses
from patterning.models.restricted import Restricted


def component_gradients(
    task: Task, anchor: Tensor, components: Sequence[ComponentLike], rows: Tensor, *, at_once: int = 64
) -> Tensor:
    """∇ of the mean loss of `rows` (r,) at `anchor` w* (P,) in each component's coordinates, 0 elsewhere: (k, P).

    For the φ of `component_response`, pass its probes. Raises `PatterningError` for no rows.
    """
    if not len(rows):
        raise PatterningError("a gradient needs at least one row")
    anchor = check_anchor(task, anchor)
    flat = anchor[None].clone().requires_grad_()
    total = torch.zeros_like(anchor)
    for part in rows.split(at_once):
        (slope,) = torch.autograd.grad(task.losses(flat, part[None]).sum(), flat)
        total += slope[0] / len(rows)
    found = []
    for component in components:
        free = Restricted(task, anchor, component)
        inside = free.expand(torch.full_like(free.anchor, torch.nan)[None])[0].isnan()  # which coordinates are free
        found.append(torch.where(inside, total, 0.0))
    return torch.stack(found)


def parameter_gradient(model: LanguageModel, parts: Sequence[Callable[[], Tensor]]) -> Tensor:
    """Gradient (P,) of the sum of `parts`, scalars of the model, each evaluated and released in turn.

    In the order of `named_parameters`; the model is left as it is.
    """
    own = list(model.parameters())
    total = torch.zeros(sum(p.numel() for p in own), device=own[0].device)
    for part in parts:
        total += torch.cat([slope.flatten() for slope in torch.autograd.grad(part(), own)])
    return total


def loss_slopes(model: LanguageModel, tokens: Tensor, directions: Tensor) -> Tensor:
    """Derivative (b·(t-1), k) of every next-token loss of `tokens` (b, t) along `directions` (k, P), at the model.

    A direction lies in the order of `named_parameters`. Two to three times the time of a pass for each. Raises
    `PatterningError` for directions of another length.
    """
    own = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in own.values()]
    if directions.ndim != 2 or directions.shape[1] != sum(sizes):
        raise PatterningError(f"directions {tuple(directions.shape)} are not (k, {sum(sizes)}) for this model")
    parts = directions.split(sizes, dim=1)
    tangents = {name: part.reshape(len(part), *p.shape) for (name, p), part in zip(own.items(), parts, strict=True)}

    def losses(parameters: dict[str, Tensor]) -> Tensor:
        return next_token_losses(lambda batch: functional_call(model, parameters, (batch,)), tokens).flatten()

    def slope(tangent: dict[str, Tensor]) -> Tensor:
        return jvp(losses, (own,), (tangent,))[1]

    with warnings.catch_warnings(), torch.no_grad():  # loading torch's own formulas warns of torch's own script
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        return vmap(slope)(tangents).T  # under vmap the losses themselves are computed once
