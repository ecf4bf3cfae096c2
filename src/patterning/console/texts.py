"""The samples behind a page of χ: the task that a request names, and what turns a sample into text."""

from dataclasses import dataclass

from patterning.console.request import load_task
from patterning.core.errors import PatterningError
from patterning.core.plain import Document
from patterning.core.task import Task
from patterning.core.user_code import load_object
from patterning.face.examples import Decode


@dataclass(frozen=True)
class Shown:
    """What a page shows of samples: pictures of `task`, or texts by `decode`, which is named `source`.

    Without a task it shows their numbers, and `why`.
    """

    task: Task | None = None
    source: str | None = None
    decode: Decode | None = None
    why: str = ""

    @classmethod
    def of(cls, task: Task, source: str | None) -> "Shown":
        """Texts by what `source` names, or pictures where it is None."""
        return cls(task, source, load_decode(source))


def load_decode(where: str | None) -> Decode | None:
    """What `FILE.py:NAME` names: a tokenizer, or a function of (row of the data, position) that returns a text."""
    if where is None:
        return None
    found = load_object(where)
    if not (callable(found) or hasattr(found, "decode")):
        raise PatterningError(
            f"{where} is a {type(found).__name__}: it must be a tokenizer, or a function of (row of the data, "
            "position) that returns a text"
        )
    return found


def load_again(request: Document, fingerprint: str) -> Shown:
    """The task and the texts of a stored request, where its files are still what they were; else why they are not."""
    if not request.get("task"):
        return Shown()
    try:
        task = load_task(request["task"])
        if task.fingerprint != fingerprint:
            return Shown(why=f"{request['task']} is another task by now than the one that χ was measured on")
        return Shown.of(task, request.get("decode"))
    except PatterningError as error:
        return Shown(why=str(error))
