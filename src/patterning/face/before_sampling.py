"""What is found out before anything is sampled: whether the model was trained, and the settings of the sampler."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.give_back import LARGE_MODEL
from patterning.core.modules import spread
from patterning.core.task import Task
from patterning.core.workers import one_thread
from patterning.models.components import ComponentLike
from patterning.models.restricted import Restricted
from patterning.posterior.chains import Kernel
from patterning.posterior.find_settings import Found, find_settings
from patterning.response.capability import try_gradient

LOOKED_AT, FEW_LOOKED_AT = 256, 16
"""Rows that are looked at to tell whether the model was trained: fewer of a large one."""
UNTRAINED = 0.95
"""A loss above this share of that of parameters of 0 is that of an untrained model."""


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
