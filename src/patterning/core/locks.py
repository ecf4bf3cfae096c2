"""One process at a time in a run folder: a lock that the system releases when its holder dies, however it dies.

Two runs in one folder would overwrite each other's unfinished files. The lock is POSIX's record lock on `FOLDER/.lock`
(fcntl(2)), held by the process and not inherited by children, so that what a killed run leaves behind cannot keep it.
The file says who holds it. Python's standard library has no such lock on Windows; there folders are not locked.
"""

import errno
import json
import logging
import os
import shlex
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from patterning.core.errors import PatterningError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_LONGEST_COMMAND = 120
_log = logging.getLogger("patterning")


@dataclass
class _Held:
    """A lock that this process holds, by `holders` nested contexts."""

    file: IO[str]
    process: int
    holders: int


_held: dict[tuple[int, int], _Held] = {}
_guard = threading.Lock()


@contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Hold the lock of `folder`, which is made if it is not there; yields whether it was taken only now.

    Contexts of one process may be nested. Raises `PatterningError` where another process holds it, which one, and what
    to do; and where the folder cannot be made or written to.
    """
    key, first = _take(folder)
    try:
        yield first
    finally:
        _leave(key)


def _take(folder: Path) -> tuple[tuple[int, int], bool]:
    with _guard:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            at = folder.stat()
            key = (at.st_dev, at.st_ino)
            mine = _held.get(key)
            if mine is not None and mine.process == os.getpid():
                mine.holders += 1
                return key, False
            file = (folder / NAME).open("a+", encoding="utf-8")  # not "w": the holder's words must stay
        except OSError as error:
            raise cannot_use(folder, error) from None
        try:
            _lock(file, folder)
        except BaseException:
            file.close()
            raise
        _held[key] = _Held(file, os.getpid(), 1)
        return key, True


def cannot_use(folder: Path, error: OSError) -> PatterningError:
    """The sentence for a folder that cannot be made or written to."""
    reason = error.strerror or str(error)
    there = os.path.exists(folder)  # unlike Path.exists, it does not raise for a name that is too long
    if os.path.islink(folder) and not there:
        reason = "it is a link to nowhere"
    elif isinstance(error, FileExistsError | NotADirectoryError):
        reason = "there is a file of that name" if there else "a part of its path is a file"
    return PatterningError(f"{folder} cannot be used as a folder ({reason}): name another one with --out")


def _lock(file: IO[str], folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise PatterningError(_who(file, folder)) from None
        _log.warning(f"{folder} is on a file system without locks ({error.strerror}): let no other run use it")
        return
    who = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": _command(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    try:
        file.truncate(0)
        file.write(json.dumps(who) + "\n")
        file.flush()
    except OSError as error:  # a full disk: the lock is there all the same
        _log.warning(f"{folder / NAME} cannot be written ({error.strerror})")


def _command() -> str:
    """What this process was called with, as far as it fits into a sentence."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    words = shlex.join(["patterning" if name == "cli.py" else name, *sys.argv[1:]])
    return words if len(words) <= _LONGEST_COMMAND else f"{words[:_LONGEST_COMMAND]}…"


def _who(file: IO[str], folder: Path) -> str:
    """The sentence for a folder in use, from what its holder wrote."""
    try:
        file.seek(0)
        who = json.loads(file.read())
        here = who["host"] == socket.gethostname()
        place = "" if here else f" on {who['host']}"
        holder = f"process {who['pid']}{place} ({who['command']}, since {who['since']})"
        stop = f"stop it (kill {who['pid']})" if here else "stop it there"
    except (ValueError, KeyError, TypeError, OSError):  # between taking the lock and writing into it
        holder, stop = "another process", "stop it"
    return f"{folder} is in use by {holder}: wait until it ends, {stop}, or name another folder with --out"


def _leave(key: tuple[int, int]) -> None:
    with _guard:
        mine = _held[key]
        mine.holders -= 1
        if mine.holders == 0:
            del _held[key]
            if mine.process == os.getpid():
                with suppress(OSError):
                    mine.file.truncate(0)
            mine.file.close()
