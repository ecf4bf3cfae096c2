"""The arms of a claim before they are trained, and what their runs depend on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from patterning.core.code import code_version
from patterning.core.dependencies import parts_of
from patterning.core.errors import PatterningError
from patterning.core.identity import digest_of
from patterning.intervention.data_weights import Weights
from patterning.verification.arms import UNWEIGHTED, permuted_name
from patterning.verification.jobs import Measure, Train, run_job


@dataclass(frozen=True)
class Planned:
    """An arm to be: its kind, and its weights for each seed."""

    kind: str
    weights: list[Weights]


def plan_arms(
    arms: Mapping[str, Weights], controls: Sequence[str], extra: Mapping[str, Weights], seeds: Sequence[int]
) -> dict[str, Planned]:
    """Every arm by name; the unweighted one first."""
    controls = [controls] if isinstance(controls, str) else list(controls)
    if unknown := set(controls) - {"permuted"}:
        raise PatterningError(f"unknown controls {', '.join(sorted(unknown))}: there is 'permuted'; others go in extra")
    first = next(iter(arms.values()))
    for name, weights in {**arms, **extra}.items():
        if weights.rho.shape == first.rho.shape and not np.allclose(weights.base_weights, first.base_weights, 1e-6, 0):
            raise PatterningError(
                f"the arm {name!r} has other base weights than {next(iter(arms))!r}: all arms are compared with one "
                "unweighted arm, which has the base weights of the first; verify them apart"
            )
    plain = replace(first, rho=np.ones_like(first.rho), facts={"what": UNWEIGHTED}, swapped=None)
    plan = {UNWEIGHTED: Planned("base", [plain] * len(seeds))}
    plan |= {name: Planned("arm", [weights] * len(seeds)) for name, weights in arms.items()}
    if "permuted" in controls:
        for name, weights in arms.items():
            plan[permuted_name(name)] = Planned("control", [weights.permuted(seed) for seed in seeds])
    return plan | {name: Planned("extra", [weights] * len(seeds)) for name, weights in extra.items()}


def parts_of_plan(
    train: Train, measures: Mapping[str, Measure], plan: Mapping[str, Planned], seeds: Sequence[int]
) -> dict[str, str]:
    """What the runs depend on, part by part: to say what changed where none of an earlier call serves."""
    found = parts_of("train", train)
    for name, measure in measures.items():
        found |= parts_of(f"the measure {name!r}", measure.function)
        found[f"the range of the measure {name!r}"] = digest_of(measure.low, measure.high)[0]
    for name, planned in plan.items():
        first = planned.weights[0]
        found[f"the weights of the arm {name!r}"] = digest_of(first.rho, first.ids, first.base_weights)[0]
    found["the seeds"] = digest_of(list(seeds))[0]
    return found | {"this package's code, or torch's version": code_version(run_job.__module__)}
