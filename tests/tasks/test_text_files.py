"""Text in every state that files are found in: a named one is refused, those of a folder are left out and counted."""

import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from patterning.cli import main
from patterning.core.errors import PatterningError
from patterning.tasks.text import archives
from patterning.tasks.text.archives import deb_files, wheel_files
from patterning.tasks.text.corpus import build_corpus, check_new, load_corpus
from patterning.tasks.text.local import collect_dataset, counted, parse_dataset


def text(number: int) -> str:
    return f"Text number {number} has words of its own: " + "lorem ipsum dolor sit " * (number + 5) + "\n"


class Parquet:
    """Stands in for pyarrow: a file that says "cut" is damaged from the start, one that says "late" after a record."""

    def __init__(self, path: Path) -> None:
        self.content = Path(path).read_text()
        if self.content.startswith("cut"):
            raise OSError("Parquet magic bytes not found\nin footer")
        column = "body" if self.content.startswith("column") else "text"
        self.schema_arrow = types.SimpleNamespace(names=[column])

    def __enter__(self) -> "Parquet":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def iter_batches(self, columns: list[str]) -> Iterator[Any]:
        assert columns == ["text"]
        rows = [] if self.content.startswith("none") else [{"text": text(70)}, {"text": None}]
        yield types.SimpleNamespace(to_pylist=lambda: rows)
        if self.content.startswith("late"):
            raise ValueError("page header is corrupt")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module = types.SimpleNamespace(ParquetFile=Parquet)
    monkeypatch.setitem(sys.modules, "pyarrow", types.SimpleNamespace(parquet=module))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", module)
    place = tmp_path / "texts"
    place.mkdir()
    for number in range(20):
        (place / f"{number:02}.txt").write_text(text(number))
    for name, data in {
        "latin.txt": "café ".encode("latin-1") * 50,
        "utf16.jsonl": '{"text": "x"}\n'.encode("utf-16"),
        "half.jsonl": b'{"text": "one"}\n\n{"text": "caf\xe9"}\n',
        "cut.jsonl": b'{"text": "one"}\n{"text": "tw',
        "null.jsonl": b'\xef\xbb\xbf{"text": null}\n{"text": ""}\n{"text": "a\\u0000b"}\n{"text": "at last, a text"}\n',
        "field.jsonl": b'{"body": "x"}\n',
        "number.jsonl": b'{"text": "one"}\n{"text": 3}\n',
        "list.jsonl": b"[1, 2]\n",
        "deep.jsonl": b"[" * 100_000 + b"]" * 100_000,
        "empty.txt": b"",
        "blank.md": b"\n\n  \n",
        "empty.jsonl": b"\n",
        "binary.txt": b"PK\x03\x04\0\0\0data",
        "picture.png": b"\x89PNG",
        "ok.parquet": b"ok",
        "cut.parquet": b"cut",
        "late.parquet": b"late",
        "column.parquet": b"column",
        "none.parquet": b"none",
    }.items():
        (place / name).write_bytes(data)
    (place / "dead.txt").symlink_to("nowhere.txt")
    (place / "folder.txt").mkdir()
    (place / "folder.txt" / "inside.txt").write_text(text(50))
    os.mkfifo(place / "pipe.txt")
    return place


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("latin.txt", r"latin\.txt is no text: not UTF-8"),
        ("utf16.jsonl", r"utf16\.jsonl, line 1: not UTF-8 \(invalid start byte\)"),
        ("half.jsonl", r"half\.jsonl, line 3: not UTF-8 \(invalid continuation byte\)"),
        ("cut.jsonl", r"cut\.jsonl, line 2: not JSON \(Unterminated string"),
        ("deep.jsonl", r"deep\.jsonl, line 1: not JSON \(maximum recursion depth"),
        ("field.jsonl", r'field\.jsonl, record 1: no text in a field "text"'),
        ("number.jsonl", r'number\.jsonl, record 2: the field "text" holds a int'),
        ("list.jsonl", r'list\.jsonl, record 1: no text in a field "text"'),
        ("empty.txt", r"empty\.txt is no text: empty"),
        ("blank.md", r"blank\.md is no text: empty"),
        ("empty.jsonl", r"empty\.jsonl is no text: empty"),
        ("binary.txt", r"binary\.txt is no text: binary \(it holds NUL bytes\)"),
        ("picture.png", r"picture\.png: text is read from \.txt"),
        ("cut.parquet", r"cut\.parquet: damaged, or no parquet file \(Parquet magic bytes not found in footer\)"),
        ("late.parquet", r"late\.parquet, after record 2: damaged, or no parquet file \(page header is corrupt\)"),
        ("column.parquet", r'column\.parquet has no column "text": it has body'),
        ("none.parquet", r"none\.parquet is no text: empty"),
        ("dead.txt", r"dead\.txt is a link to nowhere\.txt, which is not there"),
        ("pipe.txt", r"pipe\.txt is neither a file nor a folder"),
        ("absent.txt", r"absent\.txt: no such file or folder"),
    ],
)
def test_a_named_file_must_be_text(name: str, says: str, folder: Path) -> None:
    with pytest.raises(PatterningError, match=says) as found:
        collect_dataset(parse_dataset(str(folder / name)))
    assert "\n" not in str(found.value)


