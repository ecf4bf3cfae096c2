"""What the arms came to: evidence by the one rule, a table of plain values, and forecasts beside what happened."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from patterning.core.arrays import Floats
from patterning.core.plain import Document
from patterning.core.rng import Stream, generator
from patterning.response.susceptibility import rank_correlation
from patterning.study.arms import UNWEIGHTED, PlannedArm
from patterning.study.bench import Bench, Found
from patterning.study.forecasts import ForecastJob
from patterning.study.subject import Runs, Subject
from patterning.verification.assemble import ArmRuns, Range, assemble
from patterning.verification.evidence import Evidence
from patterning.verification.proportions import compare_shares

EXTREMES = 8
"""Samples of most and of least weight that a table names."""


def evidence_of(subject: Subject, arms: Sequence[PlannedArm], runs: Mapping[str, Runs], seeds: range) -> Evidence:
    """Evidence on the outcomes, the guarded measure, and every other measure that runs end with."""
    spans = {one.measure: Range(one.low, one.high, one.yes_or_no) for one in subject.outcomes}
    names = [*spans, *([subject.guarded] if subject.guarded else []), *runs[UNWEIGHTED].measures]
    ranges = {name: spans.get(name, Range()) for name in dict.fromkeys(names)}
    outcomes = [
        ArmRuns(
            arm.name, arm.kind if arm.kind in ("base", "arm", "control") else "extra",
            {name: runs[arm.name].measures[name] for name in ranges}, _closest_control(arm, runs), arm.wanted,
            {"kind": arm.kind, **arm.facts},
        )
        for arm in arms
    ]  # fmt: skip
    return assemble(outcomes, ranges, seeds)


def _closest_control(arm: PlannedArm, runs: Mapping[str, Runs]) -> str | None:
    """Of several permuted draws, the one that comes closest to what was asked: an arm must differ from each of them."""
    if len(arm.controls) < 2:
        return next(iter(arm.controls), None)
    measure, sign = next(iter(arm.wanted.items()))
    return max(arm.controls, key=lambda name: sign * runs[name].measures[measure].mean())


def table_of(bench: Bench, arms: Sequence[PlannedArm], runs: Mapping[str, Runs]) -> list[Document]:
    """Every arm: its weights by group and its extreme samples, and its curves."""
    return [
        {
            "name": arm.name, "kind": arm.kind, "wanted": dict(arm.wanted), "controls": list(arm.controls),
            "facts": dict(arm.facts), "seeds": list(arm.planned.seeds), "weight_by_group": _by_group(bench, arm),
            "extremes": _extremes(bench.subject, arm), "curves": _curves(bench.subject, runs[arm.name]),
        }
        for arm in arms
    ]  # fmt: skip


def _by_group(bench: Bench, arm: PlannedArm) -> dict[str, float] | None:
    subject = bench.subject
    if arm.shown is None or not subject.groups:
        return None
    q, rho = subject.base_weights.ravel(), np.asarray(arm.shown, dtype=np.float64).ravel()
    members = {name: mask.ravel() for name, mask in subject.groups.items() if q[mask.ravel()].any()}
    return {name: float((q * rho)[own].sum() / q[own].sum()) for name, own in members.items()}


def _extremes(subject: Subject, arm: PlannedArm) -> dict[str, list[Document]] | None:
    """The most and least weighted samples; among equal weights, the commoner first."""
    if arm.shown is None or arm.kind != "arm":
        return None
    q, rho = subject.base_weights.ravel(), np.asarray(arm.shown, dtype=np.float64).ravel()
    order = {"most": np.lexsort((-q, -rho)), "least": np.lexsort((-q, rho))}
    return {
        name: [{"sample": int(j), "text": subject.text(int(j)), "rho": float(rho[j])} for j in picks[:EXTREMES]]
        for name, picks in order.items()
    }


def _curves(subject: Subject, runs: Runs) -> Document:
    shown = [*(one.measure for one in subject.outcomes), *([subject.guarded] if subject.guarded else [])]
    return {
        "steps": runs.steps.tolist(),
        **{name: np.round(runs.curves[name], 5).tolist() for name in shown if name in runs.curves},
    }


@dataclass(frozen=True)
class Expectations:
    """What readings expected of each arm, before training: name of the reading → (arms, 3) value, low, high."""

    values: Mapping[str, Floats]
    found: Mapping[str, Found]

    def results(self, arms: Sequence[PlannedArm], runs: Mapping[str, Runs]) -> list[Document]:
        """Beside what happened, with intervals over seeds: of shares Pearson's r, else rank correlation and slope."""
        results = []
        for name, expected in self.values.items():
            one = self.found[name]
            values = [runs[arm.name].measures[one.measure] for arm in arms]
            told = {"reading": name, "measure": one.measure, "of_shares": one.of_shares}
            results.append(told | (_shares if one.of_shares else _compared)(expected, arms, values))
        return results


