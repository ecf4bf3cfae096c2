"""Memory that is free again, given back to the system."""

import ctypes
import gc
from functools import cache
from typing import Any

LARGE_MODEL = 10_000_000
"""Parameters from which on copies of a model are worth the trouble."""


def give_back(parameters: int) -> None:
    """Hand what the process has freed to the system, where its C library can (glibc) and the model is large.

    What trials and copies of a large model leave behind is otherwise kept for later use: 1.5 GB after a task of 135
    million parameters. Results do not depend on it.
    """
    if parameters <= LARGE_MODEL:
        return
    gc.collect()  # hooks keep a clamped copy of the model alive until then
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return None
