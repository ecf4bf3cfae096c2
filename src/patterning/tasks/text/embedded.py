"""The text that ships with the package: ten MB of real code, manuals and speeches, so that nothing need be fetched."""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

from patterning.core.errors import PatterningError
from patterning.tasks.text.corpus import Corpus, build_corpus, load_corpus
from patterning.tasks.text.documents import Document
from patterning.tasks.text.sources import Collected, at_most

FOLDER = Path(__file__).parent / "sample"


def sample_documents() -> list[Collected]:
    """The embedded text by source, as collected when the sample was made; licences are in sample/NOTICE.md."""
    origins: list[dict[str, Any]] = json.loads((FOLDER / "origins.json").read_text(encoding="utf-8"))
    found: dict[str, list[Document]] = {origin["name"]: [] for origin in origins}
    domains = {origin["name"]: origin["domain"] for origin in origins}
    with tarfile.open(FOLDER / "text.tar.xz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None  # the archive holds nothing but files
            source = member.name.split("/", 1)[0]
            found[source].append(Document(member.name, domains[source], file.read().decode()))
    return [Collected(found[origin["name"]], origin) for origin in origins]


def sample_corpus(vocabulary: int, folder: str | Path, max_mb: float | None = None) -> Corpus:
    """A corpus of the embedded text in `folder`: read if it is there, otherwise built (about 8 s) and written whole.

    `max_mb` takes a part only, the same share of every source: a tiny text for tests. Raises `PatterningError` when
    `folder` holds something else.
    """
    folder = Path(folder)
    request = {
        "sample": hashlib.sha256((FOLDER / "text.tar.xz").read_bytes()).hexdigest(),
        "vocabulary": vocabulary,
        "max_mb": max_mb,
    }
    if folder.exists():
        return _cached(folder, request)
    collected = sample_documents()
    if max_mb is not None:
        collected = _part(collected, max_mb)
    try:
        return build_corpus(collected, vocabulary, folder, request)
    except PatterningError:
        if folder.exists():  # another process was faster
            return _cached(folder, request)
        raise


def _cached(folder: Path, request: dict[str, Any]) -> Corpus:
    corpus = load_corpus(folder)
    if corpus.manifest["request"] != request:
        raise PatterningError(
            f"{folder} holds another corpus than the embedded sample at {request['vocabulary']} entries: "
            "name another folder, or delete it"
        )
    return corpus


def _part(collected: list[Collected], max_mb: float) -> list[Collected]:
    """The same share of every source, whole documents."""
    total = sum(document.size for source in collected for document in source.documents)
    share = min(1.0, max_mb * 1e6 / total)
    parts = []
    for source in collected:
        size = share * sum(document.size for document in source.documents)
        parts.append(at_most(source, size / 1e6))
    return parts
