"""A corpus: tokenized documents in two splits, the tokenizer, and a manifest of where every byte came from."""

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from patterning.core.errors import PatterningError
from patterning.core.store import cannot_write, fingerprint, part_of, remove_tree, write_json, write_whole
from patterning.core.workers import Progress
from patterning.tasks.text.documents import TEST_SHARE, Document, split_documents, without_duplicates
from patterning.tasks.text.sources import Collected
from patterning.tasks.text.tokenizer import check_vocabulary, encode, read_tokenizer, train_tokenizer

T = TypeVar("T")
FORMAT = 1
_ARRAYS = ("tokens", "starts", "domains")


@dataclass(frozen=True)
class Split:
    """Documents one after the other: document i is `tokens[starts[i]:starts[i + 1]]`, the separator first.

    `tokens` uint16 (N,), `starts` int64 (documents + 1,), `domains` uint8 (documents,): index into `Corpus.domains`.
    """

    tokens: NDArray[np.uint16]
    starts: NDArray[np.int64]
    domains: NDArray[np.uint8]

    def __repr__(self) -> str:
        """How much there is of it: the arrays themselves would fill a screen."""
        return f"Split({len(self.domains):,} documents, {len(self.tokens):,} tokens)"


@dataclass(frozen=True)
class Corpus:
    """Training and test split, tokenizer, names of the domains, manifest; `fingerprint` covers tokens and tokenizer."""

    train: Split
    test: Split
    tokenizer: Tokenizer
    domains: tuple[str, ...]
    manifest: dict[str, Any]
    fingerprint: str

    def __repr__(self) -> str:
        """What it is in one line: vocabulary, domains, and how much there is of either split."""
        return (
            f"Corpus({self.tokenizer.get_vocab_size():,} tokens in the vocabulary; domains {', '.join(self.domains)}; "
            f"train {self.train}, test {self.test})"
        )


def build_corpus(
    collected: Sequence[Collected],
    vocabulary: int,
    out: str | Path,
    request: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """De-duplicate, split by document, train the tokenizer on the training split, encode, and write the folder `out`.

    The folder appears whole or not at all: tokenizer.json, manifest.json, {train,test}-{tokens,starts,domains}.npy.
    `request` is what was asked for, kept in the manifest. Raises `PatterningError` when `out` exists, a split is empty
    or the text is too small for the vocabulary.
    """
    out = Path(out)
    check_vocabulary(vocabulary)
    check_new(out)
    documents, duplicates = without_duplicates(item for source in collected for item in source.documents)
    domains = tuple(sorted({document.domain for document in documents}))
    parts = dict(zip(("train", "test"), split_documents(documents), strict=True))
    for name, part in parts.items():
        if not part:
            raise PatterningError(f"no document fell into the {name} split of {len(documents)}: use more documents")
    progress = progress or Progress()
    with stage(progress, "train tokenizer", len(parts["train"])):
        tokenizer = train_tokenizer(_counted((d.text for d in parts["train"]), progress), vocabulary)
    with stage(progress, "encode", len(documents)):
        splits = {name: _encode_split(part, tokenizer, domains, progress) for name, part in parts.items()}
    manifest = {
        "format": FORMAT,
        "request": dict(request or {}),
        "vocabulary": vocabulary,
        "domains": domains,
        "test_share": TEST_SHARE,
        "duplicates": duplicates,
        "splits": {name: _summary(split, domains) for name, split in splits.items()},
        "sources": [source.origin for source in collected],
        "tokenizers": version("tokenizers"),
        "fingerprint": _fingerprint(splits, tokenizer),
    }
    _write(out, splits, tokenizer, manifest)
    return load_corpus(out)


def load_corpus(folder: str | Path) -> Corpus:
    """Read a corpus folder; raises `PatterningError` when it is none, of another format, or changed since written."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        tokenizer = read_tokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"))
        splits = {
            name: Split(*(np.load(folder / f"{name}-{array}.npy") for array in _ARRAYS)) for name in ("train", "test")
        }
        form, stored, domains = manifest.get("format"), manifest["fingerprint"], tuple(manifest["domains"])
    except Exception as error:  # a damaged tokenizer raises `Exception` itself
        raise PatterningError(
            f"{folder} is not a corpus folder, or damaged ({type(error).__name__}: {error}): build one with "
            f"`patterning data text --out {folder}`"
        ) from error
    if form != FORMAT:
        raise PatterningError(f"{folder}: corpus format {form}, this version reads {FORMAT}: rebuild")
    if (found := _fingerprint(splits, tokenizer)) != stored:
        raise PatterningError(f"{folder}: tokens or tokenizer are not those of its manifest: build it again")
    return Corpus(splits["train"], splits["test"], tokenizer, domains, manifest, found)


def check_new(out: str | Path) -> None:
    """Raise `PatterningError` when there is something at `out` already, or nothing can be written there."""
    out = Path(out)
    if os.path.lexists(out):
        raise PatterningError(f"{out} exists: name a new folder, or delete it first")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise PatterningError(f"{out} cannot be made: {above} is no folder that may be written to")


@contextmanager
def stage(progress: Progress, name: str, total: int) -> Iterator[None]:
    """A stage of `total` units; it is over also when it fails."""
    progress.start(name, total, 0)
    try:
        yield
    finally:
        progress.finish()


def _counted(items: Iterable[T], progress: Progress) -> Iterator[T]:
    for item in items:
        yield item
        progress.advance()


def _encode_split(
    documents: Sequence[Document], tokenizer: Tokenizer, domains: tuple[str, ...], progress: Progress
) -> Split:
    ids = list(_counted(encode([document.text for document in documents], tokenizer), progress))
    starts = np.concatenate([[0], np.cumsum([len(item) for item in ids])]).astype(np.int64)
    numbers = np.array([domains.index(document.domain) for document in documents], dtype=np.uint8)
    return Split(np.concatenate(ids), starts, numbers)


def _summary(split: Split, domains: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Documents and tokens of each domain."""
    lengths = np.diff(split.starts)
    return {
        name: {
            "documents": int((split.domains == number).sum()),
            "tokens": int(lengths[split.domains == number].sum()),
        }
        for number, name in enumerate(domains)
    }


def _fingerprint(splits: Mapping[str, Split], tokenizer: Tokenizer) -> str:
    arrays = [getattr(splits[name], array) for name in ("train", "test") for array in _ARRAYS]
    return fingerprint(tokenizer.to_str(), *arrays)


def _write(out: Path, splits: Mapping[str, Split], tokenizer: Tokenizer, manifest: dict[str, Any]) -> None:
    """Write beside `out` and rename: a killed build leaves no corpus."""
    part = part_of(out)
    try:
        part.mkdir(parents=True)
        for name, split in splits.items():
            for array in _ARRAYS:
                buffer = io.BytesIO()
                np.save(buffer, getattr(split, array))
                write_whole(part / f"{name}-{array}.npy", buffer.getvalue())
        write_whole(part / "tokenizer.json", tokenizer.to_str().encode())
        write_json(part / "manifest.json", manifest)
        part.rename(out)
    except OSError as error:
        if os.path.lexists(out):
            raise PatterningError(f"{out} appeared while the corpus was built: {error}") from error
        raise cannot_write(out, error) from None
    finally:
        remove_tree(part)
