"""Weights of rows that were not probed: against first-order χ of all rows; in memory, in a file, killed and resumed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import patterning as pt
from patterning.intervention import extend_file

PROBED, ROWS, TOKENS = 48, 160, 8


def loss(model: nn.Module, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Next-token losses of a bigram model; token 0 is padding."""
    tokens = batch["tokens"]
    losses = cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")
    return losses, tokens[:, 1:] > 0


def text(rows: int, seed: int, context: int = TOKENS) -> torch.Tensor:
    tokens = torch.randint(1, 6, (rows, context), generator=torch.Generator().manual_seed(seed))
    tokens[::3, -2:] = 0
    return tokens


def bigrams() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(6, 5), nn.Linear(5, 6))


@pytest.fixture(scope="module")
def task() -> pt.Task:
    return pt.Task(bigrams(), loss, {"tokens": text(ROWS, 0)})


def direction(task: pt.Task, probes: range | None) -> pt.Direction:
    """The first-order direction of one logit."""
    chi = pt.measure(
        task, {"logit": lambda m: m(torch.tensor([2]))[0, 3]}, sampler=pt.SGLD(30, 300, 1e-4), probes=probes,
        estimator="first-order", progress=False,
    )  # fmt: skip
    return chi.invert({"logit": 1})


@pytest.fixture(scope="module")
def probed(task: pt.Task) -> pt.Weights:
    return direction(task, range(PROBED)).weights(0.5, force=True)


def test_rows_that_were_not_probed_get_the_weights_that_their_own_chi_would_give(
    task: pt.Task, probed: pt.Weights
) -> None:
    whole = probed.extend(task)
    truth = direction(task, None).weights(0.5, force=True)  # as if every row had been probed
    other = (np.arange(ROWS) >= PROBED)[:, None] & (whole.base_weights > 0)
    assert np.corrcoef(whole.rho[other], truth.rho[other])[0, 1] > 0.9
    known = ~other & (whole.base_weights > 0)
    np.testing.assert_allclose(whole.rho[known] / whole.rho[0, 0], probed.rho[known] / probed.rho[0, 0])
    assert whole.facts["held_out_r2"] > 0.7  # type: ignore[operator]
    assert whole.facts["probed_rows"] == PROBED
    assert whole.free.sum() == (whole.base_weights > 0).sum()
    assert whole.extend(task) is whole


def test_weights_without_a_reason_are_not_predicted(task: pt.Task, probed: pt.Weights, tmp_path: Path) -> None:
    dealt = probed.permuted(0)
    with pytest.raises(pt.PatterningError, match="cannot be predicted: of the variance on probed rows left out, 0 %"):
        dealt.extend(task)
    with pytest.raises(pt.PatterningError, match="cannot be predicted"):
        dealt.extend_to(tmp_path / "rho.parquet", task)
    with pytest.warns(pt.PatterningWarning, match="held-out R²"):
        dealt.extend(task, force=True)
    few = direction(task, range(5)).weights(0.5, force=True)
    with pytest.raises(pt.PatterningError, match="5 rows have weights of their own: 8 are needed"):
        few.extend(task)


def test_a_file_holds_what_memory_would(task: pt.Task, probed: pt.Weights, tmp_path: Path, capfd) -> None:
    whole, out = probed.extend(task), tmp_path / "rho.parquet"
    found = probed.extend_to(out, task, rows_per_part=64)
    again = pt.Weights.from_parquet(out)
    np.testing.assert_allclose(again.rho, whole.rho, rtol=1e-12)
    np.testing.assert_array_equal(again.free, whole.free)
    np.testing.assert_allclose(again.base_weights, whole.base_weights, rtol=1e-12)
    again.check(task)
    assert again.facts["held_out_r2"] == whole.facts["held_out_r2"]
    assert found.effective_sample_size == pytest.approx(again.summary().effective_sample_size)
    assert pyarrow.parquet.ParquetFile(out).num_row_groups == 3
    assert not (tmp_path / "rho.parquet.parts").exists()
    assert f"{ROWS} of {ROWS} rows" in (said := capfd.readouterr().err)
    assert "rows/s" in said


