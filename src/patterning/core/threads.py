"""How many workers a machine can have, and the one thread of torch that each of them computes on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

_LOCK = RLock()


def default_workers() -> int:
    """One worker for each CPU this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread of torch, as workers do: a sum over two threads has other bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def undisturbed() -> Iterator[None]:
    """One computation at a time in this process, with derivatives and without autocast, wherever it is called from.

    A module stands under other parameters while it runs, and forward derivatives have levels that belong to the whole
    process: of two threads, each would see what the other is doing.
    """
    import torch

    off = [torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda")]
    with _LOCK, torch.inference_mode(False), torch.enable_grad(), off[0], off[1]:
        yield
