"""Functions of the user's module as functions of parameter rows, which is what samplers and retraining hold."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from patterning.core.errors import PatterningError
from patterning.core.state import keep_attributes
from patterning.core.task import Task

ModuleFunction = Callable[[nn.Module], Tensor]
"""A number read off the module: a scalar tensor, differentiable in its parameters or not."""


class OfModule:
    """`function(module)` at parameter rows `flat` (r, P) of a task: (r,). Replicas are taken one after the other."""

    def __init__(self, task: Task, name: str, function: ModuleFunction) -> None:
        self.task, self.name, self.function = task, name, function

    def __call__(self, flat: Tensor) -> Tensor:
        """(r, P) → (r,); raises `PatterningError` where the function returns no scalar."""
        return torch.stack([self._of(row) for row in flat])

    def _of(self, row: Tensor) -> Tensor:
        values = {name: value[0] for name, value in self.task.named(row[None]).items()}
        named = {f"module.{other}": values[name] for name in values for other in self.task.all_names(name)}
        called = _WithFunction(self.task.module, self.function)
        with keep_attributes(self.task.module, self.task.trial.changing), sdpa_kernel(SDPBackend.MATH):
            value = functional_call(called, named, (), tie_weights=False)
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise PatterningError(f"observable {self.name!r} returned {what}: it must return a scalar tensor")
        return value.reshape(())


class _WithFunction(nn.Module):
    """A module with a function of it on top."""

    def __init__(self, module: nn.Module, function: ModuleFunction) -> None:
        super().__init__()
        self.module = module
        self.__dict__["function"] = function

    def forward(self) -> Any:
        return self.__dict__["function"](self.module)
