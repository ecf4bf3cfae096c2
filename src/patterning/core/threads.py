"""How many workers a machine can have, and the one thread of torch that each of them computes on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


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