def test_a_corpus_of_other_rows_is_weighted_by_the_same_rule(task: pt.Task, probed: pt.Weights, tmp_path: Path) -> None:
    corpus = torch.cat([text(40, 5), text(ROWS, 0)])  # new rows, and then those of the task
    pyarrow.parquet.write_table(
        pyarrow.table({"tokens": corpus.tolist()}), tmp_path / "corpus.parquet", row_group_size=50
    )
    found = probed.extend_to(
        tmp_path / "rho.parquet", task, tmp_path / "corpus.parquet", rows_per_part=40, progress=False
    )
    rho = pt.Weights.from_parquet(tmp_path / "rho.parquet")
    assert (found.rows, rho.rho.shape) == (ROWS + 40, (ROWS + 40, TOKENS - 1))
    assert float((rho.base_weights * rho.rho).sum()) == pytest.approx(1)
    np.testing.assert_array_equal(rho.base_weights > 0, (corpus[:, 1:] > 0).numpy())
    again, place = probed.extend(task), rho.base_weights[40:] > 0
    other = place & (np.arange(ROWS) >= PROBED)[:, None]
    scale = rho.rho[40:][other][0] / again.rho[other][0]
    np.testing.assert_allclose(rho.rho[40:][other], scale * again.rho[other], rtol=1e-6)
    # tokens with the same context and target have the same loss and slope in this model: the same weight
    pairs = (corpus[:, :-1] * 6 + corpus[:, 1:]).numpy()
    for pair in np.unique(pairs[rho.base_weights > 0])[:5]:
        same = rho.rho[(pairs == pair) & (rho.base_weights > 0)]
        assert np.ptp(same) <= 0.2 * same.mean()  # up to rounding next to a step of the histogram
    rho.check(pt.Task(bigrams(), loss, str(tmp_path / "corpus.parquet")))


def test_parts_of_other_weights_are_not_mixed_in(task: pt.Task, probed: pt.Weights, tmp_path: Path) -> None:
    folder = tmp_path / "rho.parquet.parts"
    folder.mkdir()
    (folder / "key.json").write_text('{"key": "another"}')
    with pytest.raises(pt.PatterningError, match="holds parts of other weights"):
        probed.extend_to(tmp_path / "rho.parquet", task)


def test_a_corpus_of_another_form_is_refused_and_does_not_bar_the_mended_call(
    task: pt.Task, probed: pt.Weights, tmp_path: Path
) -> None:
    out, key = tmp_path / "rho.parquet", "tokens"
    for rows, words in (
        ({"text": text(40, 5)}, r"data has no 'tokens', which the task's data has"),
        ({key: text(40, 5)[:, :-1]}, r"data\['tokens'\] holds whole numbers of shape \(n, "),
        ({key: text(40, 5).float()}, r"holds real numbers .* the task's data holds whole numbers"),
        ([text(40, 5)], "holds 1 parts in a list, and the task's data holds 1 parts in a dict"),
    ):
        with pytest.raises(pt.PatterningError, match=words):
            probed.extend_to(out, task, rows)
    with pytest.raises(
        pt.PatterningError, match=r"cannot run on rows 0 to 39 of data \(IndexError: index out of range"
    ):
        probed.extend_to(out, task, {key: text(40, 5) + 100})
    assert not list(tmp_path.iterdir())
    assert probed.extend_to(out, task, {key: text(40, 5)}, progress=False).rows == 40


RUN = """
import os, resource, signal, sys
import numpy as np, pyarrow, pyarrow.parquet, torch
sys.path.insert(0, sys.argv[2])
import patterning as pt
from patterning.intervention import extend_file
from test_extend import bigrams, loss, text
torch.set_num_threads(1)
folder = sys.argv[1]
probed = pt.Weights.from_parquet(folder + "/probed.parquet")
task = pt.Task(bigrams(), loss, {"tokens": text(160, 0)})
for rows in (1_000, 24_000):
    path = f"{folder}/{rows}.parquet"
    with pyarrow.parquet.ParquetWriter(path, pyarrow.schema([("tokens", pyarrow.list_(pyarrow.int64()))])) as writer:
        for first in range(0, rows, 500):
            writer.write_table(pyarrow.table({"tokens": text(500, first).tolist()}))
    probed.extend_to(f"{folder}/rho-{rows}.parquet", task, path, progress=False, rows_per_part=512)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
whole, count = extend_file.write_whole, 0
def dies(path, data):
    global count
    count += 1
    if count == 5:
        path.with_name(path.name + ".1-1.part").write_bytes(data[:50])
        os.kill(os.getpid(), signal.SIGKILL)
    whole(path, data)
extend_file.write_whole = dies
probed.extend_to(f"{folder}/killed.parquet", task, f"{folder}/1000.parquet", progress=False, rows_per_part=128)
"""


