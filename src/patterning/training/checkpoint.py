"""Where a weighted training run stands, as a file: for runs that a kill must not lose."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save

from patterning.core.store import Arrays, write_whole
from patterning.training.weighted import TrainState

_PARTS = ("flat", "first_moment", "second_moment")


def save_state(state: TrainState, measured: Mapping[str, np.ndarray], scratch: Path) -> None:
    """Write the state and what was measured so far (arrays by name), whole."""
    tensors = {f"state:{name}": getattr(state, name) for name in _PARTS} | {"state:step": torch.tensor(state.step)}
    tensors |= {f"measured:{name}": torch.from_numpy(np.array(values)) for name, values in measured.items()}
    write_whole(scratch, save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}))


def load_state(scratch: Path, device: torch.device | str = "cpu") -> tuple[TrainState, Arrays]:
    """What `save_state` wrote, with the state on `device`."""
    tensors = load_file(scratch)
    state = TrainState(int(tensors["state:step"]), *(tensors[f"state:{name}"].to(device) for name in _PARTS))
    measured = {name.partition(":")[2]: part.numpy() for name, part in tensors.items() if name[:9] == "measured:"}
    return state, measured
