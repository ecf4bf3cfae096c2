"""Byte-level BPE: 256 bytes, one special token, learned merges; deterministic.

Pieces are cut as in GPT-2 (letters, digits, other signs and whitespace never share a token, but for one leading space),
so a token is of one kind and `classes.py` can name it.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from patterning.core.errors import PatterningError

SEPARATOR = "<|endoftext|>"
SEPARATOR_ID = 0  # stands before every document
SMALLEST, LARGEST = 257, 2**16  # 256 bytes and the separator; ids are stored as uint16
_CHUNK = 256  # documents encoded at a time


def check_vocabulary(vocabulary: int) -> None:
    """Raise `PatterningError` for a size that no byte-level vocabulary of 16-bit ids can have."""
    if not SMALLEST <= vocabulary <= LARGEST:
        raise PatterningError(
            f"vocabulary {vocabulary}: it must be from {SMALLEST} (256 bytes, 1 special) to {LARGEST}"
        )


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A tokenizer of exactly `vocabulary` entries: id 0 the separator, 1-256 the bytes, then merges by frequency.

    Raises `PatterningError` when the text is too small for that many merges.
    """
    check_vocabulary(vocabulary)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (size := tokenizer.get_vocab_size()) != vocabulary:
        raise PatterningError(f"the text yields only {size} of {vocabulary} vocabulary entries: use more text or fewer")
    return tokenizer


def read_tokenizer(data: str) -> Tokenizer:
    """A tokenizer from its JSON."""
    return Tokenizer.from_str(data)


def encode(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[NDArray[np.uint16]]:
    """The ids of each text in order, the separator first; a separator written out in a text is plain characters."""
    tokenizer.encode_special_tokens = True
    for start in range(0, len(texts), _CHUNK):
        for encoding in tokenizer.encode_batch_fast(list(texts[start : start + _CHUNK]), add_special_tokens=False):
            yield np.array([SEPARATOR_ID, *encoding.ids], dtype=np.uint16)


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of every token by id; the separator's are empty."""
    alphabet = _byte_of_character()
    entries = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [b"" if entry == SEPARATOR else bytes(alphabet[c] for c in entry) for entry, _ in entries]


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: itself if it is printable, else 256, 257, …"""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
