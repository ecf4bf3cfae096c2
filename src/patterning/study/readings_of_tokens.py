r"""The direction of a structure measure, for every token and without sampling: first-order χ, averaged over runs.

First-order χ is the limit of strong localization, :math:`-\tfrac{1}{\gamma}\nabla\phi\cdot\nabla\ell_j`
(`response.slopes`), of measures of a structure: one that is to rise, and one that may be held. At one checkpoint of one
run it is exact for that checkpoint, and mostly about it: between runs of different seeds it correlates at 0.3 to 0.5.
So it is averaged over runs and checkpoints, as data attribution does (TRAK, arXiv 2303.14186, over models; TracIn,
arXiv 2002.08484, over checkpoints), in Gaussian rank scores, each reading counting alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.arrays import Floats
from patterning.core.plain import Document, Facts, Plain
from patterning.intervention.solve import solve
from patterning.intervention.weights import gaussian_scores
from patterning.response.slopes import loss_slopes, parameter_gradient
from patterning.response.susceptibility import rank_correlation, step_up
from patterning.study.bench import Bench, Found
from patterning.study.settings import Way
from patterning.study.subject import Ints, Parameters, Runs
from patterning.study.token_jobs import slopes_of_all
from patterning.study.tokens import Curves, Stages, TokenSubject

WAYS: tuple[Way, ...] = ("down", "up")
FEW = 64
"""Rows that reliability is judged on."""
AT_ONCE = 32


@dataclass(frozen=True)
class Pilot:
    """One unweighted run of a token-level subject: its place among the pilots, seed, curves and stages."""

    place: int
    seed: int
    curves: Curves
    stages: Stages
    runs: Runs

    def anchor(self, step: int) -> Parameters:
        """Parameters (P,) at a checkpoint."""
        return self.runs.kept[step][self.place]

    def last_steps(self, stage: str, count: int) -> list[int]:
        """The checkpoint of `stage` and those before it, `count` in all where there are as many past step 0."""
        steps = [int(step) for step in self.runs.steps if 0 < step <= self.stages.at[stage]]
        return steps[-count:] or [self.stages.at[stage]]


def token_subject(bench: Bench) -> TokenSubject:
    """The bench's subject, which must be one of tokens."""
    assert isinstance(bench.subject, TokenSubject)
    return bench.subject


def pilots_of(bench: Bench) -> list[Pilot]:
    """The pilot runs, each by itself."""
    subject, runs = token_subject(bench), bench.pilots[""]
    found = []
    for i, seed in enumerate(bench.seeds.pilots[: len(runs)]):
        curves = {name: values[i] for name, values in runs.curves.items()}
        found.append(Pilot(i, seed, curves, subject.stages(curves), runs))
    return found


@dataclass(frozen=True)
class _AtCheckpoint:
    """Gaussian scores (2 ways, n, t - 1), for less and for more of the measure, of one checkpoint of one run."""

    scores: NDArray[np.float32]
    facts: Facts


