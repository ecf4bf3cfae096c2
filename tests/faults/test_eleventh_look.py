"""What a twelfth round of trying found: large parameters, rounding, keys, complex weights, and forms of data."""

import copy
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import patterning as pt
from patterning import PatterningError, Weights
from patterning.core.identity import digest

from .common import squares


class Fourier(nn.Module):
    """Its complex weights are pairs of real ones, at an odd place among all parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((3,), 0.1))
        self.pairs = nn.Parameter(torch.tensor([[0.5, 0.2], [1.0, -0.3], [0.7, 0.1]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = torch.fft.rfft(x, dim=1) * torch.view_as_complex(self.pairs)
        return torch.fft.irfft(turned, n=4, dim=1).cumsum(1)[:, -1:] + self.shift.sum()


@pytest.mark.parametrize("estimator", ["first-order", "covariance", "pathwise"])
def test_complex_weights_that_are_pairs_of_real_ones(estimator: str) -> None:
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    task = pt.Task(Fourier(), squares, (x, x[:, 0]))
    chi = pt.measure(
        task, {"phi": lambda m: m.pairs.sum()}, sampler=pt.SGLD(12, 1000, 4e-4), chains=8, draws=100, burn_in=20,
        budget=1, reliability=None, estimator=estimator, progress=False, batch_size=12,
    )  # fmt: skip
    assert list(chi.estimator.values()) == [estimator]
    module = task.module
    slopes = []
    for row in range(12):
        module.zero_grad()
        squares(module, (x[row : row + 1], x[row : row + 1, 0])).sum().backward()
        slopes.append(-float(module.pairs.grad.sum()) / 1000)
    expected = np.array(slopes) - np.mean(slopes)
    if estimator == "first-order":
        np.testing.assert_allclose(chi.chi[0], expected, rtol=1e-4, atol=1e-7)
    else:
        assert np.corrcoef(chi.chi[0], expected)[0, 1] > 0.9


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
