"""What is found out before anything is sampled: what was asked, whether the model was trained, how to sample."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from patterning.core.errors import PatterningError, check_whole
from patterning.core.give_back import LARGE_MODEL
from patterning.core.modules import spread
from patterning.core.task import Task
from patterning.core.workers import one_thread
from patterning.intervention.strength import is_number
from patterning.models.components import ComponentLike
from patterning.models.restricted import Restricted
from patterning.posterior.chains import Kernel
from patterning.posterior.find_settings import Found, find_settings
from patterning.response.capability import try_gradient
from patterning.response.components import check_counts, check_phi
from patterning.response.one_component import PhiOf

Choice = Literal["auto", "pathwise", "covariance", "first-order"]
"""The estimators that χ can be asked of."""

LOOKED_AT, FEW_LOOKED_AT = 256, 16
"""Rows that are looked at to tell whether the model was trained: fewer of a large one."""
UNTRAINED = 0.95
"""A loss above this share of that of parameters of 0 is that of an untrained model."""


def check_asked(
    estimator: str, phi: object, observed: bool, chains: int, draws: int, reliability: object, rounds: int
) -> None:
    """Raise `PatterningError` for what no χ can be: `phi` by its word, rows of it are looked at elsewhere.

    `observed`: observables are measured, and not the component loss. `rounds` is called budget.
    """
    if estimator not in get_args(Choice):
        raise PatterningError(f"estimator {estimator!r} is not one of {', '.join(get_args(Choice))}")
    if observed and phi is not None:
        raise PatterningError("phi says whose loss the component loss is: it does nothing beside observables")
    if isinstance(phi, str):
        check_phi(phi, estimator)
    if estimator != "first-order":
        check_counts(chains, draws)
    check_whole("budget", rounds, 1)
    if reliability is not None and not (is_number(reliability) and 0 < cast("float", reliability) < 1):
        raise PatterningError(
            f"reliability is {reliability!r}: it must be between 0 and 1, or None for the whole budget"
        )


def default_phi(probed: int, rows: int, estimator: str) -> PhiOf:
    """Whose loss φ is where nothing is said: of all rows, if only some are probed and the estimator can read it."""
    return "data" if probed < rows and estimator != "covariance" else "probes"


def untrained_sentence(task: Task, anchor: Tensor) -> str:
    """A sentence where the checkpoint fits the data no better than parameters of 0 do; else nothing."""
    rows = spread(len(task.base_weights), LOOKED_AT if task.num_parameters <= LARGE_MODEL else FEW_LOOKED_AT)[None]
    try:
        with torch.no_grad():
            here, nothing = (float(task.losses(flat[None], rows).mean()) for flat in (anchor, torch.zeros_like(anchor)))
    except Exception:  # a model that cannot run at 0 tells nothing
        return ""
    if not (math.isfinite(nothing) and here >= UNTRAINED * nothing > 0):
        return ""
    return (
        f"the model at w* has loss {here:.3g}, about that of parameters of 0 ({nothing:.3g}): it seems untrained, and "
        "χ is of the place where it stands. Pass the trained model as at="
    )


def chosen_sampler(
    task: Task, anchor: Tensor, components: Sequence[ComponentLike], sampler: Kernel | str, batch_size: int,
    seed: int, say: Callable[[str], None],
) -> Found:  # fmt: skip
    """`sampler` as it is given, or where it is "calibrate" the settings that short pilot chains find.

    Raises `PatterningError` for anything else, and where the loss has no gradient or every γ makes chains leave w*.
    """
    if hasattr(sampler, "localization") and not isinstance(sampler, str):
        return Found(sampler, "", ())
    if sampler != "calibrate":
        raise PatterningError(
            f"sampler {sampler!r} is no sampler: give SGLD(n_beta, localization, step_size) or 'calibrate'"
        )
    with one_thread():
        for what in components:
            try_gradient(Restricted(task, anchor, what))
        found = find_settings(task, anchor, components, batch_size=batch_size, seed=seed, tell=say)
    say(found.text)
    return found
