r"""Preference pairs as a task: a reward model r of the Bradley-Terry model.

The loss of a pair is that of the preference which was stated,

.. math:: \ell = -\log \sigma(r(\mathrm{chosen}) - r(\mathrm{rejected}))

in nats (Bradley & Terry, Biometrika 39, 1952; Ouyang et al., arXiv 2203.02155, for language models). A pair that should
count against its own label is trained on with the label exchanged, which is bounded below, as a negative weight is not.
Where both rewards are equal the two have the same gradient.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning.core.arrays import as_mask
from patterning.core.batch import Batch, as_batch, count_rows, leaves, map_batch
from patterning.core.errors import PatterningError
from patterning.core.rows import RowSource
from patterning.core.task import Task

Reward = Callable[[nn.Module, Batch], Tensor]
"""(model, answers of b pairs) → their rewards, (b,) or (b, 1)."""
SIDES = ("chosen", "rejected")


def rewards_of(model: nn.Module, answers: Batch) -> Tensor:
    """What the model returns for `answers`: a tensor, or the `logits` of a Hugging Face model; (b,).

    Tokens that are padded on the left are moved there first, so that positions count from the first real one.
    """
    found = model(**_moved_to_the_left(answers)) if isinstance(answers, Mapping) else model(answers)
    rewards = found if isinstance(found, Tensor) else found["logits"] if isinstance(found, Mapping) else found[0]
    if rewards.ndim == 2 and rewards.shape[1] == 1:
        rewards = rewards[:, 0]
    if rewards.ndim != 1:
        raise PatterningError(
            f"the model returned {tuple(rewards.shape)}: a reward model returns one number an answer, (b,) or (b, 1) "
            "(num_labels=1); for other models give reward=, a function of (model, answers)"
        )
    return rewards


def _moved_to_the_left(answers: Mapping[str, Any]) -> dict[str, Any]:
    """Columns (b, t) turned until the first token that the attention mask names comes first."""
    mask = answers.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return dict(answers)
    first = (mask > 0).int().argmax(1, keepdim=True)
    places = (torch.arange(mask.shape[1], device=mask.device) + first) % mask.shape[1]
    return {
        name: values.gather(1, places) if isinstance(values, Tensor) and values.shape == mask.shape else values
        for name, values in answers.items()
    }


@dataclass(frozen=True)
class PreferenceLoss:
    """The loss of each pair, (b,) nats, as a task's `loss(model, batch)`; a batch has keys "chosen" and "rejected"."""

    reward: Reward = rewards_of

    def __call__(self, module: nn.Module, batch: Mapping[str, Batch]) -> Tensor:
        """-log σ(r(chosen) - r(rejected))."""
        return F.softplus(-self.margins(module, batch))

    def margins(self, module: nn.Module, batch: Mapping[str, Batch]) -> Tensor:
        """r(chosen) - r(rejected), (b,)."""
        first, second = (self.reward(module, batch[side]) for side in SIDES)
        return first.reshape(len(first)) - second.reshape(len(second))


class _Pairs:
    """Two data sets that are read by row number as one of pairs."""

    def __init__(self, chosen: RowSource, rejected: RowSource) -> None:
        self._sides = (chosen, rejected)

    def __len__(self) -> int:
        return len(self._sides[0])

    def __getitem__(self, row: int) -> dict[str, Any]:
        number = torch.tensor([row])
        return {
            side: map_batch(lambda values: values[0], source.take(number))
            for side, source in zip(SIDES, self._sides, strict=True)
        }


