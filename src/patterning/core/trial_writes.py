"""Whether a forward pass or its loss writes into parameters: a chain's position would move without a step."""

from torch import Tensor

from patterning.core.answers import Triable, run_plain
from patterning.core.errors import PatterningError
from patterning.core.modules import displaced
from patterning.core.seen import same_values


def check_writes(task: Triable, rows: Tensor) -> None:
    """Raise `PatterningError` where the loss of `rows` (b,) changes a parameter in place, away from the module's own.

    There, as weights that are clipped in the forward pass may be inside of their bounds at w*.
    """
    given = displaced(dict(task.module.named_parameters()), 0)
    before = {name: value.clone() for name, value in given.items()}
    run_plain(task, rows, given)
    for name, value in given.items():
        if not same_values(before[name], value):
            raise PatterningError(
                f"the forward pass or the loss changes parameter {name} in place, which would move a chain without a "
                "step: compute with another tensor instead, such as weight.clamp(0) in place of weight.data.clamp_(0)"
            )
