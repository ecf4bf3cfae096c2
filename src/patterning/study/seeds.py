"""Which seeds an experiment uses for what: the one place that keeps them apart."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import combinations

from patterning.core.errors import PatterningError

NOTHING = range(0)


@dataclass(frozen=True)
class Seeds:
    """A range of seeds for each purpose; no seed serves two.

    `pilots`: unweighted runs, for every choice. `pairs`: runs under trial weights, for the response of training.
    `tuning`: runs that a strength is chosen on. `claims`: runs that nothing was chosen on, for the evidence.
    `chains`: of sampling, where it shares its random stream with training. Raises `PatterningError` where two overlap.
    """

    pilots: range
    claims: range
    tuning: range = NOTHING
    pairs: range = NOTHING
    chains: range = NOTHING

    def __post_init__(self) -> None:
        """Refuse ranges with a seed in common, and negative seeds."""
        for (a, first), (b, second) in combinations(self._ranges(), 2):
            if first and second and first.start < second.stop and second.start < first.stop:
                raise PatterningError(
                    f"seeds {first.start} to {first[-1]} are for {a}, and {second.start} to {second[-1]} for {b}: no "
                    "seed may serve two purposes; move one of the ranges"
                )
        for name, seeds in self._ranges():
            if seeds and seeds.start < 0:
                raise PatterningError(f"the seeds for {name} start at {seeds.start}: a seed must be >= 0")
        if len(self.claims) < 3:
            raise PatterningError(f"{len(self.claims)} claim seeds give no interval: use 3, or 6 for evidence")

    def _ranges(self) -> Iterator[tuple[str, range]]:
        for part in fields(self):
            yield part.name, getattr(self, part.name)
