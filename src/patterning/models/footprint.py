"""How much memory a task's computation takes for each sample, measured on one row and without a copy of the model."""

import torch
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.models.components import Component


def graph_bytes(task: Task, component: Component) -> float:
    """Bytes that one sample of the data keeps between the forward and the backward pass of a component's gradient.

    What autograd saves of the layers from the component on, counted over one row; parameters are not counted. 0 where
    the loss has no gradient in the component.
    """
    # Views of the module's own parameters: those of the component require a gradient, and no other.
    named = {
        name: p.detach().requires_grad_() if name in component.masks else p.detach()
        for name, p in task.module.named_parameters()
    }
    held = {p.untyped_storage().data_ptr() for p in task.module.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = (task.base_weights > 0).nonzero()[:1, 0]
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses, _ = task.answer(rows, named)
    except (PatterningError, RuntimeError):  # torch.func.grad in a loss lets nobody see what is kept
        return 0.0
    return sum(seen.values()) / max(1, losses.numel())