@dataclass(frozen=True)
class FirstOrder:
    """χ† for a rise of the measure `raised`; where the `ways` in `hold` are asked for, with the measure `held` held.

    Read at `stage` and the `checkpoints` - 1 before it, in the first `runs` pilots (None: all) of those in which the
    structure formed (of all, where it formed in none). Gradients of measures of the text are taken on `rows` training
    rows. `localization` γ and `n_beta` set the scale of χ and of s, not their order. `wanted`: the measures that are to
    move, by sign, as the study's evidence is to judge them; the main outcome, unless stated.
    """

    raised: str
    held: str
    stage: str
    rows: int
    localization: float
    n_beta: float
    hold: tuple[Way, ...] = ()
    checkpoints: int = 1
    runs: int | None = None
    wanted: Mapping[str, float] | None = field(default=None, hash=False)

    def read(self, name: str, bench: Bench) -> Found:
        """Refused where halves of the data that the gradients are taken on do not agree."""
        everything = replace(self, runs=None, wanted=None)
        read = bench.once(everything, lambda: everything.read_checkpoints(bench))
        some = self.pilots(bench)[: self.runs]
        places = [[(pilot.seed, step) for step in pilot.last_steps(self.stage, self.checkpoints)] for pilot in some]
        # (2 ways, runs, n, t - 1)
        by_run = np.stack([np.stack([read[key].scores for key in keys]).mean(0) for keys in places], axis=1)
        readings = [dict(read[key].facts) for keys in places for key in keys]
        less, more = by_run.mean(axis=1).astype(np.float64)
        facts = describe_runs(by_run[1], readings, self.raised)
        used = {pilot.seed for pilot in self.pilots(bench)}
        left_out = [str(pilot.seed) for pilot in pilots_of(bench) if pilot.seed not in used]
        if left_out:
            facts["notes"].append(f"left out, as the structure did not form: seeds {', '.join(left_out)}")
        refused = None
        if not facts["reliability"] >= bench.min_reliability:
            refused = f"χ of {self.raised} has reliability {facts['reliability']:.2f} over halves of its data"
        held = f", {self.held} held for {' and '.join(self.hold)}" if self.hold else ""
        what = f"more {self.raised}{held}: first-order χ, every token; {len(some)} runs, {len(readings)} checkpoints"
        up = bench.direction(name, what, more, refused=refused, wanted=self.wanted, **facts)
        if not self.hold:
            return Found(up)
        down = bench.direction(name, what, less, refused=refused, wanted=self.wanted, **facts)
        return Found(replace(up, opposite=down.reversed()))

    def pilots(self, bench: Bench) -> list[Pilot]:
        """The pilots in which the structure formed, or all."""
        pilots = pilots_of(bench)
        return [pilot for pilot in pilots if pilot.stages.formed] or pilots

    def read_checkpoints(self, bench: Bench) -> dict[tuple[int, int], _AtCheckpoint]:
        """Scores at every checkpoint of every pilot, by seed and step."""
        subject = token_subject(bench)
        rows = subject.stand_for_all(self.rows)
        anchors = {
            (pilot.seed, step): pilot.anchor(step)
            for pilot in self.pilots(bench)
            for step in pilot.last_steps(self.stage, self.checkpoints)
        }
        # (2 halves, measures, P): halves of the data, which tell χ's own error
        halves = {key: self.gradients(subject, anchor, rows) for key, anchor in anchors.items()}
        slopes = slopes_of_all(
            subject, bench.pool,
            {f"{seed}-{step}": (anchors[seed, step], part.mean(0).numpy()) for (seed, step), part in halves.items()},
        )  # fmt: skip
        few = subject.tokens[torch.from_numpy(rows[:FEW])]
        found = {}
        for (seed, step), anchor in anchors.items():
            reliability = self._reliability(subject, anchor, few, halves[seed, step])
            scores, facts = self._scores(slopes[f"{seed}-{step}"])
            found[seed, step] = _AtCheckpoint(scores, {"seed": seed, "step": step, "reliability": reliability, **facts})
        return found

    def gradients(self, subject: TokenSubject, anchor: Parameters, rows: Ints) -> Tensor:
        """Gradients (2 halves of the data, 2 measures, P) of `raised` and `held`."""
        network = subject.network(anchor)
        halves = []
        for half in range(2):
            measures = subject.structure(rows, half)
            parts = [[lambda part=part: part(network) for part in measures[key]] for key in (self.raised, self.held)]
            halves.append(torch.stack([parameter_gradient(network, own) for own in parts]))
        return torch.stack(halves)

    def _reliability(
        self, subject: TokenSubject, anchor: Parameters, tokens: Tensor, halves: Tensor
    ) -> dict[str, float]:
        """Split-half reliability of χ of each measure, from gradients of halves (2, measures, P), on a few rows."""
        network, both = subject.network(anchor), halves.flatten(0, 1)
        slopes = torch.cat([loss_slopes(network, part, both) for part in tokens.split(AT_ONCE)]).numpy()
        names = (self.raised, self.held)
        return {name: step_up(rank_correlation(slopes[:, i], slopes[:, 2 + i])) for i, name in enumerate(names)}

    def _scores(self, slopes: NDArray[np.float32]) -> tuple[NDArray[np.float32], Document]:
        """Gaussian scores (2 ways, …) of χ† for a rise by one standard deviation of the row of χ."""
        chi = -slopes.reshape(2, -1).astype(np.float64) / self.localization
        chi -= chi.mean(axis=1, keepdims=True)
        q = np.full(chi.shape[1], 1 / chi.shape[1])
        target = np.array([chi[0].std(), 0.0])
        scores: list[Floats] = []
        facts: dict[str, Plain] = {"correlation": float(np.corrcoef(chi)[0, 1])}
        for way in WAYS:
            used = slice(2 if way in self.hold else 1)
            solution = solve(chi[used], q, target[used], self.n_beta)
            scores.append(gaussian_scores(solution.s, q, np.ones(len(q), dtype=bool)))
            facts[way] = {"rank": solution.rank, "condition": solution.condition}
        return np.stack(scores).reshape(2, *slopes.shape[1:]).astype(np.float32), facts


def describe_runs(by_run: NDArray[np.float32], readings: Sequence[Document], raised: str) -> Document:
    """How reliable χ is at a checkpoint, and how far the runs' scores (r, …) agree: for tables."""
    flat = [s.astype(np.float64).ravel() for s in by_run]
    pairs = [rank_correlation(a, b) for a, b in combinations(flat, 2)]
    between = float(np.mean(pairs)) if pairs else None
    # Spearman-Brown from one run to the mean of all: how well it would correlate with the mean over as many others
    across = None if between is None else step_up(between, len(flat))
    notes = [] if between is None else [f"two runs agree at {between:.2f}, means over {len(flat)} at {across:.2f}"]
    return {
        "reliability": float(np.mean([one["reliability"][raised] for one in readings])),
        "between_runs": between, "across_runs": across, "readings": list(readings), "notes": notes,
    }  # fmt: skip
