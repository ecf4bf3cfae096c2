"""Modular addition: does a network that fits every training sum learn the rule, or the table? (Power et al., 2022.)

Training fits the table first, and the rule later. Weights that ask for the rule come from the free-energy gap between
checkpoints that hold the one and the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning.core.arrays import Floats
from patterning.core.rng import Stream, generator
from patterning.core.task import Task
from patterning.study.bench import Kind
from patterning.study.readings import OverRuns
from patterning.study.readings_of_solutions import Around, Gap, LossGap
from patterning.study.run import Study
from patterning.study.sampling import Sampling
from patterning.study.settings import StudySettings
from patterning.study.subject import FlatObservable, Outcome, Rho, Runs, Subject


class Adder(nn.Module):
    """Logits of a + b mod p from the sum of two embeddings, through one hidden layer."""

    def __init__(self, p: int, width: int = 64, embedding: int = 24) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Parameter(0.3 * torch.randn(p, embedding)), nn.Linear(embedding, width)
        self.out = nn.Linear(width, p, bias=False)

    def forward(self, pairs: Tensor) -> Tensor:
        """(b, 2) → (b, p)."""
        return self.out(torch.relu(self.hidden(self.embed[pairs].sum(-2))))


def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of each sum, (b,)."""
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


@lru_cache(maxsize=2)
def sums(p: int, share: float) -> tuple[Task, tuple[Tensor, Tensor]]:
    """The training sums as a task, and the others. No sum is in both parts the other way around."""
    pairs = torch.tensor([(a, b) for a in range(p) for b in range(a, p)])
    order, data = torch.from_numpy(generator(0, Stream.DATA).permutation(len(pairs))), (pairs, pairs.sum(1) % p)
    known, unseen = ((data[0][rows], data[1][rows]) for rows in order.tensor_split([int(share * len(pairs))]))
    return Task(Adder(p), loss, known, make=lambda seed: Adder(p)), unseen


@dataclass(frozen=True)
class AdditionSubject(Subject):
    """Full-batch AdamW on the weighted sums; measured, and kept where asked, at `measure_at`."""

    p: int
    share: float
    steps: int
    measure_at: tuple[int, ...]
    learning_rate: float = 3e-3
    weight_decay: float = 1.0
    name: str = "addition"
    seeds_at_once: int = 8
    outcomes: tuple[Outcome, ...] = (Outcome("held_out_accuracy", "rule", "table", 0.0, 1.0),)

    @property
    def flat(self) -> Task:
        """The training sums."""
        return sums(self.p, self.share)[0]

    @property
    def base_weights(self) -> Floats:
        """All alike."""
        return self.flat.base_weights.numpy()

    def observables(self) -> Mapping[str, FlatObservable]:
        """The mean loss on the sums that are held out."""
        (task, unseen), rows = sums(self.p, self.share), torch.arange(len(sums(self.p, self.share)[1][1]))
        return {"held_out_loss": lambda flat: task.run(task.named(flat), unseen, rows.expand(len(flat), -1)).mean(1)}

    def text(self, sample: int) -> str:
        """The sum."""
        return " + ".join(map(str, self.flat.data[0][sample].tolist()))

    def measure(self, flat: Tensor) -> dict[str, Floats]:
        """Accuracies on both parts; `table` is high where the training sums are known and the others are not."""
        task, unseen = sums(self.p, self.share)
        with torch.no_grad():
            known, other = (
                np.array([float((task.load(Adder(self.p), row)(x).argmax(-1) == y).float().mean()) for row in flat])
                for x, y in (task.data, unseen)
            )
        return {"held_out_accuracy": other, "train_accuracy": known, "table": known * (1 - other)}

    def train(self, rho: Rho, seeds: Sequence[int], keep: Sequence[int], scratch: Path) -> Runs:
        """Every seed a replica. A run takes seconds: a killed one starts again."""
        del scratch
        task = self.flat
        weights, flat = torch.from_numpy(np.asarray(rho)).float(), task.init(seeds).requires_grad_()
        optimizer = torch.optim.AdamW([flat], self.learning_rate, (0.9, 0.98), weight_decay=self.weight_decay)
        index, seen, kept = torch.arange(len(weights)).expand(len(seeds), -1), list[dict[str, Floats]](), {}
        for step in range(1, self.steps + 1):
            optimizer.zero_grad()
            (weights * task.losses(flat, index)).mean(1).sum().backward()
            optimizer.step()
            if step in self.measure_at:
                seen.append(self.measure(flat))
                kept |= {step: flat.detach().numpy().copy()} if step in keep else {}
        curves = {name: np.stack([part[name] for part in seen], axis=1) for name in seen[0]}
        return Runs({name: curve[:, -1] for name, curve in curves.items()}, np.array(self.measure_at), curves, kept)


class AdditionConfig(StudySettings):
    """Sums mod `p`, `share` of them known; claims train for `steps`, pilots for `pilot_steps`: of 100 … 4,500."""

    experiment: Literal["addition"] = "addition"
    p: int = 31
    share: float = 0.7
    steps: int = 1500
    pilot_steps: int = 4500
    sampling: Sampling


CONFIG, DEFAULT = AdditionConfig, "standard"
PRESETS = {DEFAULT: {
    "sampling": {"n_beta": 347.0, "localization": 100.0, "step_size": 1e-4, "batch_size": 64, "draws": 64},
    "pilots": 8, "seeds": 16, "directions": ("gap", "losses", "held-out", "runs"),
    "strengths": ({"policy": "rank-tilt", "alpha": 0.5},),
}}  # fmt: skip


def study(config: AdditionConfig) -> Study:
    """The gap of the two solutions, its part without sampling, the held-out loss, and the pilots' own differences."""
    marks = (100, 200, 300, 400, 800, 1500, 3000, 4500)
    at, late = (tuple(step for step in marks if step <= last) for last in (config.steps, config.pilot_steps))
    rule, table = Kind("held_out_accuracy", 0.97), Kind("table", 0.97)
    band = float(np.log(config.p))
    readings = {
        "gap": Gap(rule, table, config.sampling, band, ("rule", "table")),
        "losses": LossGap(rule, table, ("rule", "table")),
        "held-out": Around(table, {"held_out_loss": -1.0}, config.sampling, band, name_of_kind="table"),
        "runs": OverRuns(steps=(400,)),
    }
    pilots = AdditionSubject(config.p, config.share, config.pilot_steps, late)
    return Study(AdditionSubject(config.p, config.share, config.steps, at), readings, late, {"": pilots})
