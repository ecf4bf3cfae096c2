"""What the site has beside its Markdown files: executed notebooks, links to the repository."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files  # pyright: ignore[reportMissingImports]

sys.path.insert(0, str(Path(__file__).parent))

from notebooks import NOTEBOOKS, rendered

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:examples|src|tests)/[^)]*\)")
"""Links to the repository's files, which are not on the site."""


def on_config(config: Any) -> Any:
    """Headings get the anchors that they have on GitHub, Greek letters included."""
    from pymdownx.slugs import slugify  # pyright: ignore[reportMissingImports]

    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: Any) -> Files:
    """Each notebook becomes a page; its source stays beside it, to be downloaded."""
    for path in sorted(NOTEBOOKS.glob("*.py")):
        source = f"\n\n[The source of this page]({path.name}): open it in Jupyter with jupytext, or in an editor.\n"
        page = File.generated(config, f"notebooks/{path.stem}.md", content=rendered(path) + source)
        files.append(page)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files outside the site are their text."""
    return OUTSIDE.sub(r"\1", markdown)
