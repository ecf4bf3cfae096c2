"""Functions of the user's module as functions of parameter rows, which is what samplers and retraining hold."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from patterning.core.answers import reason_of
from patterning.core.errors import PatterningError
from patterning.core.seen import Seen, same_values
from patterning.core.state import keep_attributes
from patterning.core.task import Task

ModuleFunction = Callable[[nn.Module], Tensor]
"""A number read off the module: a scalar tensor, differentiable in its parameters or not."""


class OfModule:
    """`function(module)` at parameter rows `flat` (r, P) of a task: (r,). Replicas are taken one after the other.

    The function is given a module of its own, at a copy of the row: it may set weights to zero, add hooks or change
    attributes, and the next call finds the module as it was. What it may not change are frozen parameters.
    """

    def __init__(self, task: Task, name: str, function: ModuleFunction) -> None:
        self.task, self.name, self.function = task, name, function

    def __call__(self, flat: Tensor) -> Tensor:
        """(r, P) → (r,); raises `PatterningError` where the function fails or returns no real scalar."""
        return torch.stack([self._of(row) for row in flat])

    def _of(self, row: Tensor) -> Tensor:
        values = {name: value[0].clone() for name, value in self.task.named(row[None]).items()}
        named = {f"module.{other}": values[name] for name in values for other in self.task.all_names(name)}
        own = _OWN.get(self)
        if own is None:
            own = _OWN[self] = _OwnModule(self.task.module, self.name)
        called = _WithFunction(own.module, self.function)
        try:
            grad = torch.set_grad_enabled(torch.is_grad_enabled())  # afterwards it is what it was
            with grad, keep_attributes(own.module, self.task.trial.changing), sdpa_kernel(SDPBackend.MATH):
                value = functional_call(called, named, (), tie_weights=False)
        except PatterningError:
            raise
        except Exception as error:
            raise PatterningError(
                f"observable {self.name!r} cannot be evaluated ({type(error).__name__}: {reason_of(error)}): "
                f"{_remedy(str(error))}"
            ) from error
        finally:
            own.look_after()
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            what = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            words = " (the parameters that it is given require no gradient: a filter by requires_grad leaves none)"
            hint = "" if isinstance(value, Tensor) else words
            raise PatterningError(
                f"observable {self.name!r} returned {what}: it must return a real scalar tensor{hint}"
            )
        if value.device != row.device:
            raise PatterningError(
                f"observable {self.name!r} returned a number on {value.device}, and the module is on {row.device}: "
                "keep it there"
            )
        return value.reshape(())


def _remedy(error: str) -> str:
    """What to do about an observable that fails with such words."""
    if "does not require grad" in error or "One of the differentiated Tensors" in error:
        return "its module's parameters do not require a gradient; take derivatives by torch.func.grad"
    if "deepcopy" in error:
        return (
            "a copy of the module would cut its parameters from the gradient: call the module itself, or, at other "
            "parameters, torch.func.functional_call(module, values, inputs)"
        )
    if "dtype" in error:
        return "modules are run in float32: give it data of that type"
    return "it is given the module and must leave its parameters and submodules where they are"


class _OwnModule:
    """The module that an observable is given: it shares the task's parameters, and nothing else.

    Of these the trainable ones are out of reach, as a row stands in for them. Where a call leaves something behind, the
    next one gets a new copy; where it writes into a frozen parameter, it is refused.
    """

    def __init__(self, original: nn.Module, name: str) -> None:
        self._original, self._name = original, name
        self._checked = self._always_new = False
        self._renew()

    def _renew(self) -> None:
        # The first call gets copies of frozen parameters as well: what is written through `.data` shows in values only.
        shared = [p for p in self._original.parameters() if self._checked or p.requires_grad]
        self.module = deepcopy(self._original, {id(p): p for p in shared})
        self._parts = [(part, Seen(vars(part))) for part in self.module.modules()]
        self._frozen = {
            name: (p, p._version) for name, p in self._original.named_parameters() if not p.requires_grad
        }  # fmt: skip

    def look_after(self) -> None:
        """After a call: see to it that the next one finds the module as it was."""
        changed = [name for name, (p, version) in self._frozen.items() if p._version != version]
        if not self._checked:
            own = dict(self.module.named_parameters())
            changed = [
                name for name, (p, _) in self._frozen.items() if name not in own or not same_values(p, own[name])
            ]
            buffers = dict(self.module.named_buffers())
            self._always_new = any(
                name not in buffers or not same_values(value, buffers[name])
                for name, value in self._original.named_buffers()
            )
        stale = not self._checked or self._always_new or any(seen.changed(vars(part)) for part, seen in self._parts)
        self._checked = not changed
        if stale or changed:
            self._renew()
        if changed:
            raise PatterningError(
                f"observable {self._name!r} changes the frozen parameter {changed[0]} in place: it must compute with a "
                "changed copy, or put back what it changes"
            )


_OWN: "WeakKeyDictionary[OfModule, _OwnModule]" = WeakKeyDictionary()
"""By observable. Not an attribute of it: it is no part of its key, and other processes make their own."""


class _WithFunction(nn.Module):
    """A module with a function of it on top."""

    def __init__(self, module: nn.Module, function: ModuleFunction) -> None:
        super().__init__()
        self.module = module
        self.__dict__["function"] = function

    def forward(self) -> Any:
        return self.__dict__["function"](self.module)
