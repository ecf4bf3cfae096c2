"""What a run ended as, and paired differences between arms. None of it uses χ."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterning.core.store import Arrays
from patterning.experiments.induction.config import StructureSettings
from patterning.experiments.induction.pilot import curves_of
from patterning.verification.effects import paired_effect

Floats = NDArray[np.float64]
DRAWN = ("prefix_matching", "repeated_gap", "previous_token", "icl", "loss", "loss:induction", "loss:not induction")


@dataclass
class Arm:
    """One set of weights over its seeds. `control` names the arm of permuted weights it is compared with."""

    name: str
    label: str
    kind: str
    toward: str = ""
    control: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    runs: list[Arrays] = field(default_factory=list)


def onset_step(steps: NDArray[np.int64], curves: Mapping[str, Floats], structure: StructureSettings) -> float:
    """The step at which induction is there: prefix matching and repeated gap are both at their thresholds; inf: never.

    The smaller of the two ratios to the thresholds is followed; between the last checkpoint below 1 and the first one
    at or above it, its crossing is interpolated linearly in log(step).
    """
    ratio = np.minimum(
        curves["prefix_matching"] / structure.prefix_matching, curves["repeated_gap"] / structure.repeated_gap
    )
    if not (ratio >= 1).any():
        return float("inf")
    i = int((ratio >= 1).argmax())
    if i == 0:
        return float(steps[0])
    low, high = np.log(np.maximum(steps[i - 1 : i + 1].astype(np.float64), 1.0))
    part = (1 - ratio[i - 1]) / (ratio[i] - ratio[i - 1])
    return float(np.exp(low + part * (high - low)))


def outcomes(run: Arrays, structure: StructureSettings) -> dict[str, float]:
    """Final measures of a run, its `onset` (its last step where induction never came: `censored` is then 1)."""
    curves = curves_of(run)
    onset = onset_step(run["steps"], curves, structure)
    final = {name: float(values[-1]) for name, values in curves.items()}
    never = not np.isfinite(onset)
    # The checkpoints are even in the logarithm: the mean over them is the mean over log training time.
    return final | {
        "onset": float(run["steps"][-1]) if never else onset,
        "censored": float(never),
        "gap_area": float(curves["repeated_gap"].mean()),
    }


def effect(mine: Sequence[float], other: Sequence[float]) -> dict[str, Any] | None:
    """Paired difference over the seeds that both have, with an interval from 3 seeds on; None for undefined values."""
    pairs = min(len(mine), len(other))
    a, b = np.array(mine[:pairs]), np.array(other[:pairs])
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    if pairs < 3:
        return {"difference": float((a - b).mean()), "low": None, "high": None, "pairs": pairs}
    return asdict(paired_effect(a, b))


def compare(mine: Mapping[str, list[float]], other: Mapping[str, list[float]]) -> dict[str, Any]:
    """Paired effects on every measure; `onset_percent` and `not_induction_percent` relative to the other arm's run."""
    found = {name: effect(mine[name], other[name]) for name in mine}
    for name, measure in (("onset_percent", "onset"), ("not_induction_percent", "loss:not induction")):
        pairs = list(zip(mine[measure], other[measure], strict=False))
        percent = [100 * (a / b - 1) if b else float("nan") for a, b in pairs]
        found[name] = effect(percent, [0.0] * len(percent))
    return found


def tabulate(arms: Sequence[Arm], structure: StructureSettings, first_seed: int) -> list[dict[str, Any]]:
    """Every arm as plain values: measures by seed, curves by seed, effects against unweighted and permuted."""
    measured = {arm.name: _gather([outcomes(run, structure) for run in arm.runs]) for arm in arms}
    rows = []
    for arm in arms:
        mine, base, control = measured[arm.name], measured["unweighted"], measured.get(arm.control or "")
        rows.append(
            {
                "name": arm.name,
                "label": arm.label,
                "kind": arm.kind,
                "toward": arm.toward,
                "notes": arm.notes,
                "seeds": [first_seed + i for i in range(len(arm.runs))],
                "measures": mine,
                "curves": [{key: np.round(curves_of(run)[key], 5) for key in DRAWN} for run in arm.runs],
                "effect": compare(mine, base) if arm.name != "unweighted" else None,
                "against_permuted": compare(mine, control) if control is not None else None,
            }
        )
    return rows


def _gather(runs: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {name: [run[name] for run in runs] for name in runs[0]}


def judge(arms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The goals of the experiment, each with whether it was met and the numbers.

    less: final prefix matching under a quarter of the unweighted arm's at under 2 % change of the loss on other tokens;
    more: onset at least 20 % earlier; permuted and random weights do neither. Means over seeds decide.
    """
    base = next(arm for arm in arms if arm["name"] == "unweighted")
    goals = []
    for arm in arms:
        if arm["kind"] not in ("steered", "null"):
            continue
        own = arm["measures"]["prefix_matching"]
        share = float(np.mean(own) / np.mean(base["measures"]["prefix_matching"][: len(own)]))  # the same seeds
        loss, shift = (arm["effect"][name]["difference"] for name in ("not_induction_percent", "onset_percent"))
        cut, sooner = share < 0.25, shift <= -20
        less = f"{arm['label']}: final prefix matching {share:.2f} of unweighted, loss on other tokens {loss:+.1f} %"
        more = f"{arm['label']}: onset {shift:+.0f} %"
        if arm["kind"] == "null":
            goals.append({"goal": "neither", "met": not (cut or sooner), "says": f"{less}, onset {shift:+.0f} %"})
        elif arm["toward"] == "less":
            goals.append({"goal": "less", "met": cut and abs(loss) < 2, "says": less})
        else:
            goals.append({"goal": "more", "met": sooner, "says": more})
    return goals


def by_domain(arms: Sequence[Mapping[str, Any]], foretold: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What removing and doubling a domain did to the repeated gap along training, beside what χ foretold.

    `foretold`: readings of `domain_means`. `measured` is the change by more of the domain in the mean repeated gap over
    the log-spaced checkpoints, paired by seed: by doubling it, minus that by removing it, or half the difference of the
    two. A reading agrees where its sign is that of `measured`.
    """
    found = {arm["name"]: arm for arm in arms if arm["kind"] == "domain"}
    base = next((arm for arm in arms if arm["kind"] == "base"), None)
    rows = []
    for domain in dict.fromkeys(name.partition("-")[2] for name in found):
        up, down = (found.get(f"{way}-{domain}", base) for way in ("double", "remove"))
        assert up is not None and down is not None  # noqa: PT018 (no test)
        half = 0.5 if up is not base and down is not base else 1.0
        measured = effect(*([half * value for value in arm["measures"]["gap_area"]] for arm in (up, down)))
        assert measured is not None
        said = []
        for reading in foretold:
            own = reading["domains"][domain]
            toward = reading["sign"] * own["mean"]
            said.append(
                {"what": reading["what"], "stage": reading["stage"], **own,
                 "agrees": bool(toward * measured["difference"] > 0)}
            )  # fmt: skip
        change = {
            key: arm["effect"]["gap_area"] for key, arm in (("doubled", up), ("removed", down)) if arm is not base
        }
        rows.append({"domain": domain, **change, "measured": measured, "foretold": said})
    return rows
