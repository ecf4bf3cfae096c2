"""Rebuild the embedded sample: `python -m patterning.tasks.text.build_sample`, on a machine with pip and apt-get.

About 60 % code, 25 % manuals, 15 % speeches, all under licences that allow to pass the text on; documents are chosen by
content hash. What is written depends on the versions that the package managers give, which origins.json records.
NOTICE.md and the LICENSE files beside it are written by hand: check them when a source is added.
"""

import io
import json
import lzma
import tarfile

from patterning.core.errors import PatterningError
from patterning.core.store import write_json, write_whole
from patterning.tasks.text.documents import Document, take
from patterning.tasks.text.embedded import FOLDER
from patterning.tasks.text.sources import Collected, choose, collect, described

# MB of text by source; sympy, torch, PostgreSQL and Austen are left to `patterning data text`.
SIZES = {"python": 4.3, "networkx": 1.7, "python-docs": 1.7, "sqlite-docs": 0.8, "sotu": 1.5}
LONGEST = 150_000  # bytes: many documents rather than a few long ones
FOREIGN = "Licensed under the Apache License"  # files with terms that NOTICE.md does not cover
LARGEST_ARCHIVE = 2.2e6


def pack(documents: list[Document]) -> bytes:
    """A tar.xz of the texts under their names; the same bytes for the same documents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for document in sorted(documents, key=lambda item: item.name):
            data = document.text.encode()
            entry = tarfile.TarInfo(document.name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
    return lzma.compress(buffer.getvalue(), format=lzma.FORMAT_XZ, filters=filters)


def short_name(document: Document) -> str:
    """The name without the folders of the package it came from."""
    source, path = document.name.split("/", 1)
    for root in ("/html/_sources/", "/doc/sqlite3/", "/speeches/"):
        path = path.split(root, 1)[-1]
    return f"{source}/{path}"


def main() -> None:
    """Collect, choose, pack and write sample/text.tar.xz and sample/origins.json."""
    chosen: list[Collected] = []
    for source in choose(list(SIZES)):
        whole = collect(source)
        documents = take(
            [d for d in whole.documents if d.size <= LONGEST and FOREIGN not in d.text], SIZES[source.name] * 1e6
        )
        documents = [Document(short_name(d), d.domain, d.text) for d in documents]
        chosen.append(described(documents, whole.origin))
        print(json.dumps(chosen[-1].origin))
    data = pack([document for source in chosen for document in source.documents])
    if len(data) > LARGEST_ARCHIVE:
        raise PatterningError(f"the sample is {len(data) / 1e6:.2f} MB compressed: shrink SIZES")
    FOLDER.mkdir(exist_ok=True)
    write_whole(FOLDER / "text.tar.xz", data)
    write_json(FOLDER / "origins.json", [source.origin for source in chosen])
    print(f"{FOLDER}: {len(data) / 1e6:.2f} MB compressed")


if __name__ == "__main__":
    main()