def foretold(bench: Bench, found: Mapping[str, Found], arms: Sequence[PlannedArm]) -> Expectations:
    """What each reading with a forecast expects of every arm. An arm of other weights for each seed has their mean.

    It is computed as a job, so that its file is older than those of the arms.
    """

    def mean(arm: PlannedArm) -> Floats:
        unlike = {id(rho): rho for rho in arm.planned.weights}
        return np.mean([np.asarray(rho, dtype=np.float64) for rho in unlike.values()], axis=0)

    forecasts = {name: one.forecast for name, one in found.items() if one.forecast is not None}
    if not forecasts:
        return Expectations({}, found)
    job = ForecastJob(forecasts, [mean(arm) for arm in arms], label="forecasts")
    return Expectations(bench.pool.compute([job], "forecasting every arm")[0], found)


def _told(expected: Floats, arms: Sequence[PlannedArm], values: Sequence[Floats]) -> list[Document]:
    return [
        {
            "name": arm.name, "kind": arm.kind, "expected": row.tolist(), "mean": float(own.mean()),
            "change": float((own - values[0][: len(own)]).mean()),
        }
        for arm, row, own in zip(arms, expected, values, strict=True)
    ]  # fmt: skip


def _shares(expected: Floats, arms: Sequence[PlannedArm], values: Sequence[Floats]) -> Document:
    """Pearson's r and errors, over the arms that the study made itself: unweighted, asked and permuted."""
    own = [i for i, arm in enumerate(arms) if arm.kind in ("base", "arm", "control")]
    pairs = min(len(values[i]) for i in own)
    hits = np.stack([values[i][:pairs] > 0.5 for i in own])
    agreement = {"arms": len(own), "pairs": pairs, **asdict(compare_shares(expected[own, 0], hits))}
    return {"arms": _told(expected, arms, values), "agreement": agreement}


def _compared(
    expected: Floats, arms: Sequence[PlannedArm], values: Sequence[Floats], resamples: int = 2000
) -> Document:
    """Over arms: Spearman's correlation and the least-squares slope of the change against the first arm, unweighted.

    Intervals resample the seeds. An arm of fewer seeds is compared with the unweighted runs of these seeds.
    """
    changes = [own - values[0][: len(own)] for own in values]
    predicted = expected[:, 0]
    unit = 1e-9 * float(np.abs(predicted).max())
    predicted = np.round(predicted / unit) * unit if unit > 0 else predicted  # what rounding tells apart is a tie
    result: Document = {"arms": _told(expected, arms, values)}
    if len(arms) < 4 or not np.ptp(predicted) > 0:
        return result
    rng, lengths = generator(0, Stream.BOOTSTRAP), sorted({len(own) for own in changes})
    ranks, slopes = [], []
    for _ in range(resamples):
        picks = {length: rng.integers(0, length, length) for length in lengths}  # one for all arms of these seeds
        draw = np.array([own[picks[len(own)]].mean() for own in changes])
        ranks.append(rank_correlation(predicted, draw))
        slopes.append(float(np.polyfit(predicted, draw, 1)[0]))
    mean = np.array([own.mean() for own in changes])
    return result | {
        "pairs": lengths,
        "rank_correlation": [rank_correlation(predicted, mean), *np.nanquantile(ranks, [0.025, 0.975]).tolist()],
        "slope": [float(np.polyfit(predicted, mean, 1)[0]), *np.quantile(slopes, [0.025, 0.975]).tolist()],
    }
