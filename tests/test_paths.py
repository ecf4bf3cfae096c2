"""Wherever a file or folder is named, its name may be text: paths are `str | Path`, in signatures and in fact."""

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from zoo.gaussian_task import KERNEL, known

import patterning as pt
from patterning.core import code
from patterning.core.store import open_run
from patterning.response.store import open_response
from patterning.tasks.text import load_corpus, mixed_rows, sample_corpus

ROOMS = ("tasks", "response", "intervention", "verification", "face", "hf", "edits")
INSIDE = (
    "archives.py", "fetch.py", "sources.py", "local.py", "devinterp_store.py", "extend_file.py", "stored.py",
)  # fmt: skip
"""Files of functions that get what another function of theirs has made."""


def public(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in tree.body:
        parts = [node, *node.body] if isinstance(node, ast.ClassDef) else [node]
        yield from (part for part in parts if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"))


def test_no_public_function_takes_a_path_and_no_text() -> None:
    strict, seen = [], 0
    for room in ROOMS:
        for path in (code.ROOT / room).rglob("*.py"):
            if path.name in INSIDE:
                continue
            for function in public(ast.parse(path.read_text(encoding="utf-8"))):
                for argument in (*function.args.args, *function.args.kwonlyargs):
                    kind = "" if argument.annotation is None else ast.unparse(argument.annotation)
                    seen += "str | Path" in kind
                    if kind in ("Path", "Path | None") and argument.arg != "scratch":
                        strict.append(f"{path.name}: {function.name}({argument.arg})")
    assert strict == []
    assert seen >= 15


def test_names_of_folders_may_be_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = sample_corpus(300, "corpus", max_mb=0.3)
    assert sample_corpus(300, "corpus", max_mb=0.3).fingerprint == corpus.fingerprint
    assert load_corpus("corpus").fingerprint == corpus.fingerprint
    rows = mixed_rows(corpus.train, 16, {"code": 1.0}, 4, 0, corpus.domains)
    for thing in (corpus, corpus.train, rows):
        assert len(repr(thing)) < 200
    assert "code, docs, prose" in repr(corpus)
    assert "4 rows of 16 tokens" in repr(rows)
    with pytest.raises(pt.PatterningError, match="is not a corpus folder"):
        load_corpus("nowhere")
    with pytest.raises(pt.PatterningError, match="is not a folder"):
        open_run("nowhere")


def test_names_of_results_may_be_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problem = known()
    chi = pt.measure(problem.task, sampler=KERNEL, draws=8, burn_in=8, budget=1, out="run", progress=False)
    chi.save("chi.zarr")
    chi.page("chi.html")
    np.testing.assert_array_equal(pt.load("chi.zarr", problem.task).chi, chi.chi)
    assert "susceptibility" in open_response("chi.zarr")
    weights = pt.Weights.of_rows(np.linspace(0.5, 1.5, 8))
    weights.to_parquet("rho.parquet")
    weights.save_card("card", target="more of the last rows")
    for again in (pt.Weights.from_parquet("rho.parquet"), pt.Weights.from_folder("card")):
        np.testing.assert_array_equal(again.rho, weights.rho)
