"""The documentation: short sentences, links that lead somewhere, errors that exist, and no page left out."""

import ast
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import patterning as pt

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


sentences, notebooks = tool("sentences"), tool("notebooks")


def nav_pages() -> list[str]:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    return [page for part in nav for entry in next(iter(part.values())) for page in entry.values()]


@pytest.mark.parametrize("page", sentences.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_sentence_is_longer_than_35_words(page: Path) -> None:
    assert sentences.long_sentences(page) == []


def test_sentences_are_counted_as_a_reader_would(tmp_path: Path) -> None:
    long = " ".join(["Word", *["word"] * 35])
    text = (
        f"# {long}\n\nShort. {long}. Short.\n\n| {long} |\n\n```\n{long}\n```\n\n* {long}\n* Short e.g. this. `x` is.\n"
    )
    (tmp_path / "page.md").write_text(text)
    assert [(line, number) for line, number, _ in sentences.long_sentences(tmp_path / "page.md")] == [
        (3, 36), (11, 36)
    ]  # fmt: skip
    assert sentences.sentences("One by Lau et al. here. `two` follows. Three?") == [
        "One by Lau et al· here.", "Code follows.", "Three?"
    ]  # fmt: skip


def test_every_page_is_in_the_navigation_and_in_llms_txt() -> None:
    written = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    written |= {str(page.relative_to(DOCS).with_suffix(".md")) for page in (DOCS / "notebooks").glob("*.py")}
    assert set(nav_pages()) == written
    listed = re.findall(r"\]\(([^)]+)\)", (DOCS / "llms.txt").read_text())
    assert sorted(listed) == sorted(nav_pages())


def test_links_between_pages_lead_to_files() -> None:
    known, lost = {DOCS / name for name in nav_pages()}, []
    for page in (*DOCS.rglob("*.md"), *(DOCS / "notebooks").glob("*.py")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
            place = (page.parent / target).resolve()
            if not (place.exists() or place in known):
                lost.append(f"{page.name}: {target}")
    assert lost == []


def texts_of_the_package() -> str:
    """Every piece of text in the sources, parts of f-strings joined by ~."""
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("~".join(str(part.value) for part in node.values if isinstance(part, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_on_the_page_of_errors_are_in_the_package() -> None:
    messages = re.findall(r"^\| `([^`]+)` \|", (DOCS / "errors.md").read_text(), re.MULTILINE)
    assert len(messages) > 25
    sources = texts_of_the_package()
    assert [message for message in messages if message not in sources] == []


def test_verdicts_on_the_page_of_settings_are_those_of_the_code() -> None:
    page = (DOCS / "sampler-settings.md").read_text()
    source = (ROOT / "src/patterning/posterior/find_settings.py").read_text().partition("def _verdict")[2]
    verdicts = set(re.findall(r'return \(?\s*"([a-z ]+)",', source))
    assert verdicts == set(re.findall(r"^\| `([a-z ]+)` \| ", page, re.MULTILINE)) - {"verdict"}


def test_every_public_name_is_on_the_page_of_names() -> None:
    page = (DOCS / "api" / "index.md").read_text()
    named = {line.split()[1].rpartition(".")[2] for line in page.splitlines() if line.startswith(":::")}
    assert set(pt.__all__) - {"components"} <= named
    assert "list_components" in named


def test_notebooks_are_cells_of_text_and_code(tmp_path: Path) -> None:
    source = "# ---\n# %% [markdown]\n# # Title\n#\n# text\n# %%\nx = 2\nprint(x)\nx + 1\n"
    (tmp_path / "one.py").write_text(source)
    assert notebooks.cells(source) == [("markdown", "# Title\n\ntext"), ("code", "x = 2\nprint(x)\nx + 1")]
    assert "2\n3" in notebooks.run(tmp_path / "one.py")
    (tmp_path / "one.py").write_text("# %%\nassert 1 > 2, 'wrong'\n")
    with pytest.raises(AssertionError, match="wrong"):
        notebooks.run(tmp_path / "one.py")


def test_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
    assert (ROOT / "CHANGELOG.md").read_text().split("## ")[1].startswith(version)


def test_what_tools_need_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().split()}
    wanted = [name for group in ("dev", "docs", "dist", "pages") for name in project["optional-dependencies"][group]]
    names = {re.split(r"[\[<>=]", name)[0].lower() for name in (*project["dependencies"], *wanted)}
    assert names <= pinned
