"""A worker process: reads units of work from its standard input, computes them, and says how it went.

A frame is eight bytes of length and that many bytes. Frames in: what `shipping.dump` made of a (run folder, unit).
Frames out: a pickled tuple that begins with one of the words below. What the unit itself prints goes to standard
error. When standard input ends, the parent has no more work or is dead, and the worker leaves at once.
"""

import logging
import os
import pickle
import queue
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import IO, Any

from patterning.core.errors import PatterningError
from patterning.core.progress import listening

LENGTH = struct.Struct("<Q")
DONE, FAILED, NOTE, PROGRESS, UNREADABLE = "done", "failed", "note", "progress", "unreadable"
LONGEST_TRACE = 100_000
"""Letters of a traceback that are passed on."""
MOST_AT_ONCE = 2**20
"""Bytes asked for in one read: Python sets that much memory aside each time."""


def send_frame(pipe: IO[bytes], data: bytes) -> None:
    """Write a frame, all of it."""
    for part in (LENGTH.pack(len(data)), data):
        view = memoryview(part)
        while view:
            view = view[pipe.write(view) :]
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> bytes | None:
    """The next frame; None where the other side has ended, in the middle of one or not."""
    head = _read(pipe, LENGTH.size)
    return None if head is None else _read(pipe, LENGTH.unpack(head)[0])


def _read(pipe: IO[bytes], count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = pipe.read(min(count - len(parts), MOST_AT_ONCE))
        if not part:
            return None
        parts += part
    return bytes(parts)


def serve(parent: int) -> None:
    """Compute units until there are no more. The process ends here."""
    inbox, outbox = _take_pipes()
    work: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_receive, args=(inbox, work), daemon=True).start()
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(1)
    lock = threading.Lock()

    def say(*message: Any) -> None:
        with lock:
            send_frame(outbox, pickle.dumps(message))

    log = logging.getLogger("patterning")
    log.addHandler(Notes(lambda note: say(NOTE, note)))
    log.propagate = False
    try:
        while True:
            say(*_compute(work.get(), lambda fraction: say(PROGRESS, fraction)))
    except (OSError, KeyboardInterrupt):  # nobody listens any more, or someone stopped this process alone
        os._exit(1)


class Notes(logging.Handler):
    """The package's warnings, for someone else to show."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__()
        self.hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one on."""
        self.hear(record.getMessage())


def _compute(frame: bytes, hear: Callable[[float], None]) -> tuple[Any, ...]:
    from patterning.core.shipping import load

    def do(work: Any) -> None:
        run, unit = work
        run.compute(unit)

    word, *rest = answer(lambda: load(frame), do, hear)
    return (DONE,) if word == DONE else (word, *rest)


def answer(unpack: Callable[[], Any], do: Callable[[Any], Any], hear: Callable[[float], None]) -> tuple[Any, ...]:
    """How it went: (DONE, result of `do`), (UNREADABLE, why) where `unpack` fails, or (FAILED, what `raised` takes)."""
    from patterning.core.user_code import explain

    try:
        work = unpack()
    except Exception as error:
        return UNREADABLE, _one_line(error)
    try:
        with listening(hear):
            return DONE, do(work)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit: a unit must not end the worker
        return FAILED, _portable(error), explain(error), traceback.format_exc()[-LONGEST_TRACE:]


def raised(failed: Sequence[Any], where: str) -> BaseException:
    """The error of a unit as its caller raises it: with the worker's traceback, or a sentence about the user's code.

    `failed`: what follows FAILED in a message: the error pickled, the sentence if there is one, the traceback.
    """
    data, sentence, trace = failed
    if sentence is not None:
        return PatterningError(sentence)
    error = pickle.loads(data)
    error.add_note(f"\n{where}:\n{trace}")
    return error


def _portable(error: BaseException) -> bytes:
    """The error pickled, or one that says the same where it cannot be."""
    import cloudpickle

    try:
        data = cloudpickle.dumps(error)
        pickle.loads(data)
    except Exception:
        return pickle.dumps(RuntimeError(_one_line(error)))
    return data


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The pipes of the parent, moved out of reach: a unit that prints or reads must not touch them."""
    inbox, outbox = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return inbox, outbox


def _receive(inbox: IO[bytes], work: "queue.Queue[bytes]") -> None:
    while (frame := read_frame(inbox)) is not None:
        work.put(frame)
    os._exit(0)


def _leave_with(parent: int) -> None:
    """A worker whose parent was killed must not go on, even where someone else holds the other end of the pipe."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
