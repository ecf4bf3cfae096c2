"""Counter-based randomness: every random number is a function of (seed, stream, replica, step).

Philox (Salmon et al., SC 2011) is keyed by `(seed, stream)` and started at a counter made of `(replica, step)`, so a
chain is the same alone or batched, on one worker or many, before or after a resume. There is no global generator.
"""

import threading
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import numpy as np

from patterning.core.errors import PatterningError, check_whole

LARGEST = 2**63 - 1


class Stream(IntEnum):
    """What the numbers are for; two streams of one seed never share a counter."""

    DATA = 1
    TEST_DATA = 2
    INIT = 3
    EPOCH = 4
    MINIBATCH = 5
    NOISE = 6
    CONTROL = 7
    BOOTSTRAP = 8
    GROUPS = 9
    PHASE = 10
    TRIAL = 11


def seeds_of(seeds: object, name: str = "seeds") -> list[int]:
    """Seeds as a list, from any collection of whole numbers >= 0; raises `PatterningError` for anything else."""
    if isinstance(seeds, str | bytes) or not isinstance(seeds, Iterable):
        raise PatterningError(f"{name} is {seeds!r}: it must be a list of whole numbers, such as [0, 1, 2]")
    found: list[Any] = [
        seed.item() if hasattr(seed, "item") and not isinstance(seed, np.bool_) else seed for seed in seeds
    ]
    for seed in found:
        check_whole("seed", seed, 0, LARGEST)
    if not found:
        raise PatterningError(f"{name} is empty: name at least one")
    return found


def generator(seed: int, stream: Stream, replica: int = 0, step: int = 0) -> np.random.Generator:
    """A numpy generator that depends on nothing but its arguments (each a non-negative integer below 2**63)."""
    for name, value in (("seed", seed), ("replica", replica), ("step", step)):
        check_whole(name, value, 0, LARGEST)
    # Philox increments the lowest counter word as it draws, so (step, replica) sit in the words above it.
    return np.random.Generator(np.random.Philox(key=[seed, int(stream)], counter=[0, step, replica, 0]))


class _Own(threading.local):
    """One generator for each thread."""

    def __init__(self) -> None:
        self.bits = np.random.Philox(key=[0, 0])
        self.generator = np.random.Generator(self.bits)


_OWN = _Own()


def reused_generator(seed: int, stream: Stream, replica: int = 0, step: int = 0) -> np.random.Generator:
    """As `generator`, but the thread's one generator, set to that place: it takes 2 µs, and a new one 32.

    Draw from it at once, as the next call in this thread sets it to another place. The arguments are whole numbers.
    """
    if min(seed, replica, step) < 0 or max(seed, replica, step) > LARGEST:
        generator(seed, stream, replica, step)  # refuses, and says which
    place = {"counter": (0, step, replica, 0), "key": (seed, int(stream))}
    nothing_left = {"buffer": (0, 0, 0, 0), "buffer_pos": 4, "has_uint32": 0, "uinteger": 0}
    state = {"bit_generator": "Philox", "state": place, **nothing_left}
    _OWN.bits.state = state  # pyright: ignore[reportAttributeAccessIssue]  # a property that its stubs lack
    return _OWN.generator
