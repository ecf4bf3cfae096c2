"""A user's own text: local files and folders, or a data set of the Hugging Face hub.

A file that is named must be readable, whole and text: anything else is an error that names it. Of a folder, files that
are not are left out, and counted by reason.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from patterning.core.errors import PatterningError
from patterning.tasks.text.documents import Document, why_not_text
from patterning.tasks.text.sources import Collected, described

PLAIN = (".txt", ".md", ".rst", ".py")
RECORDS = (".jsonl", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_NO_TEXT = "records without text"


class UnreadableError(PatterningError):
    """A file that holds no text: `reason` in a few words, the same for all files of its kind."""

    def __init__(self, sentence: str, reason: str) -> None:
        super().__init__(sentence)
        self.reason = reason


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
    named = "=" in words and not Path(words).exists()
    domain, place = words.split("=", 1) if named else ("local", words)
    place = os.path.expanduser(place)  # a shell leaves the ~ in DOMAIN=~/PLACE alone
    path = Path(place)
    if not re.fullmatch(r"\w[\w -]*", domain):
        raise PatterningError(f"--dataset {words}: {domain!r} is no name for a domain")
    if path.is_symlink() and not path.exists():
        raise PatterningError(f"{path} is a link to {os.readlink(path)}, which is not there")
    if path.exists() and not path.is_dir() and not path.is_file():
        raise PatterningError(f"{path} is neither a file nor a folder")
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


@dataclass
class _Shelf:
    """Documents of a data set up to `limit` bytes of text, and what was left out, by reason."""

    domain: str
    limit: float
    documents: list[Document] = field(default_factory=list)
    size: int = 0
    full: bool = False
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, texts: Iterable[tuple[str, str]]) -> None:
        """Take (name, text) pairs until one does not fit; nothing of them where reading them fails."""
        taken: list[Document] = []
        size = self.size
        for name, text in texts:
            document = Document(name, self.domain, text)
            if size + document.size > self.limit:
                self.full = True
                break
            taken.append(document)
            size += document.size
        self.documents += taken
        self.size = size


def collect_dataset(dataset: Dataset, max_mb: float | None = None) -> Collected:
    """The documents of a data set, in their order, until `max_mb` MB of text are reached.

    A plain file is one document, a record of .jsonl or .parquet or of the hub is one: its field "text"; a record whose
    text is empty or null is left out. The manifest entry counts what was left out, by reason (`left_out`). Raises
    `PatterningError` when there is no text, and for a named file that is damaged, not UTF-8 or without such a field.
    """
    limit = float("inf") if max_mb is None else max_mb * 1e6
    shelf = _Shelf(dataset.domain, limit)
    path = Path(dataset.place)
    if not dataset.local:
        shelf.add(_hub(dataset.place, shelf.left_out))
    elif path.is_dir():
        _read_folder(path, shelf)
    else:
        shelf.add(_read_file(path, shelf.left_out))
    if not shelf.documents:
        why = f" of at most {limit / 1e6:g} MB" if max_mb is not None else ""
        left = f" (left out: {counted(shelf.left_out)})" if shelf.left_out else ""
        raise PatterningError(f"{dataset.place}: no text{why} in it{left}")
    origin = {
        "name": dataset.place,
        "domain": dataset.domain,
        "package": "local" if dataset.local else "hub",
        "version": "",
        "licence": "not recorded",
        "left_out": dict(sorted(shelf.left_out.items())),
    }
    return described(shelf.documents, origin)


def counted(left_out: Mapping[str, int]) -> str:
    """Counts by reason in words: "3 not UTF-8, 1 empty"."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))


def _read_folder(folder: Path, shelf: _Shelf) -> None:
    for file in _walk(folder, shelf.left_out):
        if shelf.full:
            return
        before = Counter(shelf.left_out)
        try:
            shelf.add(_read_file(file, shelf.left_out))
        except UnreadableError as error:
            shelf.left_out = before  # the file as a whole is left out, not its records one by one
            shelf.left_out[error.reason] += 1


