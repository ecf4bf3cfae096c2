"""Documents: cleaned, without duplicates, split by a hash of their content."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

TEST_SHARE = 0.05


@dataclass(frozen=True)
class Document:
    """One text: a source file, a page of a manual, a speech. `domain` is the kind of text it counts as."""

    name: str
    domain: str
    text: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text, hex: equal texts are one document whatever their names."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of UTF-8."""
        return len(self.text.encode())


def clean(data: bytes, shortest: int = 200) -> str | None:
    """Bytes as text: UTF-8, Unix line ends, no NUL, one final newline; None if they are not that, or too short."""
    text, _ = why_not_text(data)
    return None if text is None or len(text) < shortest else text


def why_not_text(data: bytes) -> tuple[str | None, str]:
    """Bytes as text, cleaned as by `clean`; or None and the reason: they are not UTF-8, binary, or empty."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None, "not UTF-8"
    if "\0" in text:
        return None, "binary (it holds NUL bytes)"
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").strip("\n")
    return (text + "\n", "") if text.strip() else (None, "empty")


def without_duplicates(documents: Iterable[Document]) -> tuple[list[Document], int]:
    """The first of each set of documents with the same text, in their order; and how many were dropped."""
    seen: dict[str, Document] = {}
    count = 0
    for document in documents:
        count += 1
        seen.setdefault(document.digest, document)
    return list(seen.values()), count - len(seen)


def split_documents(documents: Sequence[Document], share: float = TEST_SHARE) -> tuple[list[Document], list[Document]]:
    """Training and test documents, in their order.

    A document is a test document if its hash, read as a number in [0, 1), is below `share`: its content alone decides,
    not which other documents are there nor their order. Only where this leaves a domain of two or more documents
    without any, the one with the smallest hash goes to the test split.
    """
    test = {document.digest for document in documents if int(document.digest[:8], 16) < share * 2**32}
    for domain in sorted({document.domain for document in documents}):
        digests = [document.digest for document in documents if document.domain == domain]
        if len(digests) > 1 and not test.intersection(digests):
            test.add(min(digests))
    return [d for d in documents if d.digest not in test], [d for d in documents if d.digest in test]


def take(documents: Sequence[Document], size: float) -> list[Document]:
    """Documents of about `size` bytes in all, chosen by content hash, in their original order.

    Whole documents are taken in an order by hash as long as they fit; maybe none. The order uses other digits of the
    hash than `split_documents`, so a part has the same share of test documents as the whole.
    """
    chosen: set[str] = set()
    left = size
    for document in sorted(documents, key=lambda item: item.digest[8:]):
        if document.size <= left:
            chosen.add(document.digest)
            left -= document.size
    return [document for document in documents if document.digest in chosen]
