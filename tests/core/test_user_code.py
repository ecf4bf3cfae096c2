"""A user's file: whatever it is called and imports, and every error in it with file and line."""

import subprocess
import sys
from pathlib import Path

import pytest

from patterning.console.request import load_task
from patterning.core import user_code
from patterning.core.errors import PatterningError
from patterning.core.shipping import dump, load
from patterning.core.supervised import ModuleTask
from patterning.core.task import Task

HEAD = """import torch
from functools import partial
from torch import nn
from torch.nn import functional as F
from patterning.core.supervised import ModuleTask, Task

DATA = (torch.arange(24.0).reshape(8, 3) % 5, torch.arange(8) % 2)
def loss(call, b):
    return F.cross_entropy(call(b[0]), b[1], reduction="none")
def task():
    return Task(nn.Linear(3, 2), loss, DATA)
"""
LINES = HEAD.count("\n")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What loading leaves in this process is taken back, and the file's folder is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    finders = list(sys.meta_path)
    yield
    user_code._known.current = None
    sys.meta_path[:] = finders
    for name, module in list(sys.modules.items()):
        if name.startswith(user_code.PRIVATE) or str(tmp_path) in str(getattr(module, "__file__", None)):
            del sys.modules[name]


def write(name: str, text: str = HEAD) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    "name", ["mine.py", "my.task.py", "random.py", "torch.py", "xarray.py", "a b/mäin ü.py", "1-2.py"]
)
def test_a_file_may_have_any_name_and_hides_nothing(name: str) -> None:
    write(name)
    modules, path = dict(sys.modules), list(sys.path)
    task = load_task(f"{name}:task")
    assert isinstance(task, Task)
    stem = Path(name).stem
    assert sys.modules.get(stem) is modules.get(stem)
    assert sys.path == path
    assert isinstance(load(dump(task)), Task)


def test_modules_beside_it_are_found_and_sent_along(tmp_path: Path) -> None:
    write(
        "here/utils.py",
        "from torch.nn import functional as F\ndef loss(o, t):\n    return F.cross_entropy(o, t, reduction='none')\n",
    )
    write("here/sibling.py", "FACTOR = 2.0\n")
    write("here/plain/inner.py", "def one():\n    return 1.0\n")  # a folder without __init__.py
    write("here/calendar.py", "raise RuntimeError('the standard library has this name')\n")
    body = HEAD.replace(
        'F.cross_entropy(call(b[0]), b[1], reduction="none")', "utils.loss(call(b[0]), b[1]) * FACTOR * one()"
    )
    write(
        "here/mine.py",
        "import calendar\nimport utils\nfrom .sibling import FACTOR\nfrom plain.inner import one\n" + body,
    )
    task = load_task("here/mine.py:task")
    (tmp_path / "unit").write_bytes(dump(task))
    # another process, elsewhere, without the folder on its path
    code = (
        "import sys, torch; from pathlib import Path; from patterning.core.shipping import load\n"
        "task = load(Path(sys.argv[1]).read_bytes())\n"
        "print(task.losses(task.flatten(task.module)[None], torch.arange(8)[None]).tolist())\n"
    )
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path / "unit")], capture_output=True, text=True, check=False,
        cwd=tmp_path / "elsewhere",
    )  # fmt: skip
    import torch

    here = task.losses(task.flatten(task.module)[None], torch.arange(8)[None]).tolist()
    assert done.stdout.strip() == str(here), done.stderr


@pytest.mark.long
def test_state_that_a_task_has_changed_is_sent_along() -> None:
    write("here/settings.py", "SCALE = 1.0\ndef scale():\n    return SCALE\n")
    body = HEAD.replace('reduction="none")', 'reduction="none") * settings.scale() * OWN').replace(
        "def task():", "OWN = 1.0\ndef task():\n    global OWN\n    OWN = settings.SCALE = 3.0"
    )
    write("here/mine.py", "import settings\n" + body)
    code = (
        "import sys, torch; from pathlib import Path; from patterning.core.shipping import load\n"
        "task = load(Path('unit').read_bytes())\n"
        "print(float(task.losses(task.flatten(task.module)[None], torch.arange(8)[None]).sum()))\n"
    )
    import torch

    task = load_task("here/mine.py:task")
    Path("unit").write_bytes(dump(task))
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    here = float(task.losses(task.flatten(task.module)[None], torch.arange(8)[None]).sum())
    assert float(done.stdout) == here, done.stderr
    assert here > 20  # 9 times a loss of about 8 ln 2


def test_relative_imports_in_a_package() -> None:
    write("pkg/__init__.py", "NAME = 1.0\n")
    write("pkg/common.py", "FACTOR = 1.0\n")
    write("pkg/sub/__init__.py", "")
    write("pkg/sub/near.py", "NEAR = 1.0\n")
    imports = (
        "from .. import NAME\nfrom ..common import FACTOR\nfrom . import near\nfrom pkg.common import FACTOR as AGAIN\n"
    )
    write("pkg/sub/mine.py", imports + HEAD)
    assert isinstance(load(dump(load_task("pkg/sub/mine.py:task"))), Task)


def test_each_file_has_its_own_helpers() -> None:
    for number in (1, 2):
        write(f"{number}/utils.py", f"NUMBER = {number}\n")
        write(
            f"{number}/mine.py",
            "from utils import NUMBER\n" + HEAD.replace("nn.Linear(3, 2)", "nn.Linear(3, 1 + NUMBER)"),
        )
        assert load_task(f"{number}/mine.py:task").num_parameters == 4 * (1 + number)


