"""Units of work as bytes for another process, with whatever code and tensors they hold.

cloudpickle writes functions that cannot be imported (lambdas, functions inside functions, a notebook's, those of a file
that was loaded by its path) by value; `torch.save` around it writes each storage once, nine times as fast as pickle.
"""

import io
from typing import Any

import cloudpickle

from patterning.core import user_code


def dump(value: object) -> bytes:
    """`value` as bytes. Raises whatever pickling it raises, where a part of it cannot leave this process.

    Nothing is sent by name that this process may have changed since it was imported: the other one would compute with
    another state of it.
    """
    import torch

    buffer = io.BytesIO()
    # the surroundings come first: the value is unpacked in them
    torch.save((_Surroundings(), value), buffer, pickle_module=cloudpickle, pickle_protocol=5)
    return buffer.getvalue()


def load(data: bytes) -> Any:
    """The inverse of `dump`."""
    import torch

    _, value = torch.load(io.BytesIO(data), weights_only=False)
    return value


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
