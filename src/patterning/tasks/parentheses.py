"""Parentheses balancing (Li et al., arXiv 2507.06445): two algorithms, both perfect on the training distribution.

TRUE strings are balanced; FALSE strings have unequal counts. NESTED (check the nesting) and EQUAL-COUNT (compare the
counts) agree on all of them and part on the out-of-distribution set, unbalanced strings of equal counts.

*Reconstruction*, where the paper is silent: a string drawn several times is one sample whose base weight q_j is its
share of the draws, or, with `distinct`, no string is drawn twice (the paper trains on 200,000 different ones); the ID
test holds strings that are not in the training set; the loss is the cross-entropy of the full five-logit head, the
answer the larger of logits 0 and 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.devices import DeviceLike, find_device
from patterning.core.errors import PatterningError
from patterning.core.flat import LossesFn
from patterning.core.rng import Stream, generator
from patterning.models.transformer import TransformerConfig, answer_logits, count_parameters, init_parameters, reach_of
from patterning.tasks import strings
from patterning.tasks.strings import Steps

START, PAD, END, OPEN, CLOSE = range(5)
Reach = tuple[int, int]
"""Of a minibatch: the longest of its token rows, and the most cells that the strings of one replica fill."""
CONSTANT_LOSS = float(np.log(2))
"""Loss of the best constant predictor, nats: half of the draws are TRUE."""


@dataclass(frozen=True)
class Strings:
    """n labelled strings, sorted by length. `steps` (n, max_length) int8 of +1/-1/0; `labels` (n,) bool, TRUE = 1.

    `device`: where `last`, `tokens` and `targets` are.
    """

    steps: Steps
    labels: NDArray[np.bool_]
    device: torch.device = field(default=torch.device("cpu"), compare=False)

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Symbols in each string, without START and END."""
        return np.count_nonzero(self.steps, axis=1).astype(np.int64)

    @cached_property
    def last(self) -> Tensor:
        """Position of END in each token row, (n,)."""
        return torch.from_numpy(self.lengths + 1).to(self.device)

    @cached_property
    def tokens(self) -> Tensor:
        """Rows START s END PAD…, int64 (n, max_length + 2)."""
        rows = np.full((len(self), self.steps.shape[1] + 2), PAD, dtype=np.int64)
        rows[:, 0] = START
        rows[:, 1:-1] = np.where(self.steps == 1, OPEN, np.where(self.steps == -1, CLOSE, PAD))
        rows[np.arange(len(self)), self.lengths + 1] = END
        return torch.from_numpy(rows).to(self.device)

    @cached_property
    def targets(self) -> Tensor:
        """Labels as int64 (n,)."""
        return torch.from_numpy(self.labels.astype(np.int64)).to(self.device)

    def text(self, row: int) -> str:
        """String number `row`."""
        return strings.render(self.steps[row])


