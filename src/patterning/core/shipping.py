"""Units of work as bytes for another process, with whatever code and tensors they hold.

cloudpickle writes functions that cannot be imported (lambdas, functions inside functions, a notebook's, those of a file
that was loaded by its path) by value; `torch.save` around it writes each storage once, nine times as fast as pickle.
Large tensors and arrays can be left out of the bytes (`core.pieces`), so that many units share one copy of them.
"""

import io
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import cloudpickle

from patterning.core import user_code
from patterning.core.pieces import Bytes, Pieces, opened


def dump(value: object, pieces: Pieces | None = None) -> bytes:
    """`value` as bytes. Raises whatever pickling it raises, where a part of it cannot leave this process.

    Nothing is sent by name that this process may have changed since it was imported: the other one would compute with
    another state of it. Large memory goes into `pieces`, where they are given, and is needed to `load` it.
    """
    import torch

    module = cloudpickle if pieces is None else SimpleNamespace(Pickler=_pickler(pieces), __name__="patterning")
    buffer = io.BytesIO()
    # the surroundings come first: the value is unpacked in them
    torch.save((_Surroundings(), value), buffer, pickle_module=module, pickle_protocol=5)
    return buffer.getvalue()


def load(data: bytes, pieces: Mapping[str, Bytes] | None = None) -> Any:
    """The inverse of `dump`; `pieces` by name, of which the value gets copies of its own."""
    import torch

    with opened(pieces or {}):
        _, value = torch.load(io.BytesIO(data), weights_only=False)
    return value


def _pickler(pieces: Pieces) -> type[cloudpickle.Pickler]:
    class ApartPickler(cloudpickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            apart = pieces.reduced(obj)
            return super().reducer_override(obj) if apart is None else apart

    return ApartPickler


class _Surroundings:
    """Unpacking it sets torch's defaults, runs the user's file, and makes the modules beside it importable.

    A number must not depend on which process computes it: default types and devices are part of the code, and so is
    what a file changes in other modules when it is run.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _surround, (_defaults(), user_code.places())


def _surround(defaults: dict[str, Any], places: user_code.Places) -> None:
    _set_defaults(defaults)
    user_code.follow(places)


def _defaults() -> dict[str, Any]:
    import torch

    return {
        "dtype": torch.get_default_dtype(),
        "device": str(torch.get_default_device()),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
    }


def _set_defaults(wanted: dict[str, Any]) -> None:
    import torch

    now = _defaults()
    if wanted["dtype"] != now["dtype"]:
        torch.set_default_dtype(wanted["dtype"])
    if wanted["device"] != now["device"]:  # setting it costs something at every call, even to what it is
        torch.set_default_device(wanted["device"])
    torch.set_float32_matmul_precision(wanted["precision"])
    torch.use_deterministic_algorithms(wanted["deterministic"], warn_only=wanted["warn_only"])
