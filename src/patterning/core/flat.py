"""What every later stage needs to know of a task: weighted samples, a loss for each, and how to start a model."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class FlatTask(Protocol):
    """A data set with its model. Parameters are flat rows `(r, P)`, one row a replica."""

    @property
    def base_weights(self) -> Tensor:
        """q, float64 (n,), summing to 1."""
        ...

    @property
    def draws(self) -> Tensor:
        """The data as it was drawn: sample numbers, int64 (N,), each sample j about N q_j times; epochs permute it."""
        ...

    def init(self, seeds: Sequence[int]) -> Tensor:
        """Fresh parameters (r, P) float32, one row a seed."""
        ...

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        """Loss in nats of samples `index` (r, b) under parameters `flat` (r, P): (r, b)."""
        ...


LossesFn = Callable[[Tensor, Tensor], Tensor]
"""`FlatTask.losses`, or the same for a probe set."""


def evaluate(losses: LossesFn, flat: Tensor, count: int, chunk: int = 512) -> Tensor:
    """Losses of samples 0..count-1 under every replica, (r, count), without gradients, in chunks of a fixed size.

    Replicas are looped: a chunk alone fills the device, and the numbers do not depend on who else is in the batch.
    """
    with torch.no_grad():
        return torch.stack(
            [
                torch.cat(
                    [
                        losses(row[None], torch.arange(i, min(i + chunk, count), device=flat.device)[None])[0]
                        for i in range(0, count, chunk)
                    ]
                )
                for row in flat
            ]
        )
