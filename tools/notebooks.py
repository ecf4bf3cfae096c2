"""Executes the notebooks of docs/notebooks and writes them as Markdown with their outputs.

A notebook is a Python file in the percent format, which Jupyter (through jupytext), VS Code and PyCharm open as cells:
`# %% [markdown]` begins text, `# %%` begins code. What a cell prints, and the value of its last expression, stand below
it. A value with `__html__` (the SVG charts of `patterning.report`) is shown as a picture.

`python tools/notebooks.py` executes all and checks that each runs. Results are kept in build/notebooks under a key of
the notebook's text and of the whole package, so that an unchanged notebook is not executed twice.
"""

import ast
import hashlib
import io
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
KEPT = ROOT / "build" / "notebooks"


def cells(source: str) -> list[tuple[str, str]]:
    """(kind, text) of each cell; kind is "markdown" or "code"."""
    found: list[tuple[str, list[str]]] = []
    for line in source.splitlines():
        if line.startswith("# %%"):
            found.append(("markdown" if "[markdown]" in line else "code", []))
        elif found:
            found[-1][1].append(line)
    return [(kind, _text(lines) if kind == "markdown" else "\n".join(lines).strip("\n")) for kind, lines in found]


def _text(lines: list[str]) -> str:
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines).strip("\n")


def execute(code: str, names: dict[str, Any], where: str) -> str:
    """The outputs of a code cell as Markdown."""
    tree = ast.parse(code, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(tree, where, "exec"), names)
        value = eval(compile(ast.Expression(last.value), where, "eval"), names) if isinstance(last, ast.Expr) else None
        if value is not None and not hasattr(value, "__html__"):
            print(value)
    parts = []
    if printed.getvalue().strip():
        parts.append(f'<div class="output" markdown>\n\n```text\n{printed.getvalue().rstrip()}\n```\n\n</div>')
    if value is not None and hasattr(value, "__html__"):
        parts.append(f'<div class="output">{value.__html__()}</div>')
    return "\n\n".join(parts)


def run(path: Path) -> str:
    """The notebook as Markdown, executed in this process."""
    names: dict[str, Any] = {"__name__": "notebook"}
    parts = []
    for number, (kind, text) in enumerate(cells(path.read_text(encoding="utf-8"))):
        parts.append(text if kind == "markdown" else f"```python\n{text}\n```")
        if kind == "code":
            parts.append(execute(text, names, f"{path.name}, cell {number}"))
    return "\n\n".join(part for part in parts if part) + "\n"


def key(path: Path) -> str:
    """Changes with the notebook, this file and every module of the package."""
    sources = sorted((ROOT / "src").rglob("*.py"))
    digest = hashlib.sha256()
    for source in (path, Path(__file__), *sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def rendered(path: Path) -> str:
    """The executed notebook, from what is kept or from a process of its own; raises if a cell fails."""
    kept = KEPT / f"{path.stem}-{key(path)}.md"
    if not kept.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-W", "error::UserWarning", __file__, str(path), str(kept)]
            subprocess.run(command, check=True, cwd=folder)
        print(f"{path.name}: executed in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return kept.read_text(encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Without arguments execute all; with a notebook and a target, that one in this process."""
    if arguments:
        text = run(Path(arguments[0]))
        Path(arguments[1]).write_text(text, encoding="utf-8")
        return
    for path in sorted(NOTEBOOKS.glob("*.py")):
        rendered(path)


if __name__ == "__main__":
    main(sys.argv[1:])
