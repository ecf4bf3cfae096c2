"""Ray imported and connected to, without its noise; what cannot be is one sentence."""

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from patterning.core.errors import PatterningError

EXTRA = "pip install 'patterning[cluster]'"
REACH = 5.0
"""Seconds for the head's port to answer."""


def import_ray() -> Any:
    """The module; raises `PatterningError` where it is not installed."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns that this will be its default
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray's own code, while it is imported
            ray = import_module("ray")
            for part in ("exceptions", "util.scheduling_strategies"):
                import_module(f"ray.{part}")
    except ImportError as error:
        raise PatterningError(f"Ray cannot be imported here ({error}): {EXTRA}") from None
    return ray


def connect(ray: Any, address: str | None) -> None:
    """Connect, or start a Ray of this machine alone where there is no address and no cluster."""
    if address is not None and address not in ("auto", "local"):
        _try_port(address)
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    with _as_before():
        try:
            if address not in (None, "local"):
                ray.init(address=address, **quiet)
                return
            if address is None:
                with suppress(ConnectionError):
                    ray.init(address="auto", **quiet)
                    return
            from patterning.core.threads import default_workers

            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(address="local", num_cpus=default_workers(), include_dashboard=False, **quiet)
        except Exception as error:
            raise PatterningError(_unreachable(ray, address, error)) from None


def _unreachable(ray: Any, address: str | None, error: Exception) -> str:
    words = first_line(error, 300)
    if "ersion mismatch" in str(error):
        words = " ".join(str(error).split())[:400]
        return (
            f"the Ray cluster {address or ''} and this process differ ({words}): install the same Ray and the same "
            "Python on all machines"
        )
    return f"the Ray cluster {address or 'of this machine'} cannot be used ({type(error).__name__}: {words})"


def _try_port(address: str) -> None:
    """Raise `PatterningError` where nothing answers at host:port: Ray itself would try for minutes."""
    if "://" in address:
        raise PatterningError(
            f"address {address} is of Ray's client: give the command on a machine of the cluster, and name "
            "host:port of its head (6379, if nothing else was chosen)"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise PatterningError(f"address {address!r} is not host:port of a Ray cluster's head: write 10.0.0.5:6379, say")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PatterningError(
            f"no Ray cluster answers at {address} ({reason}): start one (ray start --head), or correct the address"
        ) from None


@contextmanager
def _as_before() -> Iterator[None]:
    """Ray's warnings while it connects are not shown, and its handler of SIGTERM does not replace ours."""
    first = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if first else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def cause_of(error: Any) -> str:
    """The error inside of Ray's, in words."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {first_line(cause)}"


def first_line(error: BaseException, longest: int = 200) -> str:
    """The beginning of an error's words: Ray's errors run over pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:longest].rstrip(".:")