@dataclass(frozen=True)
class Parentheses:
    """The task: training strings with base weights, two test sets and the model. Build it with `make_parentheses`."""

    model: TransformerConfig
    train: Strings
    base_weights: Tensor
    draws: Tensor
    id_test: Strings
    ood_test: Strings

    @property
    def num_parameters(self) -> int:
        """P."""
        return count_parameters(self.model)

    @property
    def device(self) -> torch.device:
        """Where the strings are, and everything is computed."""
        return self.train.device

    def to(self, device: DeviceLike) -> "Parentheses":
        """The same task on another device."""
        where = find_device(device)
        sets = {name: replace(getattr(self, name), device=where) for name in ("train", "id_test", "ood_test")}
        return self if where == self.device else replace(self, **sets)

    def init(self, seeds: Sequence[int]) -> Tensor:
        """Fresh parameters (r, P), one row a seed."""
        return init_parameters(self.model, seeds).to(self.device)

    def logits(self, flat: Tensor, data: Strings, index: Tensor, reach: Reach | None = None) -> Tensor:
        """Five logits (r, b, 5) for strings `index` (r, b) of a data set, whose `reach` may be known.

        The policy for the replica axis: one by one on a CPU, which a single replica fills (batching gained under a
        tenth) and where a replica's numbers then have the same bits in any company; together on a GPU.
        """
        if flat.device.type == "cpu" and len(flat) > 1:
            rows = zip(flat.unbind(0), index.unbind(0), strict=True)
            return torch.cat([self.logits(row[None], data, picks[None]) for row, picks in rows])
        last = data.last[index]
        width, cells = reach_of(last) if reach is None else reach
        return answer_logits(self.model, flat, data.tokens[index][:, :, :width], last, cells)

    def losses_on(self, data: Strings) -> LossesFn:
        """Per-string cross-entropy in nats on any data set of this task."""
        return lambda flat, index: self._losses(flat, data, index)

    def _losses(self, flat: Tensor, data: Strings, index: Tensor, reach: Reach | None = None) -> Tensor:
        logits = self.logits(flat, data, index, reach)
        return F.cross_entropy(logits.transpose(1, 2), data.targets[index], reduction="none")

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        """Per-string loss on the training set: (r, b) nats."""
        return self._losses(flat, self.train, index)

    def losses_within(self, flat: Tensor, index: Tensor, reach: Reach) -> Tensor:
        """`losses` of strings whose `reach` is known, so that nothing has to be read off the device."""
        return self._losses(flat, self.train, index, reach)

    def reaches(self, index: Tensor) -> list[Reach]:
        """The reach of each of k minibatches of training strings, (k, r, b), on the host."""
        last = torch.from_numpy(self.train.lengths + 1)[index]
        return list(zip((last.amax((1, 2)) + 1).tolist(), (last + 1).sum(2).amax(1).tolist(), strict=True))

    def answers(self, flat: Tensor, data: Strings, chunk: int = 512) -> NDArray[np.bool_]:
        """TRUE/FALSE answers (r, n) of every replica on a data set."""
        rows = []
        with torch.no_grad():
            for row in flat:
                parts = [
                    self.logits(row[None], data, torch.arange(i, min(i + chunk, len(data)), device=row.device)[None])[0]
                    for i in range(0, len(data), chunk)
                ]
                logits = torch.cat(parts)
                rows.append((logits[:, 1] > logits[:, 0]).cpu().numpy())
        return np.stack(rows)

    def measure(self, flat: Tensor) -> dict[str, NDArray[np.float64]]:
        """Structure measures for each replica, arrays (r,), none of which uses χ.

        `id_accuracy`, `ood_accuracy`, and `agree_<rule>`: the share of OOD strings answered as the rule answers.
        """
        ood = self.answers(flat, self.ood_test)
        result = {
            "id_accuracy": (self.answers(flat, self.id_test) == self.id_test.labels).mean(1),
            "ood_accuracy": (ood == self.ood_test.labels).mean(1),
        }
        for name, rule in strings.RULES.items():
            result[f"agree_{name}"] = (ood == rule(self.ood_test.steps)).mean(1)
        return result

    @cached_property
    def classes(self) -> dict[str, NDArray[np.bool_]]:
        """Named classes of training strings, boolean masks (n,): what the oracle arms know and the report shows."""
        steps, false = self.train.steps, ~self.train.labels
        dip, near = strings.dips(steps), np.abs(steps.sum(axis=1, dtype=np.int64)) == 2
        first = strings.is_first_symbol(steps)
        return {
            "TRUE": self.train.labels,
            "FALSE, never dips, near-equal": false & ~dip & near,
            "FALSE, never dips, far": false & ~dip & ~near,
            "FALSE, dips, starts (, near-equal": false & dip & first & near,
            "FALSE, dips, starts (, far": false & dip & first & ~near,
            "FALSE, starts ), near-equal": false & ~first & near,
            "FALSE, starts ), far": false & ~first & ~near,
        }


def name_rule(measures: dict[str, float], threshold: float = 0.9) -> str:
    """The rule a run is named after: the best-agreeing one, if it agrees on at least `threshold` of the OOD set."""
    best = max(strings.RULES, key=lambda rule: measures[f"agree_{rule}"])
    return best if measures[f"agree_{best}"] >= threshold else "none"


