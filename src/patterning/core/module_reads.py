"""What functions read from the user's modules: ``settings.SCALE``, which may change while the file does not."""

from collections.abc import Mapping
from types import CodeType, ModuleType
from typing import TypeGuard

from patterning.core.libraries import is_library


def read_from_modules(code: CodeType, held: Mapping[str, object]) -> dict[str, object]:
    """Attributes of the modules among `held` (name → value) that the code names, by their dotted names.

    Modules of installed packages are told by their names alone.
    """
    names, read = _names(code), dict[str, object]()
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


def _of_user(value: object) -> TypeGuard[ModuleType]:
    if not isinstance(value, ModuleType) or getattr(value, "__file__", None) is None:
        return False
    return not is_library(value.__name__)


def _names(code: CodeType) -> set[str]:
    """Names of globals and attributes in a function and in those within it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
