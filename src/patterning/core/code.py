"""Which of this package's files a result depends on, and a hash of them.

A module's numbers depend on its own source and on that of every module that it imports, directly or not. The sources
are read, not run: imports inside of functions count as well. What only draws, prints, stores or moves things about does
not count: editing a page costs no run.
"""

import ast
import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

PACKAGE = "patterning"
ROOT = Path(__file__).parents[1]

NO_NUMBERS = (
    "cli", "console", "report", "core.progress", "core.locks", "core.checksums", "core.user_code", "core.store",
    "core.workers", "core.worker", "core.processes", "core.executors", "core.dispatch", "core.cluster",
    "core.ray_cluster", "core.ray_connect", "core.ray_job", "core.threads", "core.shipping", "core.pieces",
    "core.dependencies", "core.errors", "core.terminal", "core.settings", "study.run", "study.present", "study.conduct",
    "study.outcomes", "study.arms", "study.strength", "study.settings",
)  # fmt: skip
"""Modules and folders that no number depends on."""


@cache
def code_version(module: str | None = None) -> str:
    """A hash of the files that `module` of this package reaches (None: all of them), and of torch's version."""
    names = all_modules() if module is None else sorted(reached(module))
    total = hashlib.sha256(version("torch").encode())
    for name in names:
        total.update(name.encode())
        total.update(_file(name).read_bytes())
    return total.hexdigest()[:16]


@cache
def reached(module: str) -> frozenset[str]:
    """The modules of this package that `module` depends on, itself included, by their names within it."""
    found: set[str] = set()
    waiting = [module.removeprefix(f"{PACKAGE}.")]
    while waiting:
        name = waiting.pop()
        if name in found or not counts(name) or not _file(name).exists():
            continue
        found.add(name)
        waiting += imports(name)
    return frozenset(found)


@cache
def imports(name: str) -> tuple[str, ...]:
    """Modules of this package that module `name` (within it) imports anywhere in its source."""
    names = []
    for node in ast.walk(ast.parse(_file(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [part.name for part in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
            names += [f"{node.module}.{part.name}" for part in node.names]
    own = [part.removeprefix(f"{PACKAGE}.") for part in names if part.startswith(f"{PACKAGE}.")]
    return tuple(part for part in dict.fromkeys(own) if _file(part).exists())


def all_modules() -> list[str]:
    """Every module that numbers may depend on."""
    names = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return [name for name in names if name and counts(name)]


def counts(name: str) -> bool:
    """Whether numbers may depend on a module of this name: pages are called `page` or `…_page`."""
    last = name.rpartition(".")[2]
    if last in ("page", "present") or last.endswith("_page"):
        return False
    return not any(name == part or name.startswith(f"{part}.") for part in NO_NUMBERS)


def _file(name: str) -> Path:
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
