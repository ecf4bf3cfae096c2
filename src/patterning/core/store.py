"""Run folders: files appear whole or not at all, and a unit of work is found again by the hash of what went into it."""

import errno
import hashlib
import itertools
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from patterning.core.checksums import array_digest
from patterning.core.code import code_version
from patterning.core.errors import PatterningError
from patterning.core.locks import cannot_use, hold

Arrays = dict[str, NDArray[Any]]
LONGEST_NAME = 80
"""Letters of a unit's name that its file is called by: file systems end at 255 for the whole."""
IDENTITY = "identity.json"
"""What the last call on the folder depended on, part by part (`core.dependencies`)."""
RESULTS = ("config.yaml", "results.json", "report.html", "figure.svg", "chi.zarr", IDENTITY)
"""What a run folder may hold besides its units."""
_log = logging.getLogger("patterning")
_count = itertools.count()
_mark = os.urandom(4).hex()
"""Of this process: one on another machine may have its number."""


def part_of(path: Path) -> Path:
    """A name beside `path` for what is still being written: no other process or thread has it, on no machine."""
    return path.with_name(f"{path.name}.{os.getpid()}-{_mark}-{next(_count)}.part")


def write_whole(path: Path, data: bytes) -> None:
    """Write beside `path`, fsync, rename: a reader sees the old file or the new one, never half of it.

    Raises `PatterningError` when that fails: a full disk, a folder that may not be written to.
    """
    part = part_of(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()  # half of it would only fill the disk
        raise cannot_write(path, error) from None


def refuse_other(path: str | Path, is_own: Callable[[Path], bool], what: str) -> None:
    """Raise `PatterningError` where a file lies at `path` that is not `what`, and would be lost."""
    path = Path(path)
    if path.is_file() and path.stat().st_size and not is_own(path):
        raise PatterningError(f"{path} is there and is no {what}, and would be lost: name another file, or delete it")


def cannot_write(path: Path, error: OSError) -> PatterningError:
    """The sentence for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "make room there"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "allow it"
    else:
        remedy = "see to it"
    return PatterningError(
        f"{path} cannot be written ({error.strerror or error}): {remedy}, then give the same command again; what is "
        "finished is kept"
    )


def as_json(value: object) -> str:
    """`value` as indented JSON."""
    return json.dumps(value, indent=1, sort_keys=False, default=_plain) + "\n"


def write_json(path: Path, value: object) -> None:
    """`value` as indented JSON, whole."""
    write_whole(path, as_json(value).encode())


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


class Work(Protocol):
    """What a run folder computes once and keeps: a `Unit`, or a `Job` (`core.jobs`)."""

    @property
    def name(self) -> str:
        """For people: files and messages are called by it."""
        ...

    @cached_property
    def key(self) -> str:
        """Changes when the result may change."""
        ...

    def run(self, scratch: Path) -> Arrays:
        """Do it. `scratch` is a path that it may use to save where it stands, removed when it is done."""
        ...


@dataclass(frozen=True)
class Unit:
    """A piece of work: `function(**arguments, scratch=Path)` returns named arrays.

    The function and its arguments must be such that cloudpickle can send them to a worker, which is a fresh process,
    and the result must depend on the arguments only. `scratch` is a path that it may use to save where it stands; it is
    removed when the unit is done. `memory(**arguments)`: bytes that it takes, where that is known, for an executor that
    places units by it.
    """

    name: str
    function: Callable[..., Arrays]
    arguments: Mapping[str, Any]
    memory: Callable[..., float] | None = None

    @cached_property
    def key(self) -> str:
        """`name-hash`: the file name of the result.

        The hash covers the arguments, the code that the function reaches (`core.code`) and the torch version.

        It is computed once and sent along with the unit: a worker does not compute it again.
        """
        module = self.function.__module__
        function = f"{module}.{self.function.__qualname__}"
        return f"{self.name[:LONGEST_NAME]}-{fingerprint(function, self.arguments, code_version(module))}"

    def run(self, scratch: Path) -> Arrays:
        """Call the function."""
        return self.function(**self.arguments, scratch=scratch)


@dataclass(frozen=True)
class RunFolder:
    """A folder that holds one run: `config.yaml`, `units/`, and at the end `results.json` and `report.html`."""

    path: Path

    @property
    def units(self) -> Path:
        """Where finished units lie."""
        return self.path / "units"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of the folder, which is made if need be; contexts of one process may be nested.

        Whoever takes the lock clears what a killed run left half-written: its writer is not alive. Raises
        `PatterningError` where another process holds it.
        """
        with hold(self.path) as first:
            if first:
                self._clear()
            yield

    def create(self) -> None:
        """Make the folder; what a killed run left half-written is cleared. Raises as `lock` does."""
        with self.lock():
            try:
                self.units.mkdir(exist_ok=True)
            except OSError as error:
                raise cannot_use(self.units, error) from None

    def _clear(self) -> None:
        leftovers = [*self.units.glob("*.part")]
        leftovers += [left for name in RESULTS for left in self.path.glob(f"{name}.*part")]
        for leftover in leftovers:
            if leftover.is_dir():
                remove_tree(leftover)
            else:
                leftover.unlink(missing_ok=True)

    def file_of(self, unit: Work) -> Path:
        """Where the unit's result lies, or will lie."""
        return self.units / f"{unit.key}.safetensors"

    def load(self, unit: Work) -> Arrays | None:
        """The result of a finished unit, or None. A damaged file is as good as none: it is deleted, with a note."""
        path = self.file_of(unit)
        if not path.exists():
            return None
        try:
            return read_arrays(path, unit.key)
        except PatterningError as error:
            _log.warning(f"{error}: it is computed again")
            path.unlink(missing_ok=True)
            return None

    def compute(self, unit: Work) -> Arrays:
        """The unit's result: read if it is there, otherwise computed and stored."""
        found = self.load(unit)
        if found is not None:
            return found
        scratch = self.units / f"{unit.key}.state"
        arrays = perform(unit, scratch)
        self.store(unit, arrays)
        scratch.unlink(missing_ok=True)
        return arrays

    def store(self, unit: Work, arrays: Arrays) -> None:
        """Keep the unit's result, whole."""
        write_arrays(self.file_of(unit), arrays, unit.key)


def perform(unit: Work, scratch: Path) -> Arrays:
    """Do a unit of work, from where `scratch` says that it stands; a `scratch` that is damaged is left behind."""
    try:
        found = unit.run(scratch)
    except SafetensorError as error:
        if not scratch.exists():
            raise
        _log.warning(f"{scratch} is damaged ({error}): {unit.name} starts anew")
        scratch.unlink()
        found = unit.run(scratch)
    return {name: np.asarray(values, order="C") for name, values in found.items()}


def write_arrays(path: Path, arrays: Arrays, key: str = "") -> None:
    """Named arrays as a safetensors file, whole, with a digest of them and of the `key` of their unit."""
    write_whole(path, save(arrays, {"sha256": _sum_of(arrays, key)}))


def _sum_of(arrays: Arrays, key: str) -> str:
    own = array_digest(arrays)
    return hashlib.sha256(f"{own}{key}".encode()).hexdigest() if key else own


def read_arrays(path: Path, key: str = "") -> Arrays:
    """The arrays that `write_arrays` wrote; raises `PatterningError` when the file is damaged, or of another unit."""
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            known = file.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise PatterningError(f"{path} is damaged ({error})") from None
    if known.get("sha256") not in (_sum_of(arrays, key), array_digest(arrays)):
        raise PatterningError(f"{path} is damaged (its numbers are not those that were written, or another unit's)")
    return arrays


def remove_tree(folder: Path) -> None:
    """Delete a folder and all that is in it, as far as that can be done."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def strict_json(value: object) -> object:
    """`value` as JSON knows it: a number that is not finite becomes None, as JSON has no word for it."""
    if isinstance(value, Mapping):
        return {str(key): strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return strict_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return strict_json(_plain(value))


def open_run(path: str | Path) -> RunFolder:
    """An existing run folder; raises `PatterningError` when `path` is not one."""
    path = Path(path)
    if not path.is_dir():
        raise PatterningError(f"{path} is not a folder")
    if not (path / "config.yaml").is_file():
        raise PatterningError(f"{path} is not a run folder: it holds no config.yaml and no chi.zarr")
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
