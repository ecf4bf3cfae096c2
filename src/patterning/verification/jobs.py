"""One training run of the user's and its measures, as a unit of work; what goes wrong is named by arm and seed."""

import copy
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from patterning.core.answers import reason_of
from patterning.core.errors import PatterningError
from patterning.core.store import Arrays
from patterning.intervention.data_weights import Weights
from patterning.verification.left_alone import kept_state
from patterning.verification.recheck import CHANGED, changed, digests
from patterning.verification.suspicion import STATE

Train = Callable[[Weights, int], Any]
"""(weights, seed) → a trained model, or whatever the measures take. It must depend on these two alone."""


LARGEST = 1e100
"""Measures beyond this cannot be squared."""


@dataclass(frozen=True)
class Measure:
    """A number read off what `train` returned, with the range that it can take.

    `function(result)` returns a float, or a bool for an outcome that happens or not (its share over seeds is shown,
    with intervals for shares). `low`, `high`: differences outside of what they allow are cut off the intervals. `unit`:
    what the number is in, for tables and plots ("nats"); by default the function's own `unit`, where it has one.
    """

    function: Callable[[Any], Any]
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be called, and a range that holds nothing."""
        if not callable(self.function):
            raise PatterningError(f"a measure is {type(self.function).__name__}: it must be a function of the result")
        for name, value in (("low", self.low), ("high", self.high)):
            if isinstance(value, bool) or not isinstance(value, int | float | np.number) or math.isnan(value):
                raise PatterningError(f"{name} of a measure is {value!r}: it must be a number")
        if not self.unit and isinstance(own := getattr(self.function, "unit", ""), str):
            object.__setattr__(self, "unit", own)
        if not self.low < self.high:
            raise PatterningError(f"a measure ranges from {self.low:g} to {self.high:g}: low must be below high")


@dataclass(frozen=True)
class TrainJob:
    """One training run and its measures; `fingerprint` covers the weights, the functions and the seed.

    `again`: a second run of what was run before, which also says what `train` changes outside of itself. `after_one`:
    where no run was made in this process, one is made before it.
    """

    train: Train
    measures: Mapping[str, Measure]
    weights: Weights
    seed: int
    key: str
    arm: str = ""
    again: bool = False
    after_one: bool = True

    @property
    def fingerprint(self) -> str:
        """What the numbers depend on."""
        return f"{self.key}, again" if self.again else self.key


@dataclass
class _Known:
    """Of this process: training runs that ended here."""

    runs: int = 0


_known = _Known()


def run_job(*, job: TrainJob, scratch: Path) -> Arrays:
    """Train, and measure: a unit of work. Names → float64 scalars; `is_bool.<name>` says which were yes or no.

    `train` gets weights of its own, which it may change, and global random generators that start from the seed. Of a
    module that it returns, the digest of the parameters is kept (`STATE`). Raises `PatterningError`, with arm and seed,
    for whatever goes wrong.
    """
    del scratch  # the user's loop resumes by itself, or starts again
    where = f"{f'arm {job.arm!r}, ' if job.arm else ''}seed {job.seed}"
    if job.again and job.after_one and not _known.runs:  # all were found on the disk: one must come before
        with _seeded(job.seed):
            _trained(job, where)
    with _seeded(job.seed):
        before = digests(job.train) if job.again else {}
        result = _trained(job, where)
        _known.runs += 1
        values: Arrays = {}
        if (state := _state(result)) is not None:
            values[STATE] = state
        if job.again:
            values[CHANGED] = changed(before, digests(job.train))
        values |= _all_measured(job.measures, result, where)
    return values


def _all_measured(measures: Mapping[str, Measure], result: Any, where: str) -> Arrays:
    """The measures of a result, which must leave it as they found it: the order of measures decides no number."""
    values: Arrays = {}
    state = kept_state(result) if len(measures) > 1 else None
    for name, measure in measures.items():
        value, yes_or_no = _measured(name, measure, result, where)
        values[name] = np.array(value)
        values[f"is_bool.{name}"] = np.array(float(yes_or_no))
        if state is not None:
            state.refuse_changes(result, f"measure {name!r}", where)
    return values


def _trained(job: TrainJob, where: str) -> Any:
    try:
        return job.train(copy.deepcopy(job.weights), job.seed)
    except PatterningError:
        raise
    except (Exception, SystemExit) as error:
        raise PatterningError(f"train failed ({where}): {type(error).__name__}: {reason_of(error)}") from error


def _measured(name: str, measure: Measure, result: Any, where: str) -> tuple[float, bool]:
    """The number, and whether it is a yes or no."""
    try:
        value = measure.function(result)
        if isinstance(value, torch.Tensor | np.ndarray):
            value = value.item()
    except PatterningError:
        raise
    except (Exception, SystemExit) as error:
        raise PatterningError(
            f"measure {name!r} failed ({where}): {type(error).__name__}: {reason_of(error)}"
        ) from error
    yes_or_no = isinstance(value, bool | np.bool_)
    is_number = isinstance(value, int | float | np.number) and not isinstance(
        value, np.complexfloating | np.timedelta64
    )
    if not yes_or_no and not is_number:
        raise PatterningError(f"measure {name!r} returned {type(value).__name__} ({where}): it must return a number")
    try:
        number = float(value)
    except OverflowError:  # 10**400
        number = math.inf
    if LARGEST < abs(number) < math.inf:
        raise PatterningError(
            f"measure {name!r} is {number:.3g} ({where}): differences of numbers past {LARGEST:g} have no error in "
            "float64; divide it"
        )
    if not math.isfinite(number):
        raise PatterningError(
            f"measure {name!r} is {number} ({where}): a pair without an outcome cannot be left out, as failing may "
            "depend on the weights; mend the run, or let the measure say what a failed run counts as"
        )
    if not measure.low <= number <= measure.high:
        raise PatterningError(
            f"measure {name!r} is {number:.4g} ({where}), outside of its range {measure.low:g} to {measure.high:g}"
        )
    return number, yes_or_no


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Global random generators that start from the seed, for training loops that read them; then as they were."""
    numbers, plain = np.random.get_state(), random.getstate()  # noqa: NPY002 - a user's loop may read them
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numbers)  # noqa: NPY002
        random.setstate(plain)


def _state(result: Any) -> np.ndarray | None:
    """The digest of a module's parameters (32,) uint8, None for any other result."""
    if not isinstance(result, nn.Module):
        return None
    sha, some = hashlib.sha256(), False
    for name, p in result.named_parameters():
        sha.update(name.encode())
        sha.update(p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        some = True
    return np.frombuffer(sha.digest(), dtype=np.uint8) if some else None
