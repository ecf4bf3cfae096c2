"""Text as the data of a task: found again by the corpus's fingerprint, cut into rows and labelled once a process."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.identity import digest
from patterning.tasks.induction import copy_gain
from patterning.tasks.text.classes import Labels, token_classes
from patterning.tasks.text.corpus import Corpus, load_corpus
from patterning.tasks.text.embedded import sample_corpus
from patterning.tasks.text.rows import Rows, mixed_rows
from patterning.tasks.text.tokenizer import token_bytes


@dataclass(frozen=True)
class TextSource:
    """Where text is, and how rows of `context` tokens are cut from it.

    `folder` of a corpus; "" is the sample in the package (`max_mb` of it), at `vocabulary` entries. `shares` of the
    rows by domain; a domain with too little text is an error, unless `repeat`. `copy_top` below 1: rows / copy_top rows
    are cut, and of each domain those that offer most to a perfect copier (`copy_gain`) are trained on, `rows` in all;
    test rows are not selected. `corpus`: fingerprint of the text, once it was `found`.
    """

    context: int
    vocabulary: int
    shares: tuple[tuple[str, float], ...]
    rows: int
    test_rows: int
    folder: str = ""
    max_mb: float | None = None
    repeat: bool = False
    copy_top: float = 1.0
    seed: int = 0
    corpus: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """Covers the text, not the folder that it lies in."""
        return digest(type(self), vars(replace(self, folder="")))

    def found(self, place: str | Path) -> "TextSource":
        """With the text at hand: the folder's, or the sample's, which is tokenized into `place` unless it is there.

        Raises `PatterningError` where the folder is no corpus, or of another vocabulary.
        """
        place = Path(place)
        if not self.folder:
            corpus = sample_corpus(self.vocabulary, place, self.max_mb)
            return replace(self, folder=str(place.resolve()), corpus=corpus.fingerprint)
        folder = Path(self.folder)
        corpus = load_corpus(folder)
        if (size := corpus.tokenizer.get_vocab_size()) != self.vocabulary:
            raise PatterningError(f"{folder} has a vocabulary of {size}: corpus.vocabulary says {self.vocabulary}")
        return replace(self, folder=str(folder.resolve()), corpus=corpus.fingerprint)


@dataclass(frozen=True)
class Text:
    """Training and test rows, and the corpus they were cut from."""

    corpus: Corpus
    train: Rows
    test: Rows

    @property
    def tokens(self) -> Tensor:
        """Training rows int64 (n, t)."""
        return torch.from_numpy(self.train.tokens)

    @cached_property
    def classes(self) -> dict[str, Labels]:
        """Labels (n, t - 1) of the training predictions, by token class."""
        return token_classes(self.train.tokens, self.corpus.tokenizer)

    @cached_property
    def test_classes(self) -> dict[str, Labels]:
        """Labels of the test predictions."""
        return token_classes(self.test.tokens, self.corpus.tokenizer)

    @property
    def domains(self) -> dict[str, Labels]:
        """Labels (n, t - 1) of the training predictions, by domain; only domains with a row."""
        shape = (len(self.train.tokens), self.train.tokens.shape[1] - 1)
        here = {name: self.train.domains == i for i, name in enumerate(self.corpus.domains)}
        return {name: np.broadcast_to(rows[:, None], shape) for name, rows in here.items() if rows.any()}

    @cached_property
    def pieces(self) -> list[str]:
        """Each token of the vocabulary as text for people; bytes that are no character show as �."""
        return [piece.decode("utf-8", "replace") if piece else "<|>" for piece in token_bytes(self.corpus.tokenizer)]

    @property
    def row_bytes(self) -> list[bytes]:
        """Each training row as the bytes it was cut from; a row of nothing but separators is a blank."""
        table = token_bytes(self.corpus.tokenizer)
        return [b"".join(table[token] for token in row) or b" " for row in self.train.tokens]


@lru_cache(maxsize=2)
def load_text(source: TextSource) -> Text:
    """The rows of a source that was `found`; raises `PatterningError` when the folder has changed since."""
    corpus = load_corpus(Path(source.folder))
    if corpus.fingerprint != source.corpus:
        raise PatterningError(f"{source.folder} changed since this run began: start a new run")
    shares: Mapping[str, float] = dict(source.shares)
    train, test = (
        mixed_rows(split, source.context, shares, count, source.seed, corpus.domains, repeat=source.repeat)
        for split, count in ((corpus.train, round(source.rows / source.copy_top)), (corpus.test, source.test_rows))
    )
    if source.copy_top < 1:
        train = most_to_copy(train, source.vocabulary, source.rows)
    return Text(corpus, train, test)


def most_to_copy(rows: Rows, vocabulary: int, count: int) -> Rows:
    """The `count` rows that offer most to a perfect copier (`copy_gain`), of each domain by its share, in order."""
    order = np.argsort(-copy_gain(rows.tokens, vocabulary), kind="stable")
    best = np.sort(order[stratified(rows.domains[order], count)])
    return Rows(*(getattr(rows, name)[best] for name in ("tokens", "domains", "documents")))


def stratified(domains: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """`count` row numbers with the domains' own shares (largest remainders), the first rows of each; sorted."""
    names, sizes = np.unique(domains, return_counts=True)
    exact = count * sizes / len(domains)
    wanted = np.floor(exact).astype(int)
    for i in np.argsort(wanted - exact, kind="stable")[: count - wanted.sum()]:
        wanted[i] += 1
    picks = [np.flatnonzero(domains == name)[:n] for name, n in zip(names, wanted, strict=True)]
    return np.sort(np.concatenate(picks)).astype(np.int64)