def test_readmes_module_task_and_a_lambda() -> None:
    write("mine.py", HEAD + """
def module_task():
    return ModuleTask(nn.Linear(3, 2), partial(F.cross_entropy, reduction="none"), *DATA)
def with_lambda():
    scale = 2.0
    return Task(nn.Linear(3, 2), lambda call, b: scale * loss(call, b), DATA)
ready = task()
""")  # fmt: skip
    assert isinstance(load(dump(load_task("mine.py:module_task"))), ModuleTask)
    assert isinstance(load(dump(load_task("mine.py:with_lambda"))), Task)
    assert isinstance(load_task("mine.py:ready"), Task)  # a task as it is, too


def test_a_changed_file_is_read_again() -> None:
    write("mine.py")
    assert load_task("mine.py:task").num_parameters == 8
    write("mine.py", HEAD.replace("nn.Linear(3, 2)", "nn.Linear(3, 3)"))  # the same size and second: no cached code
    assert load_task("mine.py:task").num_parameters == 12


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def task(:\n    pass\n", "mine.py, line 1: SyntaxError: "),
        ("x = 1\nif x:\npass\n", "mine.py, line 3: IndentationError: expected an indented block"),
        ("import nothing_such\n", "mine.py, line 1: ModuleNotFoundError: No module named 'nothing_such'"),
        ("from torch import nothing_such\n", "mine.py, line 1: ImportError: cannot import name 'nothing_such'"),
        ("from . import nothing_such\n", "mine.py, line 1: ImportError: cannot import name 'nothing_such'"),
        ("from .nothing import such\n", "mine.py, line 1: ModuleNotFoundError: "),
        ("import bad\n", "bad.py, line 3: SyntaxError: "),
        ("import failing\n", "failing.py, line 2: KeyError: 'inside a helper'"),
        ("x = 1\n1 / 0\n", "mine.py, line 2: ZeroDivisionError: division by zero"),
        ("def inner():\n    return {}['key']\ndef task():\n    return inner()\n", "mine.py, line 2: KeyError: 'key'"),
        ("def task():\n    raise ValueError('a\\n\\nb')\n", "mine.py, line 2: ValueError: a b"),
        ("def task():\n    assert False\n", "mine.py, line 2: AssertionError"),
        ("import sys\nsys.exit(3)\n", "mine.py, line 2: it left with exit code 3"),
        ("def task():\n    raise SystemExit('bye')\n", "mine.py, line 2: it left with exit code 'bye'"),
        ("def task():\n    task()\n", "mine.py, line 2: RecursionError: maximum recursion depth exceeded"),
        ("import torch\ndef task():\n    return torch.zeros(2) @ torch.zeros(3)\n", "mine.py, line 3: RuntimeError: "),
        ("def task(n):\n    return n\n", "mine.py:task, line 1, must be a function without arguments: missing a req"),
        ("def other():\n    pass\ndef _hidden():\n    pass\n", "mine.py has no function task: it has other"),
        ("", "mine.py has no function task: it has none at all"),
        ("task = 3\n", "mine.py:task is a int: it must be a function that returns a Task"),
        ("def task():\n    pass\n", "mine.py:task() returned a NoneType (is its return missing?): it must return a"),
        ("async def task():\n    pass\n", "mine.py:task() returned a coroutine: it must return a Task"),
        ("def task():\n    return 'x'\n", "mine.py:task() returned a str: it must return a Task"),
        ("class task:\n    def __init__(self, n):\n        pass\n", "mine.py:task must be a function without arg"),
    ],
)  # fmt: skip
def test_errors_name_file_and_line_in_one_sentence(body: str, says: str) -> None:
    write("bad.py", "x = 1\n\ny = = 2\n")
    write("failing.py", "def fail():\n    raise KeyError('inside a helper')\nfail()\n")
    write("mine.py", body)
    with pytest.raises(PatterningError) as found:
        load_task("mine.py:task")
    sentence = str(found.value)
    assert sentence.startswith(says), sentence
    assert "\n" not in sentence


def test_what_the_package_refuses_is_said_with_the_users_line() -> None:
    write("mine.py", HEAD.replace("DATA)", "(DATA[0], DATA[1][:3]))"))
    with pytest.raises(PatterningError, match=rf"^mine\.py, line {LINES}: the data must be tensors with one leading"):
        load_task("mine.py:task")


@pytest.mark.parametrize("data", [b"x = 1\0\n", b"x = '\xff\xfe'\n"])
def test_a_file_that_is_no_python(data: bytes) -> None:
    Path("mine.py").write_bytes(data)
    with pytest.raises(
        PatterningError, match=r"mine\.py.*: (SyntaxError|ValueError): "
    ):  # null bytes: which one hangs on the version
        load_task("mine.py:task")


@pytest.mark.parametrize(
    "where", ["", ":", "mine.py", "mine.py:", ":task", "mine.txt:task", "folder.py:task", "no.py:task"]
)
def test_a_name_that_is_none(where: str) -> None:
    write("mine.py")
    write("mine.txt")
    Path("folder.py").mkdir()
    with pytest.raises(
        PatterningError, match=r"does not name a function: write FILE\.py:NAME, with a file that exists"
    ):
        load_task(where)


def test_a_file_that_failed_is_not_run_in_workers() -> None:
    write("mine.py")
    load_task("mine.py:task")
    assert user_code.places().current == str(Path("mine.py").resolve())
    write("bad.py", "1 / 0\n")
    with pytest.raises(PatterningError, match="ZeroDivisionError"):
        load_task("bad.py:task")
    assert user_code.places().current is None


def test_without_users_code_nothing_is_explained() -> None:
    assert user_code.explain(ValueError("x")) is None
    assert user_code.explain(ValueError("x"), "there") == "there: ValueError: x"
