"""Supervised learning as a task: inputs, targets, and a loss of outputs and targets."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from patterning.core.batch import Batch, as_batch
from patterning.core.devices import moved
from patterning.core.errors import PatterningError
from patterning.core.flat import LossesFn
from patterning.core.task import Task

LossFn = Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]
"""(outputs (b, ...), targets (b, ...)) → losses (b,) in nats, e.g. `cross_entropy` with `reduction="none"`."""


class ModuleTask(Task):
    """A `Task` of samples (inputs[j], targets[j]) and a loss of outputs and targets: supervised learning."""

    def __init__(
        self,
        module: nn.Module,
        loss_fn: LossFn,
        inputs: object,
        targets: object,
        base_weights: object = None,
        *,
        make: Callable[[int], nn.Module] | None = None,
    ) -> None:
        data = _pairs(inputs, targets)
        super().__init__(module, _OfOutputs(loss_fn), data, base_weights, make=make)
        if self.samples_per_row != 1:
            raise PatterningError(
                f"loss_fn gave {self.samples_per_row} losses for a sample: it must return one loss a sample, shape "
                "(b,) (reduction='none', then a mean over what a sample holds)"
            )

    def losses_on(self, inputs: object, targets: object) -> LossesFn:
        """Per-sample losses `(flat (r, P), index (r, b)) → (r, b)` on any data: `losses` of a probe set."""
        data = moved(_pairs(inputs, targets), self.device)
        return lambda flat, index: self.run(self._checked(flat, index), data, index)


@dataclass(frozen=True)
class _OfOutputs:
    """A loss of outputs and targets as a `BatchLoss`."""

    loss_fn: LossFn

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        return self.loss_fn(module(batch[0]), batch[1])


def _pairs(inputs: object, targets: object) -> Batch:
    pair = (as_batch(inputs), as_batch(targets))
    sizes = [len(part) if isinstance(part, Tensor) and part.ndim else 0 for part in pair]
    if 0 in sizes or sizes[0] != sizes[1]:
        shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in pair]
        raise PatterningError(f"inputs {shapes[0]} and targets {shapes[1]} are not n > 0 samples each")
    return pair
