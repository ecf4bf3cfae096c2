"""Every Python block of README and docs runs (`make docs`). Blocks of a page share their names, in order.

What a block needs and a reader does not, a page holds in comments: `<!-- test`, Python, `-->`.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^(?:```python|<!-- test)\n(.*?)^(?:```|-->)$", re.MULTILINE | re.DOTALL)
SHOWN_AGAIN = ROOT / "docs" / "get-started.md"
"""Holds the README's ten lines, which run there."""
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if page != SHOWN_AGAIN and BLOCK.search(page.read_text())
]


@pytest.mark.site
@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(BLOCK.findall(page.read_text())):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    if page.name == "README.md":
        assert "steers" in capsys.readouterr().out


def test_code_is_on_the_page_itself() -> None:
    """Whoever reads the Markdown on GitHub sees it: nothing is included when the site is built."""
    first = BLOCK.search((ROOT / "README.md").read_text())
    assert first is not None
    assert [found.group(1) for found in BLOCK.finditer(SHOWN_AGAIN.read_text())] == [first.group(1)]
    assert [page.name for page in (ROOT / "docs").rglob("*.md") if "--8<--" in page.read_text()] == []
