"""One self-contained HTML page: no network, no files beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from patterning.core.store import refuse_other, write_whole

MARK = b'<html lang="en" class="plain">'
"""What every page begins with, and hardly another one."""


@dataclass(frozen=True)
class Row:
    """Cells of a table row; `kind` is a class of the style sheet."""

    cells: Sequence[str]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table; with `folded`, a long one that opens on a click on these words."""

    head: Sequence[str]
    rows: Sequence[Row]
    folded: str = ""


@dataclass(frozen=True)
class Section:
    """A headed part of the page: text, then `html` (escaped by its maker), then tables."""

    title: str
    text: str = ""
    tables: Sequence[Table] = field(default_factory=tuple)
    html: Sequence[Markup] = field(default_factory=tuple)


def write_page(path: str | Path, render: Callable[[], str]) -> None:
    """Write the page that `render` makes, whole; raises `PatterningError` where another kind of file would be lost."""
    refuse_other_page(path)
    write_whole(Path(path), render().encode(errors="replace"))


def refuse_other_page(path: str | Path) -> None:
    """Raise `PatterningError` where a file lies at `path` that is no page of this package, and would be lost."""
    refuse_other(path, lambda there: MARK in there.read_bytes()[:1000], "page of this package")


def render_page(
    *,
    title: str,
    subtitle: str,
    headline: Sequence[str],
    warnings: Sequence[str],
    sections: Sequence[Section],
    provenance: str,
    config: str,
    opening: Sequence[Markup] = (),
) -> str:
    """The page as text. Everything but `opening` and the sections' `html` is escaped.

    The first screen answers: the first line of `headline` is the answer, the others stand under it; `opening` is the
    figure, and `warnings` follow, the worst first. It follows the reader's light or dark mode, and holds no script.
    """
    template = files("patterning.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            title=title,
            subtitle=subtitle,
            headline=headline,
            opening=opening,
            warnings=warnings,
            sections=sections,
            provenance=provenance,
            config=config,
        )
    )
