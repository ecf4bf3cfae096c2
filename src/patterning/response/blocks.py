"""Equal blocks of numbers in one file, each with a checksum: written in order, read in any order, one at a time."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.store import cannot_write, part_of

REMEDY = "delete the run folder, or its folder draws, and give the command again"


class Writer:
    """Appends blocks to what will be the file `path`; `sums` (blocks,) are their checksums."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._sums: list[int] = []

    def add(self, block: Tensor) -> None:
        """Append one; raises `PatterningError` where it cannot be written."""
        data = block.detach().cpu().numpy().tobytes()
        self._sums.append(zlib.crc32(data))
        try:
            self._file.write(data)
        except OSError as error:
            raise cannot_write(self._path, error) from None

    @property
    def sums(self) -> np.ndarray:
        """Checksums of what was written, uint32."""
        return np.array(self._sums, dtype=np.uint32)


@contextmanager
def written(path: str | Path) -> Iterator[Writer]:
    """A file that is there when all of it is, and leaves nothing behind otherwise.

    Raises `PatterningError` where it cannot be written.
    """
    path = Path(path)
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("wb")
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        with file:
            yield Writer(path, file)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class Blocks:
    """Blocks of `shape` in a file, of the type of `like` and on its device; `sums` (blocks,): their checksums.

    Raises `PatterningError` where the file is missing or a byte of the block that is read has changed.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], sums: np.ndarray, like: Tensor) -> None:
        self._path, self._shape, self._sums, self._like = path, shape, sums, like
        self._type = torch.empty(0, dtype=like.dtype).numpy().dtype

    def __len__(self) -> int:
        """How many blocks."""
        return len(self._sums)

    def __getitem__(self, index: int) -> Tensor:
        """One of them."""
        size = int(np.prod(self._shape)) * self._type.itemsize
        try:
            with self._path.open("rb") as file:
                file.seek(index * size)
                data = file.read(size)
        except OSError as error:
            raise PatterningError(f"{self._path} cannot be read ({error.strerror}): {REMEDY}") from None
        if len(data) != size or zlib.crc32(data) != self._sums[index]:
            raise PatterningError(f"{self._path} is damaged at draw {index}: {REMEDY}")
        values = np.frombuffer(data, self._type).reshape(self._shape)
        return torch.from_numpy(values.copy()).to(self._like)
