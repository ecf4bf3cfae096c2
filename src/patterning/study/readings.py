r"""Readings: ways to find which samples an outcome answers to, each a line where an experiment uses it.

All give a signed direction s: weight on samples with s > 0 is expected to move the main outcome up. Readings around
solutions are in `readings_of_solutions`; these here are of training itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from patterning.core.arrays import Floats
from patterning.core.flat import evaluate
from patterning.intervention.solve import solve
from patterning.response.ensemble import ensemble_susceptibility
from patterning.response.groups import cluster_samples, group_means
from patterning.response.retraining import half_splits, split_weights, training_response
from patterning.response.susceptibility import rank_correlation, step_up
from patterning.study.bench import Bench, Found
from patterning.study.subject import Runs
from patterning.study.training import Planned


@dataclass(frozen=True)
class OverRuns:
    """Covariance over the pilot runs of the outcome with the loss on each sample, at the end or at kept steps.

    It is χ over an ensemble of runs (`response.ensemble`). `groups`: averaged within that many clusters of samples that
    the pilots found alike; 0: sample by sample.
    """

    steps: Sequence[int] = ()
    groups: int = 0

    def read(self, name: str, bench: Bench) -> Found:
        """Refused where the even and the odd runs do not agree."""
        subject, runs = bench.subject, bench.pilots[""]
        measure = subject.outcomes[0].measure
        losses = np.stack([_losses(bench, runs, step) for step in (self.steps or [max(runs.kept)])])
        q, free = subject.samples.weight, subject.free.ravel()
        response = ensemble_susceptibility(measure, runs.measures[measure], losses.mean(0), q)
        chi, halves = response.chi[0].copy(), response.halves[:, 0].copy()
        if self.groups:
            profiles = np.log(losses[:, :, free].reshape(-1, int(free.sum())).T + 0.01)
            members = cluster_samples(profiles - profiles.mean(0), self.groups)
            for row in (chi, *halves):
                row[free] = group_means(row[free], members, q[free])
        reliability = step_up(rank_correlation(halves[0, free], halves[1, free]))
        refused = None
        if not reliability >= bench.min_reliability:
            refused = f"χ over {len(runs)} runs has reliability {reliability:.2f}"
        what = "covariance of the outcome with the loss on each sample, over unweighted pilot runs"
        return Found(
            bench.direction(name, what, chi, refused=refused, reliability=reliability, runs=len(runs)),
        )


@dataclass(frozen=True)
class OfTraining:
    """The response of training itself: the outcome of pilot pairs with groups of samples weighted up and down.

    Every split of the subject's groups into halves (`response.retraining`), `seeds_per_split` pairs of runs each, by
    log weights ± `step`. Groups that are not free are left alone.
    """

    seeds_per_split: int = 1
    step: float = 0.85

    def read(self, name: str, bench: Bench) -> Found:
        """Refused where the share of noise in χ is too large."""
        subject = bench.subject
        q, free = subject.samples.weight, subject.free.ravel()
        names = [group for group, mask in subject.groups.items() if mask[free].any()]
        groups = np.full(len(q), -1, dtype=np.int64)
        for g, group in enumerate(names):
            groups[subject.groups[group] & free] = g
        signs = np.repeat(half_splits(len(names)), self.seeds_per_split, axis=0)
        weights = np.array([[split_weights(side * row, groups, q, self.step) for side in (1, -1)] for row in signs])
        seeds = bench.seeds.pairs[: len(weights)]
        plan = {
            f"pair-{i}": Planned(list(pair.reshape(2, *subject.base_weights.shape)), [seed, seed])
            for i, (seed, pair) in enumerate(zip(seeds, weights, strict=True))
        }
        runs = bench.train(plan, "response of training, pilot pairs")
        measure = subject.outcomes[0].measure
        outcomes = np.stack([pair.measures[measure] for pair in runs.values()])
        response = training_response(outcomes, weights, groups, q)
        refused = None
        if not response.reliability >= bench.min_reliability:
            refused = f"the response has reliability {response.reliability:.2f} over {response.pairs} pairs of runs"
        chi = np.where(free, response.chi[np.maximum(groups, 0)], 0.0)
        s = solve(chi[None], q, np.array([1.0]), 1.0, free=free).s
        what = "the outcome of pilot runs with groups of samples weighted up and down: a finite difference"
        return Found(
            bench.direction(
                name, what, s, refused=refused, reliability=response.reliability, runs=2 * response.pairs,
                groups=names, chi=response.chi.tolist(), standard_error=response.standard_error.tolist(),
            )
        )  # fmt: skip


def _losses(bench: Bench, runs: Runs, step: int) -> Floats:
    """Losses of every sample (runs, n) at a kept step."""
    task, flat = bench.subject.flat, torch.from_numpy(runs.kept[step]).to(bench.subject.device)
    return evaluate(task.losses, flat, len(task.base_weights)).double().cpu().numpy()
