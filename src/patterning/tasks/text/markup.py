"""Plain text of HTML manual pages, without their navigation."""

import re
from html.parser import HTMLParser

_SILENT = {"script", "style", "head", "button", "select", "svg", "form"}
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_BLOCK = {
    "p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "li", "ul", "ol", "dl", "dt", "dd", "tr", "table", "pre", "br",
    "hr", "blockquote", "section",
}  # fmt: skip
_NAVIGATION = {"navheader", "navfooter", "nosearch", "toc"}  # menus and tables of contents, the same on many pages


class _Reader(HTMLParser):
    """Collects text; whitespace is folded but inside <pre>, and a block element starts a new line."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.pre = 0
        self.skipped: str | None = None  # the element that is being left out
        self.depth = 0  # how many elements of that name are open inside it

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.skipped is not None:
            self.depth += tag == self.skipped
            return
        classes = set((dict(attrs).get("class") or "").split())
        if tag not in _VOID and (tag in _SILENT or classes & _NAVIGATION):
            self.skipped, self.depth = tag, 1
            return
        self.pre += tag == "pre"
        self._edge(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.skipped is not None:
            self.depth -= tag == self.skipped
            if self.depth == 0:
                self.skipped = None
            return
        self.pre = max(0, self.pre - (tag == "pre"))
        self._edge(tag)

    def handle_data(self, data: str) -> None:
        if self.skipped is None:
            self.parts.append(data if self.pre else re.sub(r"\s+", " ", data))

    def _edge(self, tag: str) -> None:
        if tag in _BLOCK:
            self.parts.append("\n")
        elif tag in ("td", "th"):
            self.parts.append(" ")


def html_text(page: str) -> str:
    """The readable text of an HTML page: one line a paragraph, at most one empty line in a row, `<pre>` as it is."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    text = "".join(reader.parts).replace("\xa0", " ")
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = re.sub(r"\n (?=\S)", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"
