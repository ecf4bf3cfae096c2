"""Run folders: files appear whole or not at all, and a unit of work is found again by the hash of what went into it."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from patterning.errors import PatterningError

Arrays = dict[str, NDArray[Any]]


def write_whole(path: Path, data: bytes) -> None:
    """Write to `path.part`, fsync, rename: a reader sees the old file or the new one, never half of it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, value: object) -> None:
    """`value` as indented JSON, whole."""
    write_whole(path, (json.dumps(value, indent=1, sort_keys=False, default=_plain) + "\n").encode())


def fingerprint(*parts: object) -> str:
    """Sixteen hex digits that change when any part does.

    Parts are JSON values, arrays, mappings of these, and objects with a `fingerprint` of their own.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(own := getattr(part, "fingerprint", None), str):
            digest.update(own.encode())
        elif isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        elif isinstance(part, Mapping):
            digest.update(fingerprint(*(item for pair in sorted(part.items()) for item in pair)).encode())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=_plain).encode())
        digest.update(b"\x00")
    return digest.hexdigest()[:16]


@cache
def code_version() -> str:
    """A hash of what numbers come from: the source of this package but for pages and command line, and torch's version.

    A result of other code is not found again; a change of the report does not cost a run.
    """
    package = Path(__file__).parent
    sources = [
        path
        for path in sorted(package.rglob("*.py"))
        if path.name not in ("cli.py", "present.py") and path.parent.name != "report"
    ]
    code = {str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in sources}
    return fingerprint(code, version("torch"))


@dataclass(frozen=True)
class Unit:
    """A piece of work: `function(**arguments, scratch=Path)` returns named arrays.

    The function must be importable (workers are fresh processes) and depend on its arguments only. `scratch` is a path
    that it may use to save where it stands; it is removed when the unit is done.
    """

    name: str
    function: Callable[..., Arrays]
    arguments: Mapping[str, Any]

    @property
    def key(self) -> str:
        """`name-hash`: the file name of the result; the hash covers the arguments, the code and the torch version."""
        function = f"{self.function.__module__}.{self.function.__qualname__}"
        return f"{self.name}-{fingerprint(function, self.arguments, code_version())}"


@dataclass(frozen=True)
class RunFolder:
    """A folder that holds one run: `config.yaml`, `units/`, and at the end `results.json` and `report.html`."""

    path: Path

    @property
    def units(self) -> Path:
        """Where finished units lie."""
        return self.path / "units"

    def create(self) -> None:
        """Make the folder; what a killed run left half-written is cleared."""
        self.units.mkdir(parents=True, exist_ok=True)
        for leftover in self.units.glob("*.part"):
            leftover.unlink()

    def load(self, unit: Unit) -> Arrays | None:
        """The result of a finished unit, or None."""
        path = self.units / f"{unit.key}.safetensors"
        return load_file(path) if path.exists() else None

    def compute(self, unit: Unit) -> Arrays:
        """The unit's result: read if it is there, otherwise computed and stored."""
        if (found := self.load(unit)) is not None:
            return found
        scratch = self.units / f"{unit.key}.state"
        arrays = {k: np.asarray(v, order="C") for k, v in unit.function(**unit.arguments, scratch=scratch).items()}
        write_whole(self.units / f"{unit.key}.safetensors", save(arrays))
        scratch.unlink(missing_ok=True)
        return arrays


def open_run(path: Path) -> RunFolder:
    """An existing run folder; raises `PatterningError` when `path` is not one."""
    if not path.is_dir():
        raise PatterningError(f"{path} is not a folder")
    if not (path / "config.yaml").is_file():
        raise PatterningError(f"{path} is not a run folder: it holds no config.yaml")
    return RunFolder(path)


def _plain(value: object) -> object:
    """JSON's view of paths, numpy scalars and arrays, and dataclass-like values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
