"""The toy model of superposition as the subject of a study: noisy training that ends as a hexagon or a pentagon."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patterning.core.arrays import Bools, Floats
from patterning.core.errors import PatterningError
from patterning.core.rng import Stream, generator
from patterning.posterior.around import Landscape
from patterning.posterior.langevin import descend, walk
from patterning.posterior.sgld import SGLD
from patterning.study.solution_chains import SolvedSubject
from patterning.study.subject import Ints, Outcome, Rho, Runs
from patterning.tasks import superposition as toy

QUARTERS = ("μ 0-¼", "μ ¼-½", "μ ½-¾", "μ ¾-1")
GROUPS = tuple(f"feature {i + 1}, {quarter}" for i in range(toy.FEATURES) for quarter in QUARTERS)


@dataclass(frozen=True)
class SuperpositionSubject(SolvedSubject):
    """SGLD at nβ from N(0, `init_scale`²) under the prior N(0, 1), then `quiet_steps` of descent without noise.

    `targets`: the end states whose shares are the outcomes, in the order of the table.
    """

    targets: tuple[str, ...]
    n_beta: float
    learning_rate: float
    steps: int
    quiet_steps: int
    init_scale: float

    name = "superposition"
    seeds_at_once = 200
    classes = (np.array([0]), np.arange(1, len(toy.SOLUTIONS)))  # the hexagon alone, and the six pentagons

    @property
    def outcomes(self) -> tuple[Outcome, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether a run ends in a target."""
        return tuple(Outcome(one, long_name(one), "another shape", 0.0, 1.0, yes_or_no=True) for one in self.targets)

    @property
    def base_weights(self) -> Floats:
        """Alike for the 24 groups."""
        return np.full(toy.GROUPS, 1 / toy.GROUPS)

    @property
    def groups(self) -> Mapping[str, Bools]:
        """Each group of data by its name."""
        return dict(zip(GROUPS, np.eye(toy.GROUPS, dtype=bool), strict=True))

    def text(self, sample: int) -> str:
        """A group's feature and quarter of μ."""
        return GROUPS[sample]

    def train(self, rho: Rho, seeds: Sequence[int], keep: Sequence[int], scratch: Path) -> Runs:
        """All seeds at once; the curve "w" (r, 1, 18) holds the final parameters."""
        del keep, scratch  # a job takes seconds; a killed one is run again whole
        gradient = toy.gradient_under(np.asarray(rho, dtype=np.float64))
        start = self.init_scale * np.stack([generator(s, Stream.INIT).standard_normal(toy.PARAMETERS) for s in seeds])
        kernel = SGLD(n_beta=self.n_beta, localization=1.0, step_size=2 * self.learning_rate / self.n_beta)
        noisy = walk(gradient, start, np.zeros(toy.PARAMETERS), kernel, [(s, 0) for s in seeds], self.steps)
        w = descend(gradient, noisy, toy.RATE, self.quiet_steps)
        overflowed = int((~np.isfinite(w).all(axis=1)).sum())
        if overflowed:
            raise PatterningError(f"{overflowed} of {len(seeds)} training runs overflowed: lower train.learning_rate")
        states = toy.end_states(w)
        hits = {name: (states == toy.SOLUTIONS.index(name)).astype(np.float64) for name in self.targets}
        return Runs(hits, np.array([self.steps]), {"w": w[:, None]})

    @property
    def landscape(self) -> Landscape:
        """The unweighted loss."""
        gradient = toy.gradient_under(np.ones(toy.GROUPS))
        return Landscape(gradient, toy.group_losses, toy.end_states, toy.SOLUTIONS, toy.RATE, steps=200)

    def minima(self) -> Floats:
        """Of the seven solutions."""
        return toy.find_minima()

    def end_states(self, runs: Runs) -> Ints:
        """By which features are live."""
        return toy.end_states(runs.curves["w"][:, -1])


def long_name(solution: str) -> str:
    """A solution in words; features count from 1."""
    return solution if solution == "hexagon" else f"pentagon with feature {solution[-1]} dead"
