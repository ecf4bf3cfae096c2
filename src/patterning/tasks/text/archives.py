"""Files inside wheels, Debian packages and R data, read with the standard library; nothing is installed or unpacked."""

import io
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from patterning.core.errors import PatterningError

File = tuple[str, bytes]
_AR_MAGIC = b"!<arch>\n"
_DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, NotImplementedError)
"""What decompressors raise, besides their own, on data that are cut or changed."""


def wheel_files(path: Path, pattern: str) -> Iterator[File]:
    """(name, content) of the files of a wheel (a zip) whose name matches the regular expression, in sorted order."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if re.search(pattern, name):
                    yield name, archive.read(name)
    except (zipfile.BadZipFile, *_DAMAGED) as error:
        raise PatterningError(f"{path} is not a wheel: {error}; delete it and fetch it again") from error


def ar_members(data: bytes, path: Path) -> Iterator[File]:
    """(name, content) of the members of a Unix `ar` archive: 60-byte headers, contents padded to even length."""
    if not data.startswith(_AR_MAGIC):
        raise PatterningError(f"{path} is not a Debian package: it does not start with the ar signature")
    position = len(_AR_MAGIC)
    while position < len(data):
        header = data[position : position + 60]
        if len(header) < 60 or header[58:] != b"`\n" or not header[48:58].strip().isdigit():
            raise PatterningError(f"{path} is damaged at byte {position}: delete it and fetch it again")
        size = int(header[48:58])
        content = data[position + 60 : position + 60 + size]
        if len(content) < size:
            raise PatterningError(f"{path} is cut short: delete it and fetch it again")
        yield header[:16].decode("ascii", "replace").strip().rstrip("/"), content
        position += 60 + size + size % 2


def deb_files(path: Path, pattern: str) -> Iterator[File]:
    """(name, content) of the files of a `.deb` whose name matches, in sorted order; names have no leading `./`."""
    for name, content in ar_members(path.read_bytes(), path):
        if not name.startswith("data.tar"):
            continue
        try:
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                found = [member for member in archive if member.isfile() and re.search(pattern, member.name)]
                for member in sorted(found, key=lambda item: item.name):
                    file = archive.extractfile(member)
                    assert file is not None  # isfile() was asked
                    yield member.name.removeprefix("./"), file.read()
        except tarfile.ReadError as error:
            raise PatterningError(
                f"{path}: this Python cannot read {name} ({error}); gzip, bzip2 and xz are known, zstd is not"
            ) from error
        except _DAMAGED as error:
            raise PatterningError(f"{path} is damaged ({error}): delete it and fetch it again") from error
        return
    raise PatterningError(f"{path} is not a Debian package: it has no member data.tar")


def r_strings(data: bytes) -> Iterator[list[str]]:
    """The character vectors in an R lazy-load database (`.rdb`), one list each, missing values as empty strings.

    The file is a row of records: a big-endian length, then a zlib stream of R's XDR serialization, in which a character
    vector is the word 16, its length, and for each string a word of flags that ends in 9, its length in bytes (-1 for
    missing) and the bytes.
    """
    position = 0
    while position + 4 < len(data):
        stream = zlib.decompressobj()
        try:
            content = stream.decompress(data[position + 4 :])
        except zlib.error as error:
            raise PatterningError(f"not an R data file: no zlib stream at byte {position} ({error})") from error
        for match in re.finditer(b"\x00\x00\x00\x10(?=\x00)", content):
            if (strings := _r_vector(content, match.end())) is not None:
                yield strings
        position = len(data) - len(stream.unused_data)


def _r_vector(content: bytes, position: int) -> list[str] | None:
    """The strings of the vector whose length stands at `position`; None if that is not a vector after all."""
    strings = []
    try:
        (count,) = struct.unpack_from(">i", content, position)
        position += 4
        for _ in range(count):
            flags, size = struct.unpack_from(">Ii", content, position)
            if flags & 0xFF != 9 or size < -1:
                return None
            position += 8
            strings.append(content[position : position + max(size, 0)].decode("utf-8", "replace"))
            position += max(size, 0)
    except struct.error:
        return None
    return strings
