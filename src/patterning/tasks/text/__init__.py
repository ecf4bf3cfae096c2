"""Real text as a task: sources, byte-level tokenizer, corpora, rows of tokens, classes of tokens (docs/data.md)."""

from patterning.tasks.text.classes import CLASSES, token_classes
from patterning.tasks.text.corpus import Corpus, Split, build_corpus, load_corpus
from patterning.tasks.text.embedded import sample_corpus
from patterning.tasks.text.rows import Rows, mixed_rows

__all__ = [
    "CLASSES",
    "Corpus",
    "Rows",
    "Split",
    "build_corpus",
    "load_corpus",
    "mixed_rows",
    "sample_corpus",
    "token_classes",
]
