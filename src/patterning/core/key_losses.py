"""What a task's loss gives, however it is written: the part of its fingerprint that no code has to be read for."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from patterning.core.answers import Triable
from patterning.core.batch import count_rows, take_rows
from patterning.core.devices import device_of, moved
from patterning.core.modules import copy_module, displaced, spread

KEY_ROWS = 16
"""Rows whose losses are part of a task's fingerprint."""


def key_losses(task: Triable) -> NDArray[np.float32]:
    """Losses (2, …) of some rows at w* and at other parameters, computed on the CPU.

    So a task has the same fingerprint on every device. A loss that cannot be computed there, as it holds tensors of its
    own elsewhere, is computed where it is.
    """
    if device_of(task.module).type == "cpu":
        return _losses(task, task.module)
    try:
        return _losses(task, copy_module(task.module, convert=False).cpu())
    except Exception:  # a user's loss may fail in any way
        return _losses(task, task.module)


def _losses(task: Triable, module: nn.Module) -> NDArray[np.float32]:
    device = device_of(module)
    own: Mapping[str, Tensor] = task.named(task.own_row().to(device)[None])
    rows = spread(count_rows(task.data), KEY_ROWS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads have other bits
    try:
        with torch.no_grad():
            found = [
                task.answer(
                    rows, {name: value[0] for name, value in parameters.items()}, module=module,
                    batch=moved(take_rows(task.data, rows), device),
                )[0].float()
                for parameters in (own, displaced(own, 0))
            ]  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    return torch.stack(found).cpu().numpy()
