"""One self-contained HTML page: no network, no files beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING

from jinja2 import Environment
from markupsafe import Markup

if TYPE_CHECKING:
    import plotly.graph_objects as go


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
    """A headed part of the page: text, then figures, then `html` (escaped by its maker), then tables."""

    title: str
    text: str = ""
    figures: Sequence["go.Figure"] = field(default_factory=tuple)
    tables: Sequence[Table] = field(default_factory=tuple)
    html: Sequence[Markup] = field(default_factory=tuple)


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
    """The page as text. Everything but the figures, `opening` and the sections' `html` is escaped.

    `opening` follows the headline, before the warnings: what belongs on the first screen.
    Plotly's 5 MB are in it only where a section has a plotly figure; a page without one follows the reader's dark mode.
    """
    interactive = any(section.figures for section in sections)
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
            sections=[
                {
                    "title": section.title,
                    "text": section.text,
                    "tables": section.tables,
                    "html": section.html,
                    "figures": [
                        Markup(
                            figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
                        )
                        for figure in section.figures
                    ],
                }
                for section in sections
            ],
            provenance=provenance,
            config=config,
            plotly_js=_plotly() if interactive else "",
        )
    )


def _plotly() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())
