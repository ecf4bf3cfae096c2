"""Chains around every solution of a small model whose solutions are all known, as jobs."""

from dataclasses import dataclass
from pathlib import Path

from patterning.core.arrays import Floats
from patterning.core.jobs import Job
from patterning.core.store import Arrays
from patterning.posterior.around import Landscape, Schedule, sample_around
from patterning.posterior.sgld import SGLD
from patterning.study.subject import Ints, Runs, Subject


class SolvedSubject(Subject):
    """A subject whose solutions are all known: it must have `n_beta`, `classes`, `landscape`, `minima`, `end_states`.

    `classes`: places of solutions that are alike by symmetry.
    """

    n_beta: float
    classes: tuple[Ints, ...]

    @property
    def landscape(self) -> Landscape:
        """Gradient, losses and solutions, unweighted."""
        raise NotImplementedError

    def minima(self) -> Floats:
        """The minimum at each solution, (B, P)."""
        raise NotImplementedError

    def end_states(self, runs: Runs) -> Ints:
        """The solution that each run ended in, (r,); B for none of them."""
        raise NotImplementedError


@dataclass(frozen=True)
class SolutionChains(Job):
    """The numbered `chains` around every solution: `minima` (B, P), `losses`, `states` (`posterior.around`)."""

    subject: SolvedSubject
    kernel: SGLD
    schedule: Schedule
    seed: int
    chains: tuple[int, ...]

    def run(self, scratch: Path) -> Arrays:
        """Sample; chains take seconds, a killed job is run again whole."""
        del scratch
        minima = self.subject.minima()
        losses, states = sample_around(
            self.subject.landscape, minima, self.kernel, self.schedule, self.seed, self.chains
        )
        return {"minima": minima, "losses": losses, "states": states}
