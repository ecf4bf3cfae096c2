"""Arms to compare a leading direction with: its weights without their meaning, plain labels, whole groups of the data.

All are made from the lead's weights at the strength that was chosen for it, so that they pull as hard.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import Bools, Floats
from patterning.core.errors import PatterningError
from patterning.intervention.direction import Direction
from patterning.study.arms import Rival
from patterning.study.bench import Bench, Found, weights_of
from patterning.study.settings import Strength, Way
from patterning.study.strength import weigh
from patterning.study.subject import Rho
from patterning.verification.controls import labelled_like, random_direction_like, thinned

Rivals = dict[str, Rival]
FACTORS = {"remove": 0.0, "double": 2.0}


@dataclass(frozen=True)
class Lead:
    """The leading direction at its strength; `seeds`: of arms beside it."""

    bench: Bench
    name: str
    direction: Direction
    seeds: range

    @classmethod
    def of(cls, bench: Bench, directions: Mapping[str, Direction], seeds: range) -> "Lead":
        """The first of the directions."""
        name, direction = next(iter(directions.items()))
        return cls(bench, name, direction, seeds)

    @property
    def strength(self) -> Strength:
        """For more; for less, where more is not asked for."""
        return self.bench.chosen.get((self.name, "up")) or self.bench.chosen[self.name, "down"]

    def rho(self, way: Way = "up") -> Rho:
        """Its weights."""
        return weigh(self.bench, self.direction, way, self.bench.chosen.get((self.name, way), self.strength)).rho

    def along(self, s: NDArray[np.floating], strength: Strength | None = None) -> Rho:
        """Weights along another direction s, at the lead's strength or another."""
        other = replace(self.direction, s=s.ravel().astype(np.float64), opposite=None)
        return weigh(self.bench, other, "up", strength or self.strength).rho


def random_directions(lead: Lead) -> Rivals:
    """The lead's scores, dealt to other samples, before they become weights; drawn anew for each seed."""
    drawn = [lead.along(random_direction_like(lead.direction.s, seed)) for seed in lead.seeds]
    return {"random direction": Rival(by_seed=tuple(drawn), kind="control")}


def random_functions(lead: Lead, functions: NDArray[np.floating]) -> Rivals:
    """Along random `functions` (seeds, …) of the samples (of activations, say): much the harder control."""
    drawn = [lead.along(s) for s in functions]
    return {"random function of activations": Rival(by_seed=tuple(drawn), kind="control")}


def other_reading(
    lead: Lead,
    name: str,
    read: Callable[[], Found],
    way: Way | str = "",
    strength: Strength | None = None,
    *,
    kind: str = "control",
    seeds: int | None = None,
) -> Rivals:
    """Along what another reading gives, or against it for the way "down"; none where it gives nothing."""
    try:
        found = read().direction
    except PatterningError:
        return {}
    s = -found.s if way == "down" else found.s
    return {} if found.refused else {name: Rival(lead.along(s, strength), kind=kind, way=way, seeds=seeds)}


def by_label(lead: Lead, name: str, label: Bools) -> Rivals:
    """Two weights, by a plain label (n, …), of the lead's effective sample size, more and less of it."""
    words: Sequence[tuple[Way, Literal["more", "less"]]] = (("up", "more"), ("down", "less"))
    found = {}
    for way, word in words:
        if (lead.name, way) in lead.bench.chosen:
            own = np.asarray(lead.rho(way), dtype=np.float64)
            flat = labelled_like(own.ravel(), label.ravel(), word)
            found[f"{name} → {word}"] = Rival(flat.reshape(own.shape), way=way)
    return found


def by_worth(lead: Lead, name: str, worth: Floats) -> Rivals:
    """The lead's weights (rows, t) sorted, the largest to the rows of the highest `worth` (rows,): one histogram."""
    return {name: Rival(deal_to_rows(lead.rho(), worth), way="up")}


def deal_to_rows(rho: Rho, worth: Floats) -> Rho:
    """The same weights (rows, t), the largest to the rows of the highest `worth` (rows,)."""
    result = np.empty_like(rho)
    result[np.argsort(worth, kind="stable")] = np.sort(rho, axis=None).reshape(rho.shape)
    return result


def without_groups(bench: Bench, groups: Mapping[str, Bools], changes: Sequence[str], seeds: int) -> Rivals:
    """Each group removed or doubled ("remove", "double"), whatever χ says; groups that hold all or nothing are not."""
    return {
        f"{change} {name}": Rival(weights_of(bench.subject, np.where(label, FACTORS[change], 1.0)).rho, kind="group",
                                  seeds=seeds)
        for name, label in groups.items()
        if label.any() and not label.all()
        for change in changes
    }  # fmt: skip


def at_strengths(lead: Lead, strengths: Sequence[Strength], names: Mapping[Way, str], seeds: int) -> Rivals:
    """The lead itself at other strengths, each way; `names` of the ways."""
    return {
        f"{lead.name} → {name}, {strength}": Rival(
            weigh(lead.bench, lead.direction, way, strength).rho, kind="strength", way=way, seeds=seeds
        )
        for strength in strengths
        for way, name in names.items()
    }


def single_random_directions(lead: Lead, count: int, seeds: int) -> Rivals:
    """As `random_directions`, but each draw is an arm of its own, so that it has a forecast of its own."""
    return {
        f"random direction {draw + 1}": Rival(
            lead.along(random_direction_like(lead.direction.s, draw)), kind="random", seeds=seeds
        )
        for draw in range(count)
    }


def thinned_groups(
    bench: Bench, groups: Mapping[str, Bools], among: Bools, factors: Sequence[float], seeds: int
) -> Rivals:
    """Each group at a factor of its weight; the samples `among` which it is thinned out keep their total weight."""
    q = bench.subject.base_weights
    return {
        f"{factor:g} × {name}": Rival(thinned(mask, q, among, factor), kind="class", seeds=seeds)
        for name, mask in groups.items()
        for factor in factors
    }
