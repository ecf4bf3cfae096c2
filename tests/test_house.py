"""The house: imports point one way, files can be read in one sitting, and editing a page costs no run."""

from pathlib import Path

import pytest

from patterning.core import code

ROOMS = (
    "core", "report", "models", "tasks", "training", "posterior", "response", "intervention", "verification", "study",
    "face", "hf", "edits", "experiments", "console", "cli", "__main__",
)  # fmt: skip
"""From the ground up: a room may use those before it."""
LONGEST = 320
EXPERIMENTS = 1600
"""Lines of all experiments together: what they share belongs to the study."""


def modules() -> list[str]:
    names = []
    for path in sorted(code.ROOT.rglob("*.py")):
        parts = path.relative_to(code.ROOT).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return [name for name in names if name]


def room(name: str) -> int:
    return ROOMS.index(name.split(".", maxsplit=1)[0])


def test_imports_point_down_the_house() -> None:
    climbs = [
        f"{name} imports {other}" for name in modules() for other in code.imports(name) if room(other) > room(name)
    ]
    assert not climbs


def test_no_circles() -> None:
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join((*above[above.index(name) :], name))
        if name in done:
            return
        for other in code.imports(name):
            if other not in ("", name) and not name.startswith(f"{other}."):
                visit(other, (*above, name))
        done.add(name)

    for name in modules():
        visit(name, ())


def test_experiments_stay_thin() -> None:
    folder = code.ROOT / "experiments"
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*.py")) < EXPERIMENTS


def test_files_can_be_read_in_one_sitting() -> None:
    long = {
        str(path.relative_to(code.ROOT)): count
        for path in code.ROOT.rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST
    }
    assert not long


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of four modules: work imports helper; page and other are not reached by it."""
    files = {
        "core/work.py": "from patterning.core.helper import x\n\ndef run():\n    from patterning.report import page\n",
        "core/helper.py": "x = 1\n",
        "core/other.py": "y = 1\n",
        "report/page.py": "z = 1\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    return tmp_path


def version_of_work() -> str:
    for function in (code.code_version, code.reached, code.imports):
        function.cache_clear()
    return code.code_version("patterning.core.work")


@pytest.mark.parametrize(
    ("edited", "changes"),
    [("core/work.py", True), ("core/helper.py", True), ("core/other.py", False), ("report/page.py", False)],
)
def test_only_code_that_a_job_reaches_costs_its_result(package: Path, edited: str, changes: bool) -> None:
    try:
        before = version_of_work()
        (package / edited).write_text((package / edited).read_text() + "# edited\n")
        assert (version_of_work() != before) == changes
    finally:
        for function in (code.code_version, code.reached, code.imports):
            function.cache_clear()
