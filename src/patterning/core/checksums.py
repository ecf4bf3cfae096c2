"""Checksums that are stored with results, so that a lost or changed byte is an error and not another number.

A folder gets a file `SHA256SUMS` in the format of sha256sum(1), so that `cd FOLDER && sha256sum --check SHA256SUMS`
checks it too; named arrays get one digest.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterning.core.errors import PatterningError

SUMS = "SHA256SUMS"
_STRANGERS = (".DS_Store", "Thumbs.db", "desktop.ini")
"""What file managers leave in any folder."""


def array_digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of names, types, shapes and bytes, hex; the order does not matter."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{len(name)} {name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def seal(folder: Path) -> None:
    """Write `SHA256SUMS` of all files below `folder`, and make the system put all of them on the disk."""
    lines = []
    for path in _files(folder):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder).as_posix()}\n")
            os.fsync(file.fileno())
    with (folder / SUMS).open("w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def check(folder: Path, remedy: str) -> None:
    """Raise `PatterningError` when a file below `folder` is missing, changed or new since `seal`; `remedy`: what to do.

    Raises it as well where there is no readable `SHA256SUMS`.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise PatterningError(f"{folder} is damaged: {SUMS} cannot be read ({error}): {remedy}") from None
    there = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    for name, digest in expected.items():
        if name not in there:
            raise PatterningError(f"{folder} is damaged: {name} is missing: {remedy}")
        try:
            with there[name].open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise PatterningError(f"{there[name]} cannot be read ({error.strerror}): {remedy}") from None
        if found != digest:
            raise PatterningError(f"{folder} is damaged: {name} has changed since it was written: {remedy}")
    if new := sorted(set(there) - set(expected)):
        raise PatterningError(f"{folder} is damaged: {new[0]} was not written by patterning: {remedy}")


def _files(folder: Path) -> list[Path]:
    """All files below `folder` but the checksums themselves and what file managers leave, in sorted order."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path != folder / SUMS and path.name not in _STRANGERS and not path.name.startswith("._")
    )
