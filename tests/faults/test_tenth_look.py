"""What an eleventh round of trying found: weights, training, commands, pages, folders and Hugging Face models."""

import copy
import logging
import shutil
import threading
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

pandas = pytest.importorskip("pandas")


def squares(model: nn.Module, batch: tuple) -> torch.Tensor:
    return (model(batch[0])[:, 0] - batch[1]).square()


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
    with pytest.raises(PatterningError, match=r"was stored by a command, or by save: name another folder, out="):
        measured()


class Fourier(nn.Module):
    """Its complex weights are pairs of real ones, at an odd place among all parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((3,), 0.1))
        self.pairs = nn.Parameter(torch.tensor([[0.5, 0.2], [1.0, -0.3], [0.7, 0.1]]))

    def reset_parameters(self) -> None:
        """Unused."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = torch.fft.rfft(x, dim=1) * torch.view_as_complex(self.pairs)
        return torch.fft.irfft(turned, n=4, dim=1).cumsum(1)[:, -1:] + self.shift.sum()


@pytest.mark.parametrize("estimator", ["first-order", "covariance", "pathwise"])
def test_complex_weights_that_are_pairs_of_real_ones(estimator: str) -> None:
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    task = pt.Task(Fourier(), squares, (x, x[:, 0]))
    chi = pt.measure(
        task, {"phi": lambda m: m.pairs.sum()}, sampler=pt.SGLD(12, 1000, 1e-4), chains=4, draws=8, burn_in=20,
        budget=1, reliability=None, estimator=estimator, progress=False, batch_size=12,
    )  # fmt: skip
    assert list(chi.estimator.values()) == [estimator]
    module = task.module
    slopes = []
    for row in range(12):
        module.zero_grad()
        squares(module, (x[row : row + 1], x[row : row + 1, 0])).sum().backward()
        slopes.append(-float(module.pairs.grad.sum()) / 1000)
    if estimator == "first-order":
        np.testing.assert_allclose(chi.chi[0], np.array(slopes) - np.mean(slopes), rtol=1e-4, atol=1e-7)


def test_runs_of_a_train_that_is_another_one_where_no_key_sees_it_are_not_taken(tmp_path: Path) -> None:
    """The learning rate comes from a file, and from a value of one thread: neither is part of a key."""
    rate, here = tmp_path / "rate", threading.local()
    rate.write_text("1.0")
    here.scale = 1.0

    def train(weights: Weights, seed: int) -> float:
        noise = np.random.default_rng(seed).normal()
        return float(rate.read_text()) * here.scale * float(weights.rho[0]) + noise

    def proof() -> float:
        return pt.verify(train, arms, {"m": lambda r: r}, range(3), out=tmp_path / "proof", workers=1).rows()[0]["mean"]

    arms = {"more": Weights.of_rows(np.linspace(0.5, 1.5, 8))}
    first = proof()
    assert proof() == first
    for change in (lambda: rate.write_text("2.0"), lambda: setattr(here, "scale", 3.0)):
        change()
        with pytest.raises(PatterningError, match=r"runs in this folder are those of another train .*name another fol"):
            proof()
        rate.write_text("1.0")


class Settings(dict):
    """Items as attributes, as many programs keep their settings; a name that it has not is a KeyError."""

    __getattr__ = dict.__getitem__


def test_settings_whose_attributes_are_their_items_have_a_key() -> None:
    one, other = Settings(rate=1.0), Settings(rate=2.0)
    assert digest(one) == digest(Settings(rate=1.0)) != digest(other)


def test_an_observable_that_copies_its_module_is_told_what_to_do_instead() -> None:
    data = (torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(8))
    with pytest.raises(PatterningError, match=r"call the module itself, or, at other parameters"):
        pt.measure(
            pt.Task(nn.Linear(2, 1), squares, data), {"o": lambda m: copy.deepcopy(m).weight.sum()},
            sampler=pt.SGLD(8, 100, 1e-3), estimator="first-order", progress=False,
        )  # fmt: skip


def test_a_sparse_matrix_is_told_of_to_dense_rows() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    for data in (sparse.eye(8, format="csr"), (sparse.eye(8, format="csc"), np.zeros(8))):
        with pytest.raises(PatterningError, match=r"sparse matrix \(cs[rc]_matrix\): give x.toarray\(\)"):
            pt.Task(nn.Linear(8, 1), squares, data)


