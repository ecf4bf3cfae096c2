"""A user's Python file, loaded by its path: whatever its name, with the modules beside it, and errors that say where.

The file becomes a module of a private name, so that `random.py` or `my.task.py` work and nothing installed is hidden by
it. While it is loaded, modules in its folder are found by name after the standard library's and before installed ones;
later only where nothing else has that name. All of it is sent to worker processes by value (cloudpickle), so that they
have the state of this one, and run there once, for what it changes elsewhere (torch's settings, a patched function).
"""

import ast
import importlib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import cloudpickle

from patterning.core.errors import PatterningError

PRIVATE = "_patterning_user_code"
_LONGEST = 300
"""Letters of an error's own words that are passed on."""


class _Known:
    """Of this process: folders that modules are looked for in, the users' files themselves, and all that came of them.

    `started` is the folder in which the command was given: a user's file may go elsewhere, and paths are named from
    there. `current` is the file loaded last, if that went well; `sources` are all files of the users' code, helpers
    included; `helpers` the names of top-level modules among them.
    """

    def __init__(self) -> None:
        self.started = Path()
        self.folders: list[str] = []
        self.current: str | None = None
        self.tasks: set[str] = set()
        self.sources: set[str] = set()
        self.helpers: set[str] = set()


class _Finder(MetaPathFinder):
    """Finds modules in the folders of the users' files; a folder without `__init__.py` only where `folders_too`."""

    def __init__(self, known: _Known, *, folders_too: bool) -> None:
        self.known = known
        self.folders_too = folders_too

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """As importlib asks for it: the module `name`, in the package at `path` or at the top."""
        top = name.partition(".")[0]
        if path is not None:
            inside = top in self.known.helpers or top.startswith(PRIVATE)
            spec = PathFinder.find_spec(name, path, target) if inside else None
        elif name in sys.stdlib_module_names:
            return None
        else:
            spec = PathFinder.find_spec(name, self.known.folders, target)
            if spec is None or spec.origin in self.known.tasks or (spec.loader is None and not self.folders_too):
                return None  # a user's file itself goes by its private name alone
            self.known.helpers.add(name)
        if spec is not None and spec.origin is not None:
            self.known.sources.add(spec.origin)
        return spec


_known = _Known()
_first, _last = _Finder(_known, folders_too=False), _Finder(_known, folders_too=True)


@contextmanager
def started_here() -> Iterator[None]:
    """A command is given in the current folder."""
    _known.started = Path.cwd()
    try:
        yield
    finally:
        _known.started = Path()


def as_given(path: str | Path) -> Path:
    """What a path of the command names: from where the command was given, if a user's file has gone elsewhere."""
    return Path(path) if Path.cwd() == _known.started else _known.started / path


def load_object(where: str) -> Any:
    """What `FILE.py:NAME` names; raises `PatterningError` with file and line of what is wrong."""
    file, _, name = where.rpartition(":")
    path = as_given(file)
    if not name or path.suffix != ".py" or not path.is_file():
        raise PatterningError(f"{where} does not name a function: write FILE.py:NAME, with a file that exists")
    module = _load(path)
    if not hasattr(module, name):
        there = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise PatterningError(f"{path} has no function {name}: it has {', '.join(there) or 'none at all'}")
    return getattr(module, name)


def call(where: str, function: Callable[[], Any]) -> Any:
    """`function()`, a user's; raises `PatterningError` with file and line when it needs arguments or fails."""
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        code = getattr(inspect.unwrap(function), "__code__", None)
        line = f", line {code.co_firstlineno}," if code else ""
        raise PatterningError(f"{where}{line} must be a function without arguments: {error}") from None
    except ValueError:  # a built-in function that does not tell its signature
        pass
    with _looking_beside(), explained(where):
        found = function()
    if inspect.iscoroutine(found):
        found.close()  # which would complain that no one awaited it
    return found


def _load(path: Path) -> ModuleType:
    """The module in the file `path`, under a private name."""
    place = path.resolve()
    for name in _known.helpers:  # of another file, maybe: this one has its own `utils`
        sys.modules.pop(name, None)
    _known.helpers.clear()
    _known.tasks.add(str(place))
    _known.sources.add(str(place))
    _known.folders = [str(place.parent)]
    _known.current = None
    with _looking_beside(), explained(str(path)):
        source = place.read_bytes()
        name = _make_package(place.parent, _relative_level(source, str(place))) + "." + place.stem.replace(".", "_")
        spec = importlib.util.spec_from_file_location(name, place)
        assert spec is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        exec(compile(source, str(place), "exec", dont_inherit=True), module.__dict__)
    _known.current = str(place)
    return module