def pairs(chosen: object, rejected: object) -> Batch:
    """`chosen` and `rejected` answers, n rows of data of one kind each, as one set of pairs.

    Raises `PatterningError` unless both have the same number of rows and the same parts.
    """
    first, second = as_batch(chosen), as_batch(rejected)
    if count_rows(first) != count_rows(second):
        raise PatterningError(f"{count_rows(first)} chosen answers and {count_rows(second)} rejected ones are no pairs")
    if isinstance(first, RowSource) and isinstance(second, RowSource):
        return as_batch(_Pairs(first, second))
    if isinstance(first, RowSource) or isinstance(second, RowSource):
        raise PatterningError("chosen and rejected answers must be data of one kind: arrays both, or data sets both")
    if [(part.ndim, part.dtype) for part in leaves(first)] != [(part.ndim, part.dtype) for part in leaves(second)]:
        raise PatterningError("chosen and rejected answers must have the same parts, of the same types")
    return dict(zip(SIDES, (first, second), strict=True))


def preference_task(
    model: nn.Module,
    chosen: object,
    rejected: object,
    base_weights: object = None,
    *,
    reward: Reward = rewards_of,
    make: Callable[[int], nn.Module] | None = None,
    bfloat16: bool = False,
) -> Task:
    """A `Task` of n pairs of answers with the Bradley-Terry loss, (n,) nats.

    `chosen`, `rejected`: n answers each, as the model takes them: tensors, tokenizer batches (dicts, which the model is
    called with by name), or data sets. `reward(model, answers)`: rewards (b,); by default what the model returns. The
    rest is as for `Task`. Observables are the losses on named sets of pairs (`loss_on`).
    """
    return Task(model, PreferenceLoss(reward), pairs(chosen, rejected), base_weights, make=make, bfloat16=bfloat16)


def loss_on(chosen: object, rejected: object, reward: Reward = rewards_of) -> Callable[[nn.Module], Tensor]:
    """model → its mean loss on these pairs in nats: an observable, or a measure."""
    batch, loss = pairs(chosen, rejected), PreferenceLoss(reward)
    return lambda model: loss(model, batch).mean()


def accuracy_on(chosen: object, rejected: object, reward: Reward = rewards_of) -> Callable[[nn.Module], float]:
    """model → the share of these pairs in which the chosen answer has the higher reward (a tie counts half)."""
    batch, loss = pairs(chosen, rejected), PreferenceLoss(reward)

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            margin = loss.margins(model, batch)
        return float(((margin > 0).double() + (margin == 0).double() / 2).mean())

    return accuracy


def exchange(chosen: object, rejected: object, swapped: Any) -> tuple[Batch, Batch]:
    """The answers with chosen and rejected exchanged in the pairs of `swapped` (n,) bool: `weights.swapped`."""
    both = pairs(chosen, rejected)
    if isinstance(both, RowSource):
        raise PatterningError("pairs of data sets are exchanged in the data sets themselves")
    mask = torch.from_numpy(as_mask("swapped", swapped, count_rows(both)))
    first, second = (leaves(both[side]) for side in SIDES)
    if any(a.shape != b.shape for a, b in zip(first, second, strict=True)):
        raise PatterningError("to exchange answers, pad chosen and rejected ones to the same length")

    def mixed(ours: Batch, theirs: list[Tensor]) -> Batch:
        other = iter(theirs)

        def one(values: Tensor) -> Tensor:
            own = mask.to(values.device).reshape(-1, *[1] * (values.ndim - 1))
            return torch.where(own, next(other).to(values.device), values)

        return map_batch(one, ours)

    return mixed(both["chosen"], second), mixed(both["rejected"], first)


def exchanged(task: Task, swapped: Any) -> Task:
    """The task with the labels of the pairs in `swapped` (n,) bool exchanged; the rest is as it was."""
    if not isinstance(task.loss_fn, PreferenceLoss) or not isinstance(task.data, Mapping):
        raise PatterningError("labels can be exchanged in a task of preference_task with answers as tensors only")
    chosen, rejected = exchange(task.data["chosen"], task.data["rejected"], swapped)
    return preference_task(
        task.module, chosen, rejected, task.base_weights, reward=task.loss_fn.reward, make=task.make,
        bfloat16=task.bfloat16,
    )  # fmt: skip
