"""Units of work as bytes for another process, with whatever code and tensors they hold.

cloudpickle writes functions that cannot be imported (lambdas, functions inside functions, a notebook's, those of a file
that was loaded by its path) by value; `torch.save` around it writes each storage once, nine times as fast as pickle.
"""

import io
from typing import Any

import cloudpickle

from patterning import user_code


def dump(value: object) -> bytes:
    """`value` as bytes. Raises whatever pickling it raises, where a part of it cannot leave this process."""
    try:
        return _dump(value)
    except Exception:
        with user_code.helpers_by_name() as changed:
            if not changed:
                raise
            return _dump(value)


def load(data: bytes) -> Any:
    """The inverse of `dump`."""
    import torch

    _, value = torch.load(io.BytesIO(data), weights_only=False)
    return value


def _dump(value: object) -> bytes:
    import torch

    buffer = io.BytesIO()
    # the folders come first, so that a helper module that goes by its name is found when the value is unpacked
    torch.save((_Folders(), value), buffer, pickle_module=cloudpickle, pickle_protocol=5)
    return buffer.getvalue()


class _Folders:
    """Unpacking it makes the modules beside the user's files importable."""

    def __reduce__(self) -> tuple[Any, ...]:
        return user_code.follow, user_code.places()
