"""Devices by name, and data and modules moved to them."""

import torch
from torch import nn

from patterning.core.batch import Batch, map_batch
from patterning.core.errors import PatterningError
from patterning.core.rows import RowSource

DeviceLike = str | torch.device


def find_device(what: DeviceLike) -> torch.device:
    """A device that can be computed on, with its number where there are several ("cuda" is the current one).

    Raises `PatterningError` for a name that is none, and for a device that this machine, this PyTorch or this library
    cannot compute on.
    """
    try:
        device = torch.device(what)
    except (RuntimeError, TypeError) as error:
        raise PatterningError(f"device {what!r} is no device of PyTorch's: use cpu, cuda or cuda:1, say") from error
    if device.type == "mps":
        raise PatterningError("device mps has no float64, in which χ is summed: use cpu")
    if device.type == "meta":
        raise PatterningError("device meta holds no numbers: use cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        built = f"PyTorch {torch.__version__} sees no GPU" if torch.version.cuda or torch.version.hip else (
            f"PyTorch {torch.__version__} is built without CUDA"
        )  # fmt: skip
        raise PatterningError(f"device {str(what)!r} cannot be used: {built}. Use cpu")
    try:
        return torch.empty(0, device=device).device
    except Exception as error:  # whatever a backend says of a device that is not there
        raise PatterningError(f"device {str(what)!r} cannot be used ({str(error).splitlines()[0]}): use cpu") from error


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are; raises `PatterningError` where they are on several devices."""
    places = {str(p.device): p.device for p in module.parameters()}
    if len(places) > 1:
        raise PatterningError(
            f"the module's parameters are on {', '.join(sorted(places))}: it must be on one device, module.to('cuda')"
        )
    return next(iter(places.values()), torch.device("cpu"))


def moved(data: Batch, device: torch.device) -> Batch:
    """Data on a device; rows of a data set that is read by number are moved as they are read."""
    if isinstance(data, RowSource):
        return data if data.device == device else data.on(device)
    return map_batch(lambda values: values.to(device), data)