def make_parentheses(
    *,
    max_length: int,
    draws: int,
    layers: int,
    heads: int,
    width: int = 64,
    test_strings: int = 1000,
    seed: int = 0,
    distinct: bool = False,
) -> Parentheses:
    """Draw the data sets from `seed` and pair them with a model.

    `draws` training strings are drawn, half of them TRUE; distinct ones become samples with q_j = share of the draws.
    `distinct`: drawn on until there are `draws` different strings, each of which is one sample of the same weight.
    Raises `PatterningError` for lengths or counts that make no task.
    """
    if max_length % 2 or not 6 <= max_length <= 200:
        raise PatterningError(f"max_length is {max_length}: it must be an even number from 6 to 200")
    if draws < 2 or draws % 2:
        raise PatterningError(f"draws is {draws}: it must be a positive even number (half of the strings are TRUE)")
    if width % heads:
        raise PatterningError(f"width {width} is not a multiple of {heads} heads")
    rng = generator(seed, Stream.DATA)
    draw = _draw_distinct if distinct else _draw
    drawn = np.concatenate([draw(law, rng, draws // 2, max_length) for law in (_true, _false)])
    train, inverse, multiplicity = _distinct(drawn)
    known = {row.tobytes() for row in train.steps}
    test_rng = generator(seed, Stream.TEST_DATA)
    true = _unseen(_true, test_rng, test_strings // 2, max_length, known)
    false = _unseen(_false, test_rng, test_strings - len(true), max_length, known)
    ood = _unseen(_ood, test_rng, test_strings, max_length, known)
    return Parentheses(
        model=TransformerConfig(layers=layers, heads=heads, context=max_length + 2, width=width),
        train=train,
        base_weights=torch.from_numpy(multiplicity / multiplicity.sum()),
        draws=torch.from_numpy(inverse.astype(np.int64)),
        id_test=_distinct(np.concatenate([true, false]))[0],
        ood_test=_distinct(ood)[0],
    )


_Law = Callable[[np.random.Generator, int, int], Steps]


def _true(rng: np.random.Generator, count: int, max_length: int) -> Steps:
    return strings.draw_balanced(rng, strings.draw_lengths(rng, count, max_length), max_length)


def _false(rng: np.random.Generator, count: int, max_length: int) -> Steps:
    rows = strings.draw_uniform(rng, strings.draw_lengths(rng, count, max_length), max_length)
    return rows[~strings.is_equal_count(rows)]  # a balanced string has equal counts, so this is the paper's two tests


def _ood(rng: np.random.Generator, count: int, max_length: int) -> Steps:
    rows = strings.draw_permuted(rng, strings.draw_lengths(rng, count, max_length), max_length)
    return rows[~strings.is_nested(rows)]


def _draw(law: _Law, rng: np.random.Generator, count: int, max_length: int) -> Steps:
    """Exactly `count` rows from a law that rejects some."""
    rows = np.empty((0, max_length), dtype=np.int8)
    while len(rows) < count:
        rows = np.concatenate([rows, law(rng, count, max_length)])
    return rows[:count]


def _draw_distinct(law: _Law, rng: np.random.Generator, count: int, max_length: int) -> Steps:
    """`count` different rows from a law, in the order in which they first came up."""
    rows = np.empty((0, max_length), dtype=np.int8)
    for _ in range(500):
        rows = np.concatenate([rows, law(rng, count, max_length)])
        _, first = np.unique(rows, axis=0, return_index=True)
        rows = rows[np.sort(first)]
        if len(rows) >= count:
            return rows[:count]
    raise PatterningError(
        f"there are not {count} different strings up to length {max_length} to be found: {len(rows)} came up; lower "
        "draws or raise max_length"
    )


def _unseen(law: _Law, rng: np.random.Generator, count: int, max_length: int, known: set[bytes]) -> Steps:
    """`count` distinct rows that are not in `known`; fewer, where the law runs out of new strings."""
    found: dict[bytes, Steps] = {}
    for _ in range(200):
        for row in law(rng, count, max_length):
            if (key := row.tobytes()) not in known:
                found.setdefault(key, row)
        if len(found) >= count:
            break
    if not found:
        raise PatterningError("every possible test string is in the training set: raise max_length or lower draws")
    return np.stack(list(found.values())[:count])


def _distinct(rows: Steps) -> tuple[Strings, NDArray[np.int64], NDArray[np.int64]]:
    """Distinct strings sorted by length, the sample number of each row, and how often each sample occurs."""
    # int16: a length of up to 200 does not fit the int8 of the steps.
    keyed = np.concatenate([np.count_nonzero(rows, axis=1)[:, None].astype(np.int16), rows], axis=1)
    unique, inverse, counts = np.unique(keyed, axis=0, return_inverse=True, return_counts=True)
    steps = unique[:, 1:].astype(np.int8)
    return Strings(steps=steps, labels=strings.is_nested(steps)), inverse.reshape(-1), counts
