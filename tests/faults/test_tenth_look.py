"""What an eleventh round of trying found: weights, training, commands, pages, folders and Hugging Face models."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import patterning as pt
from patterning import PatterningError, PatterningWarning, Weights
from patterning.console.report import report_of
from patterning.console.response import _check_folder
from patterning.core.identity import digest
from patterning.core.settings import read_yaml
from patterning.core.store import RunFolder, Unit

from .common import squares

pandas = pytest.importorskip("pandas")


def test_labels_of_any_kind_keep_their_totals_when_weights_are_dealt_out_within_them() -> None:
    rho = np.random.default_rng(0).permutation(np.linspace(0.0, 2.0, 40))
    labels = [("a", 1), 2, "b", ("c",)] * 10
    dealt = Weights.of_rows(rho).permuted(0, within=labels).rho
    by_number = Weights.of_rows(rho).permuted(0, within=np.arange(40) % 4).rho
    np.testing.assert_array_equal(dealt, by_number)
    assert not np.array_equal(dealt, rho)


@pytest.mark.parametrize("missing", [None, float("nan"), pandas.NA])
def test_a_row_without_a_label_is_named(missing: object) -> None:
    labels = np.array(["a", "b"] * 20, dtype=object)
    labels[7] = missing
    with pytest.raises(PatterningError, match=r"within have no label \(NaN or None\) in 1 rows, the first is row 7"):
        Weights.of_rows(np.linspace(0.5, 1.5, 40)).permuted(0, within=labels)


def test_a_series_of_weights_is_read_by_its_index() -> None:
    groups = ["web", "code", "web", "books"]
    named = {"web": 1.0, "code": 2.0, "books": 0.5}
    of_series = Weights.of_groups(groups, pandas.Series(named))
    np.testing.assert_array_equal(of_series.rho, Weights.of_groups(groups, named).rho)
    with pytest.raises(PatterningError, match="rho_by_group is a list: give a dict, label"):
        Weights.of_groups(groups, [1.0, 2.0, 0.5])  # type: ignore[arg-type]


def test_a_stream_gets_no_column_of_weights() -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(PatterningError, match="Stream has no length: ids and weights go by place"):
        Weights.of_rows(np.ones(3)).attach(Stream())


def test_a_held_row_that_has_not_settled_is_refused_from_the_store_as_well(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=generator) * torch.tensor([1.0, 0.12])
    y = x[:, 0] - 0.5 * x[:, 1] + 0.3 * torch.randn(60, generator=generator)
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution)
    task = pt.Task(model, squares, (x, y))
    rows = {"fast": lambda m: m.weight[0, 0], "slow": lambda m: m.weight[0, 1]}
    chi = pt.measure(
        task, rows, sampler=pt.SGLD(30, 1.0, 5e-3), chains=8, draws=20, burn_in=20, batch_size=60, budget=1,
        reliability=None, progress=False,
    )  # fmt: skip
    chi.save(tmp_path / "chi.zarr")
    assert chi.r_hat["fast"] < 1.5 < chi.r_hat["slow"]
    refused = pt.invert_store(tmp_path / "chi.zarr", {"fast": 1}, hold="slow").refused
    assert refused is not None
    assert refused.startswith("the chains have not settled: R-hat of φ slow")


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.drop(self.a(x)))


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 1)
        self.start()

    def start(self) -> None:
        nn.init.normal_(self.a.weight, std=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [(Dropping, r"^drop: fit trains without dropout"), (Wide, r"^Wide sets initial weights in its constructor")],
)
def test_fit_says_what_a_loop_of_ones_own_would_do_otherwise(kind: type[nn.Module], sentence: str) -> None:
    data = (torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(8))
    with pytest.warns(PatterningWarning, match=sentence):
        pt.fit(pt.Task(kind(), squares, data), None, 0, steps=1, batch_size=4)


def test_fit_says_nothing_where_make_or_the_layers_say_how_it_starts() -> None:
    data = (torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(8))

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Wide()

    for task in (pt.Task(Wide(), squares, data, make=make), pt.Task(nn.Linear(2, 1), squares, data)):
        pt.fit(task, None, 0, steps=1, batch_size=4)  # warnings are errors


def test_settings_that_are_read_by_a_string_belong_to_the_key(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_settings.py").write_text("RATE = 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_settings  # type: ignore[import-not-found]

    def by_getattr() -> float:
        return getattr(my_settings, "RATE")  # noqa: B009

    def by_import() -> float:
        import importlib

        return importlib.import_module("my_settings").RATE

    def by_globals() -> float:
        return globals()["A_RATE"]

    monkeypatch.setitem(globals(), "A_RATE", 1.0)
    for function in (by_getattr, by_import, by_globals):
        before = digest(function)
        assert digest(function) == before
        monkeypatch.setattr(my_settings, "RATE", 2.0)
        monkeypatch.setitem(globals(), "A_RATE", 2.0)
        assert digest(function) != before
        monkeypatch.setattr(my_settings, "RATE", 1.0)
        monkeypatch.setitem(globals(), "A_RATE", 1.0)


def test_a_name_that_stands_twice_in_a_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seeds: 20\nalpha: 1\nseeds: 30\n")
    with pytest.raises(PatterningError, match="seeds stands there twice"):
        read_yaml(tmp_path / "config.yaml")


def test_the_folder_of_one_command_is_not_taken_by_another(tmp_path: Path) -> None:
    def train(weights: Weights, seed: int) -> float:
        return float(weights.rho[0]) + np.random.default_rng(seed).normal()

    arm = {"more": Weights.of_rows(np.linspace(0.5, 1.5, 8))}
    pt.verify(train, arm, {"m": lambda r: r}, range(3), out=tmp_path / "proof", workers=1)
    with pytest.raises(PatterningError, match="holds the proof of `patterning verify`: name another folder"):
        _check_folder(tmp_path / "proof")
    (tmp_path / "chi" / "chi.zarr").mkdir(parents=True)
    (tmp_path / "chi" / "results.json").write_text("{}")
    with pytest.raises(PatterningError, match="holds what `patterning measure` wrote: name another folder"):
        pt.verify(train, arm, {"m": lambda r: r}, range(3), out=tmp_path / "chi", workers=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.json").write_text("my own")
    with pytest.raises(PatterningError, match=r"has a results.json that no proof wrote"):
        pt.verify(train, arm, {"m": lambda r: r}, range(3), out=tmp_path / "mine", workers=1)
    assert (tmp_path / "mine" / "results.json").read_text() == "my own"


def test_the_result_of_one_unit_under_the_name_of_another_is_damaged(tmp_path: Path, caplog) -> None:
    run = RunFolder(tmp_path)
    run.create()
    one, other = (Unit(name, np_value, {"value": value}) for name, value in (("one", 1.0), ("other", 2.0)))
    for unit in (one, other):
        run.compute(unit)
    files = run.file_of(one), run.file_of(other)
    first, second = (file.read_bytes() for file in files)
    files[0].write_bytes(second)
    files[1].write_bytes(first)
    with caplog.at_level(logging.WARNING, "patterning"):
        assert float(run.compute(one)["x"]) == 1.0
        assert float(run.compute(other)["x"]) == 2.0
    assert "or another unit's" in caplog.text


def np_value(value: float, scratch: Path) -> dict[str, np.ndarray]:
    return {"x": np.array(value)}


def test_chi_is_not_measured_into_the_folder_of_a_command_and_a_proof_beside_it_stays(tmp_path: Path) -> None:
    data = (torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(16))
    task, out = pt.Task(nn.Linear(2, 1), squares, data), tmp_path / "both"

    def measured() -> pt.Response:
        return pt.measure(
            task, {"w": lambda m: m.weight[0, 0]}, sampler=pt.SGLD(16, 100, 1e-4), estimator="first-order", out=out,
            progress=False,
        )  # fmt: skip

    measured()
    pt.verify(
        lambda weights, seed: float(weights.rho[0]) + np.random.default_rng(seed).normal(),
        {"more": Weights.of_rows(np.linspace(0.5, 1.5, 8))}, {"m": lambda r: r}, range(3), out=out,
    )  # fmt: skip
    proof = (out / "results.json").read_bytes()
    measured()
    report_of(out)
    assert (out / "results.json").read_bytes() == proof
    shutil.rmtree(out / "chi.zarr")
    measured().save(out / "chi.zarr")
    with pytest.raises(PatterningError, match=r"was stored by a command or by save, or is damaged: delete it"):
        measured()
