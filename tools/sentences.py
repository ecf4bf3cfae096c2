"""Finds sentences of more than 35 words in README and docs: `python tools/sentences.py`; exit status 1 if any.

Headings, tables, code and HTML are left out; `code` inside a sentence counts as one word.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_WORDS = 35
FENCE, TABLE, HEADING = re.compile(r"^\s*(```|~~~)"), re.compile(r"^\s*\|"), re.compile(r"^#")
ITEM = re.compile(r"^\s*([*+-]|\d+\.)\s+")
ADMONITION = re.compile(r"^\s*(\?\?\?|!!!)")
ABBREVIATION = re.compile(r"\b(et al|e\.g|i\.e|vs|cf|Fig|Sec|Eq)\.")
END = re.compile(r"(?<=[.!?])[\"')\]*_]*\s+(?=[\"'(\[*_`]*[^\W_a-z])")


def paragraphs(markdown: str) -> Iterator[tuple[int, str]]:
    """Each paragraph or list item as one line of text, with the number of its first line."""
    lines, start, held = re.sub(r"<!--.*?-->", _blank, markdown, flags=re.DOTALL).splitlines(), 0, list[str]()
    fenced, in_list = False, False
    for number, line in enumerate([*lines, ""], 1):
        fence = FENCE.match(line)
        item = ITEM.match(line)
        code = line.startswith("    ") and not held and not in_list
        skipped = fenced or fence or TABLE.match(line) or HEADING.match(line) or ADMONITION.match(line) or code
        fenced = fenced != bool(fence)
        if held and (skipped or item or not line.strip()):
            yield start, " ".join(held)
            held = []
        in_list = bool(item) or (in_list and (line.startswith(" ") or not line.strip()))
        if not skipped and line.strip():
            start = start if held else number
            held.append(line[item.end() :] if item else line.strip())


def _blank(comment: re.Match[str]) -> str:
    return "\n" * comment.group().count("\n")


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, without its markup."""
    plain = re.sub(r"``.+?``|`[^`]+`", "Code", paragraph)
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
    plain = re.sub(r"<[^>]+>", " ", plain)
    plain = ABBREVIATION.sub(lambda found: found.group().replace(".", "·"), plain)
    return [part.strip() for part in END.split(plain) if part.strip()]


def words(sentence: str) -> int:
    """Words and numbers; signs alone do not count."""
    return sum(any(letter.isalnum() for letter in word) for word in sentence.split())


def pages(root: Path = ROOT) -> list[Path]:
    """README, the pages of the site, and what a contributor reads."""
    top = [root / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [page for page in (*top, *sorted((root / "docs").rglob("*.md"))) if page.exists()]


def long_sentences(page: Path) -> list[tuple[int, int, str]]:
    """(line, words, sentence) of each sentence that is too long."""
    found = []
    for line, paragraph in paragraphs(page.read_text(encoding="utf-8")):
        found += [(line, words(s), s) for s in sentences(paragraph) if words(s) > MOST_WORDS]
    return found


def main() -> int:
    """Print every sentence that is too long."""
    count = 0
    for page in pages():
        for line, number, sentence in long_sentences(page):
            count += 1
            print(f"{page.relative_to(ROOT)}:{line}: {number} words: {sentence}")
    print(f"{count} sentences of more than {MOST_WORDS} words in {len(pages())} pages")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
