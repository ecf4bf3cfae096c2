"""Which code is a library's, and which is the user's own: keys cover the user's, and the names of the others."""

import sys
import sysconfig
from functools import lru_cache
from pathlib import Path

_LIBRARIES = tuple(
    str(Path(sysconfig.get_paths()[kind]).resolve()) for kind in ("stdlib", "platstdlib", "purelib", "platlib")
)
_INSTALLED = {"site-packages", "dist-packages"}
"""Folders of installed packages: those of another environment that this one sees, or of the user, as well."""
_ALWAYS = ("patterning", "builtins", "torch", "numpy")
"""Wherever they lie: `pip install --target` puts libraries into any folder."""


def is_library(module: str | None) -> bool:
    """Whether a module comes with Python, with an installed package, or with this one."""
    name = module or "builtins"
    if name == "__main__":  # what was started, though it may lie in a package (python -m)
        return False
    if name.partition(".")[0] in _ALWAYS or name in sys.builtin_module_names:
        return True
    path = getattr(sys.modules.get(name), "__file__", None)
    if path is None:
        return name in sys.modules
    return _in_library(path)


@lru_cache(maxsize=4096)
def _in_library(path: str) -> bool:
    place = Path(path).resolve()
    return any(str(place).startswith(library) for library in _LIBRARIES) or not _INSTALLED.isdisjoint(place.parts)
