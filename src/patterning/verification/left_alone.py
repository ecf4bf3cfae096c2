"""Whether a measure leaves what `train` returned as it was: other measures of the same run would read its changes."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.core.identity import digest_of


@dataclass(frozen=True)
class Kept:
    """Digests of the tensors and arrays of a result by name, and the mode of each of its modules."""

    digests: Mapping[str, str]
    training: tuple[tuple[nn.Module, bool], ...]

    def refuse_changes(self, result: Any, who: str, where: str) -> None:
        """Put training modes back; raise `PatterningError` where a tensor is no longer the same."""
        for part, mode in self.training:
            part.training = mode
        for name, own in _digests(result).items():
            if self.digests.get(name, own) != own:
                raise PatterningError(
                    f"{who} changed {name} of what train returned ({where}), which other measures read: let it work on "
                    "a copy.deepcopy, or put back what it changes (buffers change where a module with batch "
                    "statistics runs in training mode: call .eval() first)"
                )


def kept_state(result: Any) -> Kept:
    """Of a module; of the modules, tensors and arrays in a dict, a list or a tuple."""
    modules = [value for _, value in _held(result) if isinstance(value, nn.Module)]
    training = tuple((part, part.training) for module in modules for part in module.modules())
    return Kept(_digests(result), training)


def _held(result: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(result, Mapping):
        items = [(f"[{key!r}]", value) for key, value in result.items()]
    elif isinstance(result, list | tuple):
        items = [(f"[{place}]", value) for place, value in enumerate(result)]
    else:
        items = [("", result)]
    return ((name, value) for name, value in items if isinstance(value, nn.Module | Tensor | np.ndarray))


def _digests(result: Any) -> dict[str, str]:
    found = dict[str, str]()
    for name, value in _held(result):
        tensors = {name: value}
        if isinstance(value, nn.Module):
            tensors = {**dict(value.named_parameters(name)), **dict(value.named_buffers(name))}
        for path, tensor in tensors.items():
            found[path.removeprefix(".")] = _digest(tensor)
    return found


def _digest(value: Tensor | np.ndarray) -> str:
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    found, without_key = digest_of(value)
    return "" if without_key else found