def test_files_of_a_folder_are_left_out_and_counted(folder: Path) -> None:
    found = collect_dataset(parse_dataset(f"mine={folder}"))
    names = [Path(document.name).relative_to(folder).as_posix() for document in found.documents]
    good = [f"{number:02}.txt" for number in range(20)]
    assert names == [*good, "folder.txt/inside.txt", "null.jsonl#4", "ok.parquet#1"]
    assert found.origin["left_out"] == {
        "binary (it holds NUL bytes)": 1,
        "damaged, or no parquet": 2,
        "empty": 4,
        "links to nowhere": 1,
        'no column "text"': 1,
        'no field "text"': 2,
        "no regular files": 1,
        'no text in the field "text"': 1,
        "not .txt, .md, .rst, .py, .jsonl, .parquet": 1,
        "not JSON": 2,
        "not UTF-8": 3,
        "records without text": 4,  # three of null.jsonl, one of ok.parquet; not the one of late.parquet
    }
    files = len([path for path in folder.rglob("*") if not path.is_dir()])
    left = sum(count for reason, count in found.origin["left_out"].items() if "records" not in reason)
    assert files == left + len(good) + 3


def test_a_folder_that_holds_no_text_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    (tmp_path / "c.pdf").write_bytes(b"%PDF")
    with pytest.raises(PatterningError, match=r"no text in it \(left out: 1 not \.txt, .*, 2 not UTF-8\)"):
        collect_dataset(parse_dataset(str(tmp_path)))


def test_the_limit_ends_reading(folder: Path) -> None:
    found = collect_dataset(parse_dataset(str(folder)), max_mb=1e-3)
    assert sum(document.size for document in found.documents) <= 1000
    assert set(found.origin["left_out"]) <= {
        "links to nowhere", "no regular files", "not .txt, .md, .rst, .py, .jsonl, .parquet",
    }  # fmt: skip


def test_places_with_signs_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a=b ü.txt").write_text(text(1))
    assert collect_dataset(parse_dataset(str(tmp_path / "a=b ü.txt"))).documents[0].domain == "local"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.txt").write_text(text(2))
    found = parse_dataset("notes=~/notes")  # a shell leaves this ~ as it is
    assert (found.domain, found.place) == ("notes", str(tmp_path / "notes"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text(1))
    (tmp_path / "b.txt").write_text(text(2))
    (tmp_path / "b.txt").chmod(0)
    with pytest.raises(PatterningError, match=r"b\.txt cannot be read \(permission denied\)"):
        collect_dataset(parse_dataset(str(tmp_path / "b.txt")))
    assert collect_dataset(parse_dataset(str(tmp_path))).origin["left_out"] == {"cannot be read (permission denied)": 1}


def test_an_error_of_the_disk_is_one_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a file that may not be read, which root always may."""

    def broken(path: Path) -> bytes:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(PatterningError, match=r"00\.txt cannot be read \(input/output error\)"):
        collect_dataset(parse_dataset(str(folder / "00.txt")))
    found = collect_dataset(parse_dataset(str(folder)))
    assert found.origin["left_out"]["cannot be read (input/output error)"] == 25


def test_the_command_prints_and_stores_what_it_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "corpus"
    command = ["patterning", "data", "text", "--out", str(out), "--vocabulary", "270", "--dataset", f"mine={folder}"]
    monkeypatch.setattr("sys.argv", command)
    main()
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 not UTF-8" in printed
    manifest = json.loads((out / "manifest.json").read_text())
    assert counted(manifest["sources"][0]["left_out"]) in printed
    assert load_corpus(out).manifest == manifest


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("corpus")
    (place / "texts").mkdir()
    for number in range(20):
        (place / "texts" / f"{number}.txt").write_text(text(number))
    build_corpus([collect_dataset(parse_dataset(str(place / "texts")))], 270, place / "corpus")
    return place / "corpus"


def test_every_damaged_file_of_a_corpus_is_one_sentence(corpus: Path, tmp_path: Path) -> None:
    import shutil

    for name in sorted(path.name for path in corpus.iterdir()):
        data = (corpus / name).read_bytes()
        for change in (b"", data[: len(data) // 2], data[:-3], b"\x00" * 200, b"[]", b"{}"):
            copy = tmp_path / "copy"
            shutil.copytree(corpus, copy)
            (copy / name).write_bytes(change)
            with pytest.raises(PatterningError, match=r"is not a corpus folder, or damaged|build it again|rebuild"):
                load_corpus(copy)
            shutil.rmtree(copy)


def test_a_place_that_cannot_hold_a_corpus_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    for name, says in (("file", "exists"), ("link", "exists"), ("file/below", "is no folder that may be written to")):
        with pytest.raises(PatterningError, match=says):
            check_new(tmp_path / name)
    check_new(tmp_path / "some" / "new" / "place")


def test_a_full_disk_leaves_no_corpus(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collected = collect_dataset(parse_dataset(str(corpus.parent / "texts")))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PatterningError, match=r"cannot be written \(No space left on device\)"):
        build_corpus([collected], 270, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_packages_that_are_cut_inside_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import lzma
    import tarfile
    import zipfile

    def packed(size: int) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo("a.txt")
            entry.size = size
            archive.addfile(entry, io.BytesIO(os.urandom(size)))
        return lzma.compress(buffer.getvalue())

    data = packed(300_000)[:200_000]
    monkeypatch.setattr(archives, "ar_members", lambda *_: iter([("data.tar.xz", data)]))
    (tmp_path / "x.deb").write_bytes(b"x")
    with pytest.raises(PatterningError, match=r"x\.deb.*damaged|x\.deb: this Python cannot read"):
        list(deb_files(tmp_path / "x.deb", ""))
    with zipfile.ZipFile(tmp_path / "x.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("p/a.txt", "some text " * 1000)
    whole = bytearray((tmp_path / "x.whl").read_bytes())
    whole[45] ^= 255
    (tmp_path / "x.whl").write_bytes(bytes(whole))
    with pytest.raises(PatterningError, match="is not a wheel"):
        list(wheel_files(tmp_path / "x.whl", ""))
