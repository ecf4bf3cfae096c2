"""Iterated patterning: a solution that the pilots do not hold is found by training under weights that ask for it.

A gap is read between two kinds of solutions. Where training as it is finds one of them missing or impure, the purest
checkpoints that there are of either kind tell already which samples each fits better. Weights along that difference of
losses ask for the impure kind; training under them, on the pilots' seeds, leads to purer checkpoints; and these are
read in the next round. Each round takes the next of the pilots' seeds: where one found nothing purer, the same seeds
under the same weights would give the same runs. No claim rests on a round: it only finds where the chains of a
reading start.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from patterning.core.errors import PatterningError
from patterning.core.plain import Document
from patterning.study.bench import ROUND, Bench, Kind, Solution
from patterning.study.readings_of_solutions import mean_losses
from patterning.study.settings import Rounds
from patterning.study.strength import weigh
from patterning.study.subject import Subject
from patterning.study.training import Planned, train_all

APART = 0.05
"""The worst pair of pilots differs by at least this much in how far it agrees with the first kind."""


@dataclass(frozen=True)
class Pair:
    """The two kinds of solutions that a study's readings are between, and what to call them."""

    up: Kind
    down: Kind
    names: tuple[str, str]


def purer_pilots(bench: Bench, subject: Subject, pair: Pair, rounds: Rounds, keep: Sequence[int]) -> list[Document]:
    """Add runs under weights to `bench.pilots`, a round at a time, until both kinds are pure; say what each round did.

    Each entry has `round`, `towards`, the agreement `before` and `after`, `runs`, their `steps` and the weights'
    `effective_sample_size`. Ends early where no checkpoint passes a kind's guard.
    """
    told: list[Document] = []
    for number in range(1, rounds.most + 1):
        try:
            ends = _worst(bench, pair) if rounds.from_worst and number == 1 else _purest(bench, pair)
        except PatterningError:  # a kind of which there is nothing yet: the readings say what was seen
            return told
        kinds, own = (pair.up, pair.down), bench.seeds.pilots
        impure = [i for i in (0, 1) if ends[i].measures[kinds[i].measure] < kinds[i].at_least]
        if not impure:
            return told
        direction = bench.direction(
            "round", "losses at the two ends", mean_losses(bench, ends[1:]) - mean_losses(bench, ends[:1])
        )
        for i in impure:
            weights = weigh(bench, direction, ("up", "down")[i], rounds.strength)
            label = f"{ROUND}{number} towards {pair.names[i]}"
            seeds = [own[(k + (number - 1) * rounds.seeds) % len(own)] for k in range(min(rounds.seeds, len(own)))]
            plan = {f"pilot-round-{number}-{i}": Planned.alike(weights.rho, seeds, keep)}
            (runs,) = train_all(subject, bench.pool, plan, label).values()
            bench.pilots, bench.round_seeds = {**bench.pilots, label: runs}, {**bench.round_seeds, label: seeds}
            told.append(
                {
                    "round": number,
                    "towards": pair.names[i],
                    "before": ends[i].measures[kinds[i].measure],
                    "after": bench.purest(pair.names[i], kinds[i]).measures[kinds[i].measure],
                    "runs": len(seeds),
                    "steps": int(runs.steps[-1]),
                    "effective_sample_size": weights.summary().effective_sample_size,
                }
            )
    return told


def _purest(bench: Bench, pair: Pair) -> tuple[Solution, Solution]:
    return bench.purest(pair.names[0], pair.up), bench.purest(pair.names[1], pair.down)


def _worst(bench: Bench, pair: Pair) -> tuple[Solution, Solution]:
    """The ends of two pilots that differ least, by at least `APART`, in their agreement with the first kind."""
    runs, kind = bench.pilots[""], pair.up
    last = runs.curves[kind.measure][:, -1]
    order = np.argsort(-last, kind="stable")
    gaps = [(float(last[a] - last[b]), int(a), int(b)) for n, a in enumerate(order) for b in order[n + 1 :]]
    apart = [row for row in gaps if row[0] >= APART]
    if not apart:
        raise PatterningError(f"no two pilots differ by {APART} in {kind.measure}")
    _, a, b = min(apart)
    up, down = (bench.checkpoint(name, "", r, len(runs.steps) - 1) for name, r in zip(pair.names, (a, b), strict=True))
    return up, down
