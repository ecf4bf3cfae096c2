"""Parentheses as the subject of a study: how it is trained under weights, and what of a run is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from patterning.core.arrays import Bools, Floats
from patterning.core.identity import digest
from patterning.core.store import Arrays
from patterning.study.subject import FlatObservable, Outcome, Rho, Runs, Subject
from patterning.tasks.parentheses import Parentheses, Strings, make_parentheses, name_rule
from patterning.training.checkpoint import load_state, save_state
from patterning.training.weighted import TrainConfig, advance, init_state

SAVE_EVERY = 1000
"""Steps of training between saved states: what a killed run can lose."""
LATE = 2 / 3
"""From this share of the steps on, a checkpoint is late."""


@dataclass(frozen=True)
class TaskSize:
    """Arguments of `make_parentheses`."""

    max_length: int
    draws: int
    layers: int
    heads: int = 4
    width: int = 64
    test_strings: int = 1000
    seed: int = 0
    distinct: bool = False


@lru_cache(maxsize=3)
def build_task(size: TaskSize, device: str = "cpu") -> Parentheses:
    """The task; built once in each process."""
    return make_parentheses(**vars(size)) if device == "cpu" else build_task(size).to(device)


@dataclass(frozen=True)
class ParenthesesSubject(Subject):
    """Measured at `measure_at` steps of training: OOD accuracy is 1 for Nested and 0 for Equal-Count.

    `free_labels`: which strings' weights may move; both labels keep their total weight. `id_floor`: the accuracy on
    the training law that weights must leave.
    """

    size: TaskSize
    settings: TrainConfig
    measure_at: tuple[int, ...]
    free_labels: tuple[bool, ...] = (True, False)
    id_floor: float = 0.97
    device: str = "cpu"
    seeds_at_once: int = 1
    name: str = "parentheses"
    outcomes: tuple[Outcome, ...] = (
        Outcome("ood_accuracy", "Nested", "Equal-Count", 0.0, 1.0),
        Outcome("named_nested", "Nested", "not Nested", yes_or_no=True),
        Outcome("named_equal_count", "Equal-Count", "not Equal-Count", yes_or_no=True),
    )

    @property
    def task(self) -> Parentheses:
        """Data and model."""
        return build_task(self.size, self.device)

    @property
    def flat(self) -> Parentheses:
        """The same, as samplers see it."""
        return self.task

    @property
    def base_weights(self) -> Floats:
        """q (n,)."""
        return self.task.base_weights.numpy()

    @cached_property
    def data_fingerprint(self) -> str:
        """Of the strings, their labels and how often each is drawn: models and training may differ."""
        train = self.task.train
        return digest(train.tokens, train.labels, self.base_weights)

    @property
    def free(self) -> Bools:
        """Strings of the labels that may move."""
        return np.isin(self.task.train.labels, self.free_labels)

    @property
    def strata(self) -> NDArray[np.int64]:
        """The label: each keeps its weight, so that no weighting moves the balance of the answers."""
        return self.task.train.labels.astype(np.int64)

    @property
    def guarded(self) -> str:
        """Accuracy on unseen strings of the training law."""
        return "id_accuracy"

    def keeps(self, way: str, guard: float, unweighted: float) -> bool:
        """At least the floor."""
        del way, unweighted
        return guard >= self.id_floor

    @property
    def groups(self) -> Mapping[str, Bools]:
        """Classes of strings."""
        return self.task.classes

    def text(self, sample: int) -> str:
        """The string and its label."""
        train = self.task.train
        return f"{train.text(sample)} {'TRUE' if train.labels[sample] else 'FALSE'}"

    def observables(self) -> Mapping[str, FlatObservable]:
        """Mean losses on the OOD set, and on the TRUE and the FALSE strings of the ID test."""
        task = self.task
        labels = {"true_loss": task.id_test.labels, "false_loss": ~task.id_test.labels}
        by_label = {name: _mean_loss(task, task.id_test, np.flatnonzero(of)) for name, of in labels.items()}
        return {"ood_loss": _mean_loss(task, task.ood_test, np.arange(len(task.ood_test))), **by_label}

    def for_sampling(self) -> "ParenthesesSubject":
        """The data and the model alone."""
        return replace(self, settings=TrainConfig(0), measure_at=())

    def train(self, rho: Rho, seeds: Sequence[int], keep: Sequence[int], scratch: Path) -> Runs:
        """Adam on the weighted loss (`training.weighted`), measured on the way; parameters are kept where asked."""
        task, last = self.task, self.settings.steps
        wanted, saves = {step for step in keep if step <= last}, set(range(SAVE_EVERY, last, SAVE_EVERY))
        state, seen = load_state(scratch, task.device) if scratch.exists() else (init_state(task, seeds), {})
        weights = torch.from_numpy(np.asarray(rho, dtype=np.float64))
        for stop in sorted({*self.measure_at, *wanted, *saves, last} - set(range(1, state.step + 1))):
            state = advance(task, self.settings, state, seeds, weights, stop)
            if stop in self.measure_at or stop == last:
                seen |= {f"{stop}:{name}": values for name, values in task.measure(state.flat).items()}
            if stop in wanted:
                seen[f"{stop}:kept"] = state.flat.cpu().numpy()
            if stop in saves:
                save_state(state, seen, scratch)
        return _as_runs(seen, last)


def _as_runs(seen: Arrays, last: int) -> Runs:
    """Curves, final measures, and what the late checkpoints say."""
    by_step: dict[int, dict[str, NDArray[np.float64]]] = {}
    for key, values in seen.items():
        step, _, name = key.partition(":")
        by_step.setdefault(int(step), {})[name] = values
    kept = {step: part.pop("kept").astype(np.float32) for step, part in by_step.items() if "kept" in part}
    steps = np.array(sorted(step for step, part in by_step.items() if part))
    curves = {name: np.stack([by_step[int(step)][name] for step in steps], axis=1) for name in by_step[last]}
    final = {name: values[:, -1] for name, values in curves.items()}
    late = steps >= LATE * last
    named = [[name_rule({key: float(curve[r, c]) for key, curve in curves.items()}) for c in range(len(steps))]
             for r in range(len(final["ood_accuracy"]))]  # fmt: skip
    for rule in ("nested", "equal_count"):
        hit = np.array([[name == rule for name in row] for row in named], dtype=np.float64)
        final[f"named_{rule}"] = hit[:, -1]
        final[f"late_{rule}"] = hit[:, late].mean(axis=1)
    final["late_ood_accuracy"] = curves["ood_accuracy"][:, late].mean(axis=1)
    return Runs(final, steps, curves, kept)


def _mean_loss(task: Parentheses, data: Strings, rows: NDArray[np.int64]) -> FlatObservable:
    index, losses = torch.from_numpy(rows).to(task.device), task.losses_on(data)
    return lambda flat: torch.stack([losses(row[None], index[None])[0].mean() for row in flat])