def test_ids_beyond_63_bits_come_back_from_the_file(tmp_path: Path) -> None:
    ids = np.array([2**63 + 1, 5, 6], dtype=np.uint64)
    Weights.of_rows([1.0, 2.0, 3.0], ids).to_parquet(tmp_path / "rho.parquet")
    again = Weights.from_parquet(tmp_path / "rho.parquet")
    assert again.ids.tolist() == ids.tolist()
    assert again.of(ids[:1]).tolist() == [0.5]


def test_chi_that_is_zero_by_symmetry_is_zero_and_not_what_rounding_leaves_of_it() -> None:
    """The loss of a bias at the minimum of a quadratic: Cov[δ², δ] = 0, and mirrored chains cancel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator)
    y = x[:, 0] + 0.3 * torch.randn(40, generator=generator)
    solved = torch.linalg.lstsq(torch.cat([x, torch.ones(40, 1)], 1), y[:, None]).solution[:, 0]
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(solved[:3])
        model.bias.copy_(solved[3:])
    chi = pt.measure(
        pt.Task(model, squares, (x, y)), components=["weight", "bias"], sampler=pt.SGLD(30, 20, 1e-3), chains=4,
        estimator="pathwise", draws=20, burn_in=100, batch_size=40, budget=1, reliability=None, progress=False,
    )  # fmt: skip
    assert (chi.chi[1] == 0).all()
    assert (chi.chi[0] != 0).any()
    assert any("its χ is 0 by symmetry" in line for line in chi.warnings)
    assert "does not respond to any free sample" in str(chi.invert({"bias": -1}).refused)


@pytest.mark.parametrize("estimator", ["covariance", "pathwise"])
def test_shards_see_an_observable_that_has_changed_where_no_key_does(estimator: str, tmp_path: Path) -> None:
    here = threading.local()
    data = (torch.randn(12, 2, generator=torch.Generator().manual_seed(0)), torch.ones(12))
    task = pt.Task(nn.Linear(2, 1), squares, data)

    def measured() -> np.ndarray:
        return pt.measure(
            task, {"phi": lambda m: here.scale * m.weight[0, 0]}, sampler=pt.SGLD(12, 100, 1e-3), chains=4, draws=4,
            burn_in=10, batch_size=12, budget=1, reliability=None, estimator=estimator, shards=2, out=tmp_path,
            progress=False,
        ).chi  # fmt: skip

    here.scale = 1.0
    before = measured()
    here.scale = 5.0
    np.testing.assert_allclose(measured(), 5 * before, rtol=1e-4)


def test_rows_as_dicts_whose_keys_come_in_any_order_are_told_of_as_rows() -> None:
    x, y = torch.randn(3), torch.tensor(1.0)
    rows = [{"x": x, "y": y} if row % 2 else {"y": y, "x": x} for row in range(8)]
    with pytest.raises(PatterningError, match=r"a list of 8 is taken as 8 columns\. If they are rows, stack"):
        pt.Task(nn.Linear(3, 1), squares, rows)


def test_large_parameters_keep_their_drift_and_are_said_to_be_rounded() -> None:
    """One parameter near 5e5, whose drift in a step is less than half the spacing of numbers there."""
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0))
    chi = {}
    for offset in (0.0, 5e5):
        y = offset + noise - noise.mean()
        model = nn.Linear(1, 1)
        with torch.no_grad():
            model.weight.zero_()
            model.bias.copy_(y.mean())
        task = pt.Task(model, squares, (torch.zeros(40, 1), y))
        chi[offset] = pt.measure(
            task, {"bias": lambda m: m.bias[0]}, ["bias"], sampler=pt.SGLD(30, 20, 1.5e-3), estimator="covariance",
            chains=16, draws=60, burn_in=100, batch_size=40, budget=1, reliability=None, progress=False,
        )  # fmt: skip
    near, far = (chi[offset].chi[0] for offset in chi)
    assert float(far @ near / (near @ near)) < 1.4  # 1.7 where drift and noise are added one after the other
    said = [[line for line in found.warnings if "steps are rounded" in line] for found in chi.values()]
    assert not said[0]
    assert "rounding adds 5.4% to the variance of each step" in said[1][0]
