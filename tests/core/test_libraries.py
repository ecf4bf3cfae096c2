"""Libraries are told from the user's code wherever they lie: a key that holds torch's inside finds nothing again."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from patterning.core.libraries import is_library


def test_python_and_installed_packages_are_libraries() -> None:
    assert all(map(is_library, ("json", "torch", "torch.nn.functional", "pytest", "builtins", "patterning.cli")))
    assert not is_library("__main__")
    assert not is_library(__name__)


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        ("other/site-packages/lib_a.py", "lib_a", True),  # through PYTHONPATH, a .pth file or --system-site-packages
        ("usr/lib/python3/dist-packages/lib_b/__init__.py", "lib_b", True),
        ("vendored/torch/nn.py", "torch.nn_of_elsewhere", True),  # pip install --target
        ("vendored/mine.py", "mine_of_elsewhere", False),
    ],
)
def test_a_library_of_another_environment_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, name: str, expected: bool
) -> None:
    module = ModuleType(name)
    module.__file__ = str(tmp_path / path)
    monkeypatch.setitem(sys.modules, name, module)
    assert is_library(name) is expected
