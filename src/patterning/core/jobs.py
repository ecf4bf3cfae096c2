"""Typed pieces of work: a job is a frozen dataclass whose fields are all that its result depends on."""

from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

from patterning.core.code import code_version
from patterning.core.identity import digest
from patterning.core.store import LONGEST_NAME, Arrays


@dataclass(frozen=True)
class Job:
    """A piece of work: `run(scratch)` returns named arrays that depend on the fields alone.

    A subclass is a frozen dataclass in a module that imports little: its key covers the code that the module reaches.
    Fields must be such that cloudpickle can send them to a worker process. `label` is for people, and in no key.
    """

    label: str = field(default="", kw_only=True, metadata={"keyed": False})

    @property
    def name(self) -> str:
        """What its file and its messages are called by."""
        return self.label or type(self).__name__.lower()

    @cached_property
    def key(self) -> str:
        """`name-hash`; the hash covers the fields by what they hold, the code that is reached, and torch's version."""
        kind = type(self)
        held = [getattr(self, part.name) for part in fields(self) if part.metadata.get("keyed", True)]
        own = [getattr(value, "fingerprint", value) for value in held]
        code = digest(f"{kind.__module__}.{kind.__qualname__}", code_version(kind.__module__), own)
        return f"{self.name[:LONGEST_NAME]}-{code}"

    def run(self, scratch: Path) -> Arrays:
        """Do it; `scratch` is a path to save where it stands, removed when the job is done."""
        raise NotImplementedError
