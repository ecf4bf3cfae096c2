"""What functions read from the user's modules: ``settings.SCALE``, which may change while the file does not."""

import dis
import importlib
import sys
from collections.abc import Mapping
from types import CodeType, ModuleType
from typing import TypeGuard

from patterning.core.libraries import is_library


def read_from_modules(code: CodeType, held: Mapping[str, object]) -> dict[str, object]:
    """Attributes of the modules among `held` (name → value) that the code names, by their dotted names.

    Modules of installed packages are told by their names alone.
    """
    names, read = names_in(code), dict[str, object]()
    waiting = [(name, value) for name, value in held.items() if _of_user(value)]
    seen: set[int] = set()
    while waiting:
        place, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        for name in sorted(names & set(vars(module))):
            value = vars(module)[name]
            if _of_user(value):
                waiting.append((f"{place}.{name}", value))
            elif not isinstance(value, ModuleType):
                read[f"{place}.{name}"] = value
    return read


BY_STRING = frozenset({"getattr", "attrgetter", "globals", "vars", "__dict__", "import_module", "__import__"})
"""What reads a name that is given as a string."""


def _strings(code: CodeType) -> set[str]:
    """The strings in a function that may be names: ``getattr(settings, "SCALE")``."""
    found = set[str]()
    if BY_STRING & set(code.co_names):
        found = {part for part in code.co_consts if isinstance(part, str) and part.replace(".", "_").isidentifier()}
    return found


def imported(code: CodeType) -> dict[str, ModuleType]:
    """The user's modules that a function imports in its own body, by name; none that cannot be imported."""
    names = [str(each.argval) for each in dis.get_instructions(code) if each.opname == "IMPORT_NAME"]
    if {"import_module", "__import__"} & set(code.co_names):
        names += sorted(_strings(code))
    modules: dict[str, ModuleType] = {}
    for name in names:
        if not name or name.partition(".")[0] in sys.stdlib_module_names or is_library(name):
            continue
        try:
            modules[f"import {name}"] = importlib.import_module(name)
        except Exception:  # the function itself will say so, where it gets that far
            continue
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            modules |= imported(constant)
    return modules


def _of_user(value: object) -> TypeGuard[ModuleType]:
    if not isinstance(value, ModuleType):
        return False
    return value.__name__.partition(".")[0] not in sys.stdlib_module_names and not is_library(value.__name__)


def names_in(code: CodeType) -> set[str]:
    """Names of globals and attributes in a function and in those within it."""
    names = set(code.co_names) | _strings(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= names_in(constant)
    return names


def globals_read(code: CodeType) -> list[str]:
    """Names that a function and the functions in it read from their module."""
    names = {
        str(instruction.argval) for instruction in dis.get_instructions(code) if instruction.opname == "LOAD_GLOBAL"
    }
    names |= _strings(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= set(globals_read(constant))
    return sorted(names)
