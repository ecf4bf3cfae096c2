"""Readers of wheels, debs, R data and HTML on archives made here; sources, local files, and their errors."""

import hashlib
import io
import json
import struct
import sys
import tarfile
import types
import zipfile
import zlib
from pathlib import Path

import pytest

from patterning.core.errors import PatterningError
from patterning.tasks.text import fetch, sources
from patterning.tasks.text.archives import ar_members, deb_files, r_strings, wheel_files
from patterning.tasks.text.documents import clean
from patterning.tasks.text.local import collect_dataset, parse_dataset
from patterning.tasks.text.markup import html_text
from patterning.tasks.text.sources import Source, at_most, choose, collect

LONG = "A line of text that is long enough to be a document.\n" * 10


def ar(*members: tuple[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, content in members:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        out += b"\n" * (len(content) % 2)
    return out


def tar(mode: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def make_deb(path: Path, files: dict[str, bytes], kind: str = "xz") -> Path:
    # the odd control member checks the padding to even length
    path.write_bytes(
        ar(("debian-binary", b"2.0\n"), ("control.tar", b"odd"), (f"data.tar.{kind}", tar(f"w:{kind}", files)))
    )
    return path


@pytest.mark.parametrize("kind", ["xz", "gz"])
def test_deb_files_by_name(tmp_path: Path, kind: str) -> None:
    files = {"./usr/doc/b.txt": b"second", "./usr/doc/a.txt": b"first", "./usr/bin/tool": b"no"}
    path = make_deb(tmp_path / "x.deb", files, kind)
    assert list(deb_files(path, r"\.txt$")) == [("usr/doc/a.txt", b"first"), ("usr/doc/b.txt", b"second")]


def test_damaged_packages_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.deb"
    whole = make_deb(path, {"./a.txt": b"text"}).read_bytes()
    for data, words in (
        (b"hello", "ar signature"),
        (whole[:-40], "cut short"),
        (whole[:60] + b"x" * 80, "damaged at byte"),
        (ar(("debian-binary", b"2.0\n")), "no member data.tar"),
        (ar(("data.tar.zst", b"\x28\xb5\x2f\xfd1234")), "zstd is not"),
    ):
        path.write_bytes(data)
        with pytest.raises(PatterningError, match=words):
            list(deb_files(path, ""))
    (tmp_path / "x.whl").write_bytes(b"no zip")
    with pytest.raises(PatterningError, match="not a wheel"):
        list(wheel_files(tmp_path / "x.whl", ""))


def test_ar_members_keep_odd_contents_apart() -> None:
    members = [("a", b"1"), ("b", b""), ("c", b"123")]
    assert list(ar_members(ar(*members), Path("x"))) == members


def test_wheel_files_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        for name in ("p/z.txt", "p/a.txt", "p/code.py"):
            archive.writestr(name, name)
    assert list(wheel_files(tmp_path / "x.whl", r"\.txt$")) == [("p/a.txt", b"p/a.txt"), ("p/z.txt", b"p/z.txt")]


def test_r_strings_reads_vectors_and_passes_over_what_only_looks_like_one() -> None:
    def vector(*words: bytes | None) -> bytes:
        parts = [struct.pack(">II", 0x40009, len(w)) + w if w is not None else struct.pack(">Ii", 9, -1) for w in words]
        return struct.pack(">Ii", 16, len(words)) + b"".join(parts)

    def record(content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + zlib.compress(content)

    decoy = struct.pack(">IiII", 16, 3, 7, 1)
    data = record(b"X\n" + vector(b"It is a truth", None, "café".encode())) + record(decoy + vector(b"second"))
    assert list(r_strings(data)) == [["It is a truth", "", "café"], ["second"]]
    with pytest.raises(PatterningError, match="not an R data file"):
        list(r_strings(b"0000not zlib"))


def test_html_text_folds_space_keeps_pre_and_leaves_out_menus() -> None:
    page = """<html><head><title>no</title></head><body><div class="navheader"><div>Prev</div> Up</div>
    <h1>Title</h1><p>One &amp;
      two<br>three</p><pre>  x = 1
    y</pre><script>no()</script><div class=nosearch><img src=a>menu</div><p>end</p></body></html>"""
    assert html_text(page) == "Title\n\nOne & two\nthree\n\n  x = 1\n    y\n\nend\n"


def test_clean() -> None:
    assert clean(b"\xef\xbb\xbf\r\none\r\ntwo\n\n", shortest=1) == "one\ntwo\n"
    assert clean(b"\xff\xfe", shortest=1) is None
    assert clean(b"a\0b", shortest=1) is None
    assert clean(b"short") is None


def test_collect_a_deb_and_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch_deb(package: str, folder: Path) -> Path:
        return make_deb(
            folder / f"{package}_1%3a2.0-1_all.deb", {"./doc/a.txt": LONG.encode(), "./doc/b.txt": b"short"}
        )

    def fetch_wheel(package: str, folder: Path) -> Path:
        path = folder / f"{package}-0.1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("p/a.txt", "\ufeff" + LONG)
        return path

    monkeypatch.setattr(sources, "fetch_deb", fetch_deb)
    monkeypatch.setattr(sources, "fetch_wheel", fetch_wheel)
    found = collect(Source("manual", "docs", "deb", "some-doc", "free", r"\.txt$"))
    assert [(d.name, d.domain, d.text) for d in found.documents] == [("manual/doc/a.txt", "docs", LONG)]
    package = make_deb(tmp_path / "again.deb", {"./doc/a.txt": LONG.encode(), "./doc/b.txt": b"short"})
    assert found.origin == {
        "name": "manual", "domain": "docs", "package": "some-doc", "version": "1:2.0-1",
        "file": "some-doc_1%3a2.0-1_all.deb", "sha256": hashlib.sha256(package.read_bytes()).hexdigest(),
        "licence": "free",
        "sha256_of_texts": hashlib.sha256(hashlib.sha256(LONG.encode()).hexdigest().encode()).hexdigest(),
        "bytes": len(LONG), "documents": 1,
    }  # fmt: skip
    wheel = collect(Source("talk", "prose", "wheel", "talk", "free", r"\.txt$"))
    assert (wheel.origin["version"], wheel.documents[0].text) == ("0.1", LONG)
    with pytest.raises(PatterningError, match=r"some-doc 1:2.0-1 holds no text"):
        collect(Source("manual", "docs", "deb", "some-doc", "free", r"\.rst$"))


def test_collect_installed_code() -> None:
    found = collect(Source("tokenizers", "code", "installed", "tokenizers", "Apache-2.0"))
    assert found.origin["version"]
    assert any("def " in document.text for document in found.documents)
    with pytest.raises(PatterningError, match="needs the package no_such_thing"):
        collect(Source("x", "code", "installed", "no_such_thing", "free"))


def test_choose_by_domain_and_name() -> None:
    assert [source.name for source in choose(["prose", "networkx"])] == ["networkx", "sotu", "austen"]
    with pytest.raises(PatterningError, match="unknown source pile: there are austen, code"):
        choose(["pile", "docs"])


def test_without_apt_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(PatterningError, match="needs apt-get"):
        fetch.fetch_deb("python3-doc", tmp_path)
    assert fetch.real_package("python3-doc", "x") == "python3-doc"


def test_a_failed_download_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.sys, "executable", sys.executable)
    with pytest.raises(PatterningError, match=r"could not fetch the wheel \.\./nothing"):
        fetch.fetch_wheel("../nothing", tmp_path)


def test_local_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(LONG)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": word}) + "\n" for word in ("one", "two")))
    (tmp_path / "c.bin").write_bytes(b"\xff")
    found = collect_dataset(parse_dataset(f"mine={tmp_path}"))
    assert [(d.name.rsplit("/", 1)[-1], d.domain, d.text) for d in found.documents] == [
        ("a.txt", "mine", LONG), ("b.jsonl#1", "mine", "one\n"), ("b.jsonl#2", "mine", "two\n"),
    ]  # fmt: skip
    assert len(collect_dataset(parse_dataset(str(tmp_path)), (len(LONG) + 4) / 1e6).documents) == 2


def test_a_part_of_a_source() -> None:
    texts = [f"{i}" * 100 + "\n" for i in range(8)]
    whole = sources.described([sources.Document(str(i), "x", text) for i, text in enumerate(texts)], {"name": "s"})
    part = at_most(whole, 310e-6)
    assert part.origin["bytes"] == 303
    assert part.origin["documents"] == len(part.documents) == 3
    assert at_most(whole, 1.0) is whole
    long = sources.described([sources.Document("l", "x", "word\n" * 100)], {"name": "s"})
    assert at_most(long, 12e-6).documents[0].text == "word\nword\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nothing.txt", "no such file"),
        ("a/b/c", "no such file or folder, and no hub id"),
        ("x.bin", "text is read from"),
        ("=x.txt", "no name for a domain"),
        ("bad.jsonl", "line 1: not JSON"),
        ("other.jsonl", 'record 1: no text in a field "text"'),
        ("empty.txt", "no text"),
    ],
)
def test_local_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.bin").write_bytes(b"x")
    Path("x.txt").write_text("x")
    Path("bad.jsonl").write_text("{")
    Path("other.jsonl").write_text('{"body": "x"}\n')
    Path("empty.txt").write_bytes(b"\xff\xff")
    with pytest.raises(PatterningError, match=message):
        collect_dataset(parse_dataset(words))


def test_hub_and_parquet_need_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(PatterningError, match="needs the package datasets"):
        parse_dataset("owner/name")
    with pytest.raises(PatterningError, match="needs the package pyarrow"):
        parse_dataset(str(tmp_path / "x.parquet"))


def test_hub_data_sets_are_streamed_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def load_dataset(name: str, configuration: str | None, *, split: str, streaming: bool):  # the hub's own signature
        assert (name, configuration, split, streaming) == ("owner/name", "small", "train", True)
        for number in range(1000):
            read.append(number)
            yield {"text": f"text {number}"}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = collect_dataset(parse_dataset("pile=owner/name:small"), 21e-6)
    assert [document.text for document in found.documents] == ["text 0\n", "text 1\n", "text 2\n"]
    assert found.documents[0].domain == "pile"
    assert len(read) == 4