def _relative_level(source: bytes, file: str) -> int:
    """How many folders up the relative imports of a file reach, 0 where it has none; raises as compiling it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compiling says them again
        tree = ast.parse(source, file)
    return max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0)


def _make_package(folder: Path, level: int) -> str:
    """The name of a private package in which relative imports from `folder` work.

    Where a file makes use of them (`level`) and its folder is a package with an `__init__.py`, so are the folders above
    that are, as for `python -m`.
    """
    number = len([name for name in sys.modules if name.startswith(PRIVATE) and "." not in name])
    root = f"{PRIVATE}{number or ''}"
    parts: list[str] = []
    top = folder
    while level and (top / "__init__.py").is_file():
        parts.insert(0, top.name)
        top = top.parent
    package = sys.modules[root] = ModuleType(root)
    package.__path__ = [str(top)]
    cloudpickle.register_pickle_by_value(package)
    if parts:
        _known.folders.append(str(top))
    name = ".".join([root, *parts])
    importlib.import_module(name)
    return name


@contextmanager
def _looking_beside() -> Iterator[None]:
    """Modules beside the user's file are found before installed ones; afterwards they are sent to workers by value."""
    _remove()
    at = next((i for i, finder in enumerate(sys.meta_path) if finder is PathFinder), len(sys.meta_path))
    sys.meta_path.insert(at, _first)
    sys.meta_path.append(_last)
    try:
        yield
    finally:
        sys.meta_path.remove(_first)
        for helper in _helpers():
            cloudpickle.register_pickle_by_value(helper)


def _remove() -> None:
    for finder in (_first, _last):
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)


def _helpers() -> list[ModuleType]:
    return [sys.modules[name] for name in sorted(_known.helpers) if name in sys.modules]


@dataclass(frozen=True)
class Places:
    """Where the user's code lies, for `follow` in another process: its folders, all its files, and the one loaded."""

    folders: tuple[str, ...]
    sources: frozenset[str]
    current: str | None


def places() -> Places:
    """Of this process."""
    return Places(tuple(_known.folders), frozenset(_known.sources), _known.current)


def follow(there: Places) -> None:
    """Run the user's file, for what it changes in other modules, and find what lies beside it from now on.

    In a worker, before a unit is unpacked, which brings all that is in the file by value. The file is run once in a
    process: where it was loaded already, nothing happens.
    """
    if there.current is not None and there.current != _known.current:
        _load(Path(there.current))
    _known.folders = list(there.folders)
    _known.sources |= there.sources


def explain(error: BaseException, where: str = "") -> str | None:
    """The error in one sentence, with file and line of the deepest place in the user's code that took part.

    `where` stands in for a place where there is none; None where neither is known.
    """
    place = _syntax_place(error) or _deepest(error.__traceback__) or where
    if not place:
        return None
    words = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())[:_LONGEST]
    if isinstance(error, PatterningError):
        return f"{place}: {words}"
    if isinstance(error, SystemExit):
        return f"{place}: it left with exit code {error.code!r}: a task's file is imported, not run"
    return f"{place}: {type(error).__name__}: {words}".removesuffix(": ")


@contextmanager
def explained(where: str = "") -> Iterator[None]:
    """Errors inside this context that come from the user's code, or from `where`, become one sentence."""
    try:
        yield
    except (Exception, SystemExit) as error:
        sentence = explain(error, where)
        if sentence is None:
            raise
        raise PatterningError(sentence) from None


def _syntax_place(error: BaseException) -> str | None:
    if isinstance(error, SyntaxError) and error.filename in _known.sources:
        return f"{_shown(str(error.filename))}, line {error.lineno}"
    return None


def _deepest(trace: TracebackType | None) -> str | None:
    place = None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file in _known.sources:
            place = f"{_shown(file)}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _shown(file: str) -> str:
    """The file as the user would name it from here."""
    try:
        return str(Path(file).relative_to(os.getcwd()))
    except (ValueError, OSError):
        return file
