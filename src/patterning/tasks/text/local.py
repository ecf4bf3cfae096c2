"""A user's own text: local files and folders, or a data set of the Hugging Face hub."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from patterning.errors import PatterningError
from patterning.tasks.text.documents import Document, clean
from patterning.tasks.text.sources import Collected, described

PLAIN = (".txt", ".md", ".rst", ".py")
RECORDS = (".jsonl", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


@dataclass(frozen=True)
class Dataset:
    """`[DOMAIN=]PLACE`: a file, a folder, or a hub id `owner/name[:configuration]` (its training split)."""

    domain: str
    place: str

    @property
    def local(self) -> bool:
        """Whether the place is on this machine."""
        return Path(self.place).exists()


def parse_dataset(words: str) -> Dataset:
    """`[DOMAIN=]PLACE` as a `Dataset`, domain "local" by default.

    Raises `PatterningError` before anything is read when the place is no file of a known kind and no hub id, or when
    the package that it needs is missing.
    """
    domain, place = words.split("=", 1) if "=" in words else ("local", words)
    path = Path(place)
    if not re.fullmatch(r"\w[\w -]*", domain):
        raise PatterningError(f"--dataset {words}: {domain!r} is no name for a domain")
    if path.is_file() and path.suffix not in PLAIN + RECORDS:
        raise PatterningError(f"{path}: text is read from {', '.join(PLAIN + RECORDS)} files")
    if not path.exists() and (path.suffix in PLAIN + RECORDS or not _HUB_ID.fullmatch(place)):
        raise PatterningError(
            f"{place}: no such file or folder, and no hub id (owner/name or owner/name:configuration)"
        )
    if not path.exists():
        _needed("datasets", f"the hub data set {place}")
    if path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet"))):
        _needed("pyarrow.parquet", str(path))
    return Dataset(domain, place)


def collect_dataset(dataset: Dataset, max_mb: float | None = None) -> Collected:
    """The documents of a data set, in their order, until `max_mb` MB of text are reached.

    A plain file is one document, a record of .jsonl or .parquet or of the hub is one: its field "text". Raises
    `PatterningError` when there is no such field or no text.
    """
    limit = float("inf") if max_mb is None else max_mb * 1e6
    documents: list[Document] = []
    size = 0
    for name, content in _texts(dataset):
        if (text := clean(content, shortest=1)) is None:
            continue
        document = Document(name, dataset.domain, text)
        if size + document.size > limit:
            break
        documents.append(document)
        size += document.size
    if not documents:
        raise PatterningError(f"{dataset.place}: no text of at most {limit / 1e6:g} MB in it")
    kind = "local" if dataset.local else "hub"
    origin = {
        "name": dataset.place,
        "domain": dataset.domain,
        "package": kind,
        "version": "",
        "licence": "not recorded",
    }
    return described(documents, origin)


def _texts(dataset: Dataset) -> Iterator[tuple[str, bytes]]:
    if not dataset.local:
        yield from _hub(dataset.place)
        return
    path = Path(dataset.place)
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.suffix in PLAIN + RECORDS)
    for file in files:
        if file.suffix in PLAIN:
            yield file.as_posix(), file.read_bytes()
        else:
            records = _jsonl(file) if file.suffix == ".jsonl" else _parquet(file)
            for number, record in enumerate(records, start=1):
                yield f"{file.as_posix()}#{number}", _field(record, f"{file}, record {number}")


def _jsonl(path: Path) -> Iterator[object]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise PatterningError(f"{path}, line {number}: not JSON ({error})") from error


def _parquet(path: Path) -> Iterator[object]:
    parquet = _needed("pyarrow.parquet", str(path))
    file = parquet.ParquetFile(path)
    if "text" not in file.schema_arrow.names:
        raise PatterningError(f'{path} has no column "text": it has {", ".join(file.schema_arrow.names)}')
    for batch in file.iter_batches(columns=["text"]):
        yield from batch.to_pylist()


def _hub(place: str) -> Iterator[tuple[str, bytes]]:
    datasets = _needed("datasets", f"the hub data set {place}")
    name, _, configuration = place.partition(":")
    try:
        stream = datasets.load_dataset(name, configuration or None, split="train", streaming=True)
        for number, record in enumerate(stream, start=1):
            yield f"{place}#{number}", _field(record, f"{place}, record {number}")
    except PatterningError:
        raise
    except Exception as error:  # the hub's client has no common base for what may go wrong
        raise PatterningError(f"could not read the hub data set {place}: {error}") from error


def _field(record: object, where: str) -> bytes:
    text = record.get("text") if isinstance(record, Mapping) else None
    if not isinstance(text, str):
        raise PatterningError(f'{where}: no text in a field "text"')
    return text.encode("utf-8", "replace")


def _needed(module: str, what: str) -> Any:
    package = module.split(".", 1)[0]
    try:
        return import_module(module)
    except ImportError as error:
        raise PatterningError(f"{what} needs the package {package}: pip install 'patterning[hub]'") from error
