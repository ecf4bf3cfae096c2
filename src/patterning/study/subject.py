"""What an experiment is about: data, a way to train under weights, and what of a trained model is measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import Bools, Floats
from patterning.core.errors import PatterningError
from patterning.core.flat import FlatTask
from patterning.core.identity import digest
from patterning.core.samples import Data, Samples
from patterning.core.store import Arrays

Ints = NDArray[np.int64]
Rho = NDArray[np.floating]
Parameters = NDArray[np.float32]
FlatObservable = Callable[..., Any]


@dataclass(frozen=True)
class Outcome:
    """A measure that weights are to move: `up` and `down` say what a high and a low value is called.

    `low`, `high`: the range that it can take. `yes_or_no`: it is 0 or 1 for a run, and its mean a share of runs.
    """

    measure: str
    up: str = "more"
    down: str = "less"
    low: float = -np.inf
    high: float = np.inf
    yes_or_no: bool = False


@dataclass(frozen=True)
class Runs:
    """What training left of r runs: final `measures` (r,) by name; `curves` (r, c, …) of measures at `steps` (c,).

    `kept`: step → parameters (r, P), at the steps that were asked for.
    """

    measures: Mapping[str, Floats]
    steps: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    curves: Mapping[str, Floats] = field(default_factory=dict)
    kept: Mapping[int, Parameters] = field(default_factory=dict)

    def __len__(self) -> int:
        """r."""
        return len(next(iter(self.measures.values())))

    def to_arrays(self) -> Arrays:
        """For a file."""
        parts: Arrays = {"steps": np.asarray(self.steps)}
        parts |= {f"measure:{name}": np.asarray(values, dtype=np.float64) for name, values in self.measures.items()}
        parts |= {f"curve:{name}": np.asarray(values) for name, values in self.curves.items()}
        return parts | {f"kept:{step}": values for step, values in self.kept.items()}

    @classmethod
    def from_arrays(cls, parts: Mapping[str, NDArray[Any]]) -> "Runs":
        """What `to_arrays` wrote."""

        def named(kind: str) -> dict[str, NDArray[Any]]:
            return {name.partition(":")[2]: part for name, part in parts.items() if name.startswith(f"{kind}:")}

        kept = {int(step): values for step, values in sorted(named("kept").items(), key=lambda item: int(item[0]))}
        return cls(named("measure"), parts["steps"], named("curve"), kept)

    @classmethod
    def joined(cls, parts: Sequence["Runs"]) -> "Runs":
        """Runs of several jobs, in order; measured at the same steps."""
        first = parts[0]

        def together(of: Callable[["Runs"], Mapping[Any, NDArray[Any]]]) -> dict[Any, NDArray[Any]]:
            return {name: np.concatenate([of(part)[name] for part in parts]) for name in of(first)}

        return cls(
            together(lambda runs: runs.measures), first.steps, together(lambda runs: runs.curves),
            together(lambda runs: runs.kept),
        )  # fmt: skip


class Subject:
    """Base of what an experiment is about. A subclass is a frozen dataclass of plain settings; data is built from them.

    It must have `name`, `outcomes` (the first is the main one), `base_weights` and `train`. The rest has defaults.
    """

    name: str
    outcomes: tuple[Outcome, ...]
    seeds_at_once: int = 1
    """Seeds that one job trains, where their weights are the same."""
    device: str = "cpu"
    """Where it is trained and sampled; a subject that has no field of this name computes on the CPU."""

    @property
    def base_weights(self) -> Floats:
        """q of every sample, (n,), or (n, t) for the tokens of n rows; sums to 1."""
        raise NotImplementedError

    def train(self, rho: Rho, seeds: Sequence[int], keep: Sequence[int], scratch: Path) -> Runs:
        """Train `seeds` under weights ρ (shaped like the base weights); keep parameters at the steps `keep`.

        A function of its arguments alone; `scratch` is a path at which it may save where it stands.
        """
        raise NotImplementedError

    @property
    def free(self) -> Bools:
        """Which samples' weights may move, shaped like the base weights; all, unless stated."""
        return np.ones(self.base_weights.shape, dtype=bool)

    @property
    def strata(self) -> Ints | None:
        """Groups (n,) that each keep their total weight (labels, say)."""
        return None

    @property
    def permuted_within(self) -> Ints | None:
        """Groups, shaped like the base weights, that the permuted control deals weights out within."""
        return self.strata

    @property
    def guarded(self) -> str:
        """The measure that weights must leave alone (accuracy on the training law, say); "" for none."""
        return ""

    def keeps(self, way: str, guard: float, unweighted: float) -> bool:
        """Whether weights that ask for `way` ("up" or "down") leave the guarded measure alone enough."""
        del way, guard, unweighted
        return True

    def guard_score(self, guard: float, unweighted: float) -> float:
        """How well the guarded measure was left alone, the higher the better; its own value, unless stated."""
        del unweighted
        return guard

    def placed(self, folder: Path) -> Self:
        """With what it needs laid out in the run's `folder` (a corpus, say), before anything else; nothing here."""
        del folder
        return self

    @property
    def flat(self) -> FlatTask:
        """Data and model as samplers see them; needed for readings that sample."""
        raise PatterningError(f"the subject {self.name!r} has no flat task: its readings cannot sample")

    def for_sampling(self) -> "Subject":
        """The subject without what sampling does not depend on (how long it is trained, say): keys of chains."""
        return self

    def observables(self) -> Mapping[str, FlatObservable]:
        """φ: parameters (r, P) → (r,), by name, for readings that sample."""
        return {}

    @property
    def groups(self) -> Mapping[str, Bools]:
        """Named groups of samples (n,), for tables and for the response of training."""
        return {}

    def text(self, sample: int) -> str:
        """A sample in words, for tables."""
        return f"sample {sample}"

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the settings, and with the code of the subject's module and what it reaches."""
        if not is_dataclass(self):
            return digest(self)
        return digest(type(self), [getattr(self, part.name) for part in fields(self)])

    @cached_property
    def data_fingerprint(self) -> str:
        """Changes with the samples; where a subject does not say more exactly, with anything of the subject."""
        return self.fingerprint

    @property
    def samples(self) -> Samples:
        """Every sample, as directions hold them."""
        q = self.base_weights
        rows, per_row = q.shape if q.ndim == 2 else (len(q), 1)
        return Samples(
            np.repeat(np.arange(rows), per_row), np.tile(np.arange(per_row), rows), q.ravel(), np.arange(q.size)
        )

    @property
    def data(self) -> Data:
        """What weights must know of the data."""
        q = self.base_weights
        table = q if q.ndim == 2 else q[:, None]
        return Data(len(q), table.shape[1], np.arange(len(q)), self.data_fingerprint, table)
