"""The text of a run as its workers see it: found again by the corpus's fingerprint, cut into rows once a process."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.store import fingerprint
from patterning.experiments.induction.config import InductionConfig
from patterning.tasks.induction import copy_gain, repeated_random
from patterning.tasks.text.classes import token_classes
from patterning.tasks.text.corpus import Corpus, load_corpus
from patterning.tasks.text.embedded import sample_corpus
from patterning.tasks.text.rows import Rows, mixed_rows
from patterning.tasks.text.tokenizer import token_bytes


@dataclass(frozen=True)
class Source:
    """Where the text is and how rows are cut from it; its `fingerprint` covers the text, not the folder."""

    folder: str
    corpus: str
    context: int
    shares: tuple[tuple[str, float], ...]
    rows: int
    test_rows: int
    repeat: bool
    copy_top: float
    seed: int
    repeated_rows: int

    @property
    def fingerprint(self) -> str:
        """What keys units of work."""
        return fingerprint({name: value for name, value in asdict(self).items() if name != "folder"})


@dataclass(frozen=True)
class Text:
    """Training and test rows, labels of the test tokens (n, t - 1), random blocks (m, t) and the corpus."""

    corpus: Corpus
    train: Rows
    test: Rows
    test_classes: dict[str, NDArray[np.bool_]]
    repeated: Tensor

    @property
    def tokens(self) -> Tensor:
        """Training rows int64 (n, t)."""
        return torch.from_numpy(self.train.tokens)


def make_source(config: InductionConfig, run: Path) -> Source:
    """Find the corpus, or build the embedded sample's in the run folder. Raises `PatterningError` where it is neither.

    The corpus's vocabulary must be the configuration's.
    """
    own = config.corpus
    if own.folder is None:
        folder = run / "corpus"
        corpus = sample_corpus(own.vocabulary, folder, own.max_mb)
    else:
        folder = Path(own.folder)
        corpus = load_corpus(folder)
        if (size := corpus.tokenizer.get_vocab_size()) != own.vocabulary:
            raise PatterningError(f"{folder} has a vocabulary of {size}: corpus.vocabulary says {own.vocabulary}")
    return Source(
        str(folder.resolve()), corpus.fingerprint, config.model.context, tuple(sorted(own.shares.items())), own.rows,
        own.test_rows, own.repeat, own.copy_top, own.seed, config.structure.repeated_rows,
    )  # fmt: skip


@lru_cache(maxsize=2)
def load_text(source: Source) -> Text:
    """The rows of `source`; raises `PatterningError` when the folder has changed since the run began."""
    corpus = load_corpus(Path(source.folder))
    if corpus.fingerprint != source.corpus:
        raise PatterningError(f"{source.folder} changed since this run began: start a new run")
    shares = dict(source.shares)
    vocabulary = corpus.tokenizer.get_vocab_size()
    train, test = (
        mixed_rows(split, source.context, shares, count, source.seed, corpus.domains, repeat=source.repeat)
        for split, count in ((corpus.train, round(source.rows / source.copy_top)), (corpus.test, source.test_rows))
    )
    if source.copy_top < 1:
        train = most_to_copy(train, vocabulary, source.rows)
    return Text(
        corpus, train, test, token_classes(test.tokens, corpus.tokenizer),
        repeated_random(vocabulary, source.context, source.repeated_rows, source.seed),
    )  # fmt: skip


def most_to_copy(rows: Rows, vocabulary: int, count: int) -> Rows:
    """The `count` rows that offer most to a perfect copier (`copy_gain`), of each domain by its share, in order."""
    order = np.argsort(-copy_gain(rows.tokens, vocabulary), kind="stable")
    best = np.sort(order[stratified(rows.domains[order], count)])
    return Rows(*(getattr(rows, name)[best] for name in ("tokens", "domains", "documents")))


def pieces(text: Text) -> list[str]:
    """Each token of the vocabulary as text for people; bytes that are no character show as �."""
    return [piece.decode("utf-8", "replace") if piece else "<|>" for piece in token_bytes(text.corpus.tokenizer)]


def stratified(domains: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """`count` row numbers with the domains' own shares (largest remainders), the first rows of each; sorted."""
    names, sizes = np.unique(domains, return_counts=True)
    exact = count * sizes / len(domains)
    wanted = np.floor(exact).astype(int)
    for i in np.argsort(wanted - exact, kind="stable")[: count - wanted.sum()]:
        wanted[i] += 1
    picks = [np.flatnonzero(domains == name)[:n] for name, n in zip(names, wanted, strict=True)]
    return np.sort(np.concatenate(picks)).astype(np.int64)
