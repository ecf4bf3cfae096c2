"""Rows of a parquet file, read a row group at a time, so that the file need not fit in memory."""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any

from patterning.core.errors import PatterningError

GROUPS_KEPT = 4
"""Row groups that are held decoded; rows that are read in order need one."""
CHUNK = 1 << 20
Stamp = tuple[int, int, int]
"""Size, time of the last change and number of a file."""


class ParquetRows:
    """A map-style data set: row i is a dict of the columns' values. The file is memory-mapped.

    Raises `PatterningError` for a file that is missing or no parquet. Rows of a file with few, large groups are slow
    to read at random: write it with `row_group_size=1000`, say.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: Any = None
        self._kept: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()
        about = self._open().metadata
        self._stamp: Stamp | None = self._now()
        sizes = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
        self._starts = [0, *accumulate(sizes)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> dict[str, Any]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        group = bisect_right(self._starts, row) - 1
        if group not in self._kept:
            self._check_unchanged()
            self._kept[group] = self._open().read_row_group(group).to_pylist()
            if len(self._kept) > GROUPS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group][row - self._starts[group]]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is open: workers open the file themselves."""
        return {**self.__dict__, "_file": None, "_kept": OrderedDict(), "_stamp": None}  # a copy has another time

    @property
    def _fingerprint(self) -> str:
        """Of the file's bytes, which must be those that rows were read from."""
        self._check_unchanged()
        total = hashlib.sha256()
        with self.path.open("rb") as file:
            while part := file.read(CHUNK):
                total.update(part)
        return total.hexdigest()[:16]

    def _now(self) -> Stamp:
        about = self.path.stat()
        return about.st_size, about.st_mtime_ns, about.st_ino

    def _check_unchanged(self) -> None:
        """Raise `PatterningError` where the file was written anew: old and new rows would be mixed."""
        if self._stamp is not None and (not self.path.exists() or self._now() != self._stamp):
            raise PatterningError(f"{self.path} has changed since its rows were first read: make the task again")

    def _open(self) -> Any:
        if self._file is None:
            import pyarrow
            import pyarrow.parquet

            try:
                self._file = pyarrow.parquet.ParquetFile(self.path, memory_map=True)
            except (OSError, ValueError, pyarrow.ArrowException) as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise PatterningError(f"{self.path} cannot be read as parquet ({reason})") from None
        return self._file