def _walk(folder: Path, left_out: Counter[str]) -> list[Path]:
    """Files of a known kind below `folder`, in the order of their paths."""
    files: list[Path] = []

    def unreadable(_: OSError) -> None:
        left_out["folders that cannot be read"] += 1

    for root, _, names in os.walk(folder, onerror=unreadable):
        for path in (Path(root) / name for name in names):
            if path.suffix not in PLAIN + RECORDS:
                left_out[f"not {', '.join(PLAIN + RECORDS)}"] += 1
            elif path.is_symlink() and not path.exists():
                left_out["links to nowhere"] += 1
            elif not path.is_file():
                left_out["no regular files"] += 1
            else:
                files.append(path)
    return sorted(files)


def _read_file(path: Path, left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of the documents of a file; raises `UnreadableError`, with the line or record."""
    try:
        if path.suffix in PLAIN:
            yield path.as_posix(), _text(path.read_bytes(), str(path))
            return
        records = _jsonl(path) if path.suffix == ".jsonl" else _parquet(path)
        yield from _of_records(records, str(path), path.as_posix(), left_out)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UnreadableError(f"{path} cannot be read ({reason})", f"cannot be read ({reason})") from None


def _text(data: bytes, where: str) -> str:
    text, reason = why_not_text(data)
    if text is None:
        raise UnreadableError(f"{where} is no text: {reason}", reason)
    return text


def _of_records(
    records: Iterable[tuple[int, object]], where: str, name: str, left_out: Counter[str]
) -> Iterator[tuple[str, str]]:
    """(name, text) of records, each with its number, the first being 1; raises for one of another form."""
    number = 0
    for number, record in records:
        if not isinstance(record, Mapping) or "text" not in record:
            raise UnreadableError(f'{where}, record {number}: no text in a field "text"', 'no field "text"')
        value = record["text"]
        if value is not None and not isinstance(value, str):
            kind = type(value).__name__
            raise UnreadableError(
                f'{where}, record {number}: the field "text" holds a {kind}', 'no text in the field "text"'
            )
        text, _ = why_not_text((value or "").encode("utf-8", "replace"))
        if text is None:
            left_out[_NO_TEXT] += 1
        else:
            yield f"{name}#{number}", text
    if number == 0:
        raise UnreadableError(f"{where} is no text: empty", "empty")


def _jsonl(path: Path) -> Iterator[tuple[int, object]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                words = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UnreadableError(f"{path}, line {number}: not UTF-8 ({error.reason})", "not UTF-8") from None
            if not words.strip():
                continue
            try:
                yield number, json.loads(words)
            except (ValueError, RecursionError) as error:
                raise UnreadableError(f"{path}, line {number}: not JSON ({error})", "not JSON") from None


def _parquet(path: Path) -> Iterator[tuple[int, object]]:
    parquet = _needed("pyarrow.parquet", str(path))
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                raise UnreadableError(f'{path} has no column "text": it has {", ".join(names)}', 'no column "text"')
            for batch in file.iter_batches(columns=["text"]):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except Exception as error:
        if isinstance(error, PatterningError):
            raise
        place = f", after record {number}" if number else ""  # pyarrow's errors have no common base
        words = " ".join(str(error).split())
        raise UnreadableError(
            f"{path}{place}: damaged, or no parquet file ({words})", "damaged, or no parquet"
        ) from None


def _hub(place: str, left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    datasets = _needed("datasets", f"the hub data set {place}")
    name, _, configuration = place.partition(":")
    try:
        stream = datasets.load_dataset(name, configuration or None, split="train", streaming=True)
        yield from _of_records(enumerate(stream, start=1), place, place, left_out)
    except PatterningError:
        raise
    except Exception as error:  # the hub's client has no common base for what may go wrong
        raise PatterningError(f"could not read the hub data set {place}: {error}") from error


def _needed(module: str, what: str) -> Any:
    package = module.split(".", 1)[0]
    try:
        return import_module(module)
    except ImportError as error:
        raise PatterningError(f"{what} needs the package {package}: pip install 'patterning[hub]'") from error
