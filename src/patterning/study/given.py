"""Directions and weights that outlive their run: a study writes them beside its results, and another may use them.

So weights that were read on one model can be tried on another (of fewer layers, say), over the same samples.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patterning.core.errors import PatterningError
from patterning.core.store import read_arrays, write_arrays
from patterning.intervention.direction import Direction
from patterning.study.arms import PlannedArm
from patterning.study.bench import Bench, Found, weights_of

FILE, FOLDER = "directions.safetensors", "weights"
_DATA = "fingerprint of the data"


@dataclass(frozen=True)
class Given:
    """The direction `name` that another run found on the same samples; `folder`: that run's."""

    folder: Path
    name: str

    def read(self, name: str, bench: Bench) -> Found:
        """Raises `PatterningError` where the run has no such direction, or had other data."""
        path = self.folder / FILE
        if not path.is_file():
            raise PatterningError(f"{self.folder} holds no {FILE}: a finished run writes it")
        parts = read_arrays(path)
        if bytes(parts.pop(_DATA)).decode() != bench.subject.data.fingerprint:
            raise PatterningError(f"the directions in {self.folder} are of other data, or of its rows in another order")
        if self.name not in parts:
            raise PatterningError(f"{self.folder} has no direction {self.name!r}: it has {', '.join(parts)}")
        what = f"the direction {self.name} that another run found on the same samples"
        return Found(bench.direction(name, what, np.asarray(parts[self.name], dtype=np.float64)))


def save_directions(folder: Path, directions: Mapping[str, Direction], fingerprint: str) -> None:
    """Each direction's s (n,), by name, with the fingerprint of the data."""
    arrays = {name: np.asarray(one.s, dtype=np.float64) for name, one in directions.items()}
    write_arrays(folder / FILE, arrays | {_DATA: np.frombuffer(fingerprint.encode(), dtype=np.uint8)})


def save_weights(folder: Path, bench: Bench, arms: Sequence[PlannedArm]) -> None:
    """ρ of every asked arm as `weights/ARM.parquet`, as `pt.Weights.from_parquet` reads it."""
    (folder / FOLDER).mkdir(exist_ok=True)
    for arm in arms:
        if arm.kind == "arm" and arm.shown is not None:
            file = re.sub(r"[^\w.]+", "-", arm.name).strip("-")
            weights_of(bench.subject, arm.shown, what=arm.name, **arm.facts).to_parquet(
                folder / FOLDER / f"{file}.parquet"
            )
