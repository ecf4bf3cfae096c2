"""Large memory apart from what refers to it: data and weights that many units of work share are sent once.

A piece is the bytes of one torch storage or of one array, called by their hash. Tensors that share a storage share the
piece, and share memory again where they are unpacked.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]
LARGE = 2**17
"""Bytes from which memory is sent apart."""


class Pieces:
    """Large memory that was met while packing, by name; made for one stage, in which nobody changes that memory.

    `used`: names of the pieces of the value that is being packed; the caller clears it between two values.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, Bytes] = {}
        self.used: dict[str, None] = {}
        self._known: dict[tuple[int, int], str] = {}
        self._owners: list[object] = []

    def reduced(self, value: object) -> tuple[Any, ...] | None:
        """How pickle is to write `value`, where its memory is large: as a reference to a piece. None: as ever."""
        if type(value) is Tensor and _is_plain(value):
            storage = value.untyped_storage()
            if storage.nbytes() >= LARGE:
                memory = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage).numpy()
                place = (value.storage_offset(), tuple(value.shape), value.stride())
                return _tensor, (self._name(storage, memory), value.dtype, *place, value.requires_grad)
        if type(value) is np.ndarray and value.nbytes >= LARGE and not value.dtype.hasobject:
            order = "C" if value.flags.c_contiguous else "F" if value.flags.f_contiguous else ""
            if order:
                memory = value.reshape(-1, order=order).view(np.uint8)
                return _array, (self._name(value, memory), value.dtype, value.shape, order)
        return None

    def _name(self, owner: object, memory: Bytes) -> str:
        where = (memory.ctypes.data, memory.nbytes)
        if where not in self._known:
            self._known[where] = hashlib.blake2b(memory.data, digest_size=16).hexdigest()
            self._owners.append(owner)  # its memory must not become another one's meanwhile
        name = self._known[where]
        self.by_name[name] = memory
        self.used[name] = None
        return name


def _is_plain(tensor: Tensor) -> bool:
    """Whether memory, type and strides are all that there is to a tensor."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        and not tensor.__dict__
        and not tensor._backward_hooks
    )


_open: list[tuple[Mapping[str, Bytes], dict[str, torch.UntypedStorage]]] = []


@contextmanager
def opened(pieces: Mapping[str, Bytes]) -> Iterator[None]:
    """Inside this context references to these pieces can be unpacked."""
    _open.append((pieces, {}))
    try:
        yield
    finally:
        _open.pop()


def _tensor(
    name: str, dtype: torch.dtype, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], grad: bool
) -> Tensor:
    pieces, storages = _open[-1]
    if name not in storages:
        storages[name] = torch.from_numpy(np.array(pieces[name])).untyped_storage()  # a copy: units may write into it
    tensor = torch.empty(0, dtype=dtype, device="cpu").set_(storages[name], offset, shape, stride)
    return tensor.requires_grad_() if grad else tensor


def _array(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    return np.array(_open[-1][0][name]).view(dtype).reshape(shape, order=order)
