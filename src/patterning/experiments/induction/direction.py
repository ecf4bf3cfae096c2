"""What weights are made from: a score for every training token, towards more of the structure."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterning.experiments.induction.config import Stage

LABELS = {
    "structure": "structure measure",
    "mode": "induction mode",
    "full": "full χ†",
    "first-mode": "largest other mode",
    "one-run": "structure measure, one run",
}
SMOOTH = "random-smooth "
"""Directions of this name and a seed are random linear functions of the activations: controls."""


@dataclass(frozen=True)
class Direction:
    """s (rows, t - 1) towards "more" on every training token, or why there is none (`summary["refused"]`).

    `less`, where there is one, takes the place of s for weights towards "less": -less, where that asks for more than
    the opposite of s (something else held).
    """

    name: str
    stage: Stage
    s: NDArray[np.float32] | None
    summary: dict[str, Any]
    less: NDArray[np.float32] | None = None

    def along(self, toward: str) -> NDArray[np.float32]:
        """Scores, high for "more", that weights towards `toward` are made from; only of a direction that stands."""
        assert self.s is not None
        return self.less if toward == "less" and self.less is not None else self.s