def test_memory_does_not_grow_with_rows_and_a_killed_run_goes_on_to_the_same_bytes(
    task: pt.Task, probed: pt.Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed.to_parquet(tmp_path / "probed.parquet")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path), os.fspath(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    few, many = map(int, done.stdout.split())
    assert (many - few) * 1024 < 5e6  # 24 times the rows: 1.3 MB for each column that is held whole
    parts = tmp_path / "killed.parquet.parts"
    finished = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert len(finished) == 4
    seen = []
    computed = extend_file._Corpus.part

    def watched(self, first: int, last: int):
        seen.append(first)
        return computed(self, first, last)

    monkeypatch.setattr(extend_file._Corpus, "part", watched)
    corpus = tmp_path / "1000.parquet"
    found = probed.extend_to(tmp_path / "killed.parquet", task, corpus, progress=False, rows_per_part=128)
    assert seen == list(range(512, 1000, 128))  # what was there was not computed again
    assert found.rows == 1000
    probed.extend_to(tmp_path / "whole.parquet", task, corpus, progress=False, rows_per_part=128)
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def _mean(x: torch.Tensor, y: torch.Tensor, rho: np.ndarray, anchor: torch.Tensor) -> float:
    """The first weight's mean under the tempered posterior (nβ 30, γ 20) of a linear regression, in closed form."""
    weighted = 2 * 30 * torch.from_numpy(rho / rho.sum())[:, None] * x
    return torch.linalg.solve(weighted.T @ x + 20 * torch.eye(3), weighted.T @ y + 20 * anchor)[0].item()


@pytest.mark.parametrize("seed", [1, 5, 13])  # the probed rows alone would say 0.6, 1.5 and 1.4 times the truth
def test_what_extended_weights_are_expected_to_do_is_what_they_do(seed: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 3, generator=generator).double()
    y = x[:, 0] - 0.5 * x[:, 1] + 0.3 * torch.randn(400, generator=generator).double()
    model = nn.Linear(3, 1, bias=False).double()
    anchor = torch.linalg.lstsq(x, y).solution
    with torch.no_grad():
        model.weight.copy_(anchor)
    task = pt.Task(model, lambda m, batch: (m(batch[0])[:, 0] - batch[1]).square(), (x, y))
    probes = np.sort(np.random.default_rng(seed).choice(400, 60, replace=False)).tolist()
    chi = pt.measure(
        task, {"first": lambda m: m.weight[0, 0]}, sampler=pt.SGLD(30, 20, 4e-4), chains=8, draws=40, burn_in=100,
        budget=1, reliability=None, batch_size=64, probes=probes, progress=False,
    )  # fmt: skip
    weights = chi.invert({"first": 1}).weights(0.2, force=True)
    whole = weights.extend(task)
    moved = (_mean(x, y, 1 + (whole.rho - 1) / 100, anchor) - _mean(x, y, np.ones(400), anchor)) * 100 / 0.2
    told = whole.facts["predicted_per_strength"]["first"]  # type: ignore[index]
    assert told["low"] < moved < told["high"]  # type: ignore[index]
    assert told["value"] == pytest.approx(moved, rel=0.15)  # type: ignore[index]
    weights.extend_to(tmp_path / "rho.parquet", task, progress=False)
    again = pt.Weights.from_parquet(tmp_path / "rho.parquet").facts["predicted_per_strength"]
    assert again["first"]["value"] == pytest.approx(told["value"])  # type: ignore[index]
