"""Weights that travel: they know their rows, and every way of training under them follows the same loss."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.intervention.data_weights import Weights

RHO = np.array([2.0, 0.5, 0.0, 1.5, 1.0, 1.0])


def test_weights_have_mean_one_under_the_base_weights() -> None:
    weights = Weights.of_rows(3 * RHO, base_weights=[1, 1, 1, 1, 2, 2])
    q = weights.base_weights
    assert float((q * weights.rho).sum()) == pytest.approx(1)
    np.testing.assert_allclose(weights.rho / weights.rho[0], RHO / RHO[0])


def test_rows_are_found_by_their_ids() -> None:
    weights = Weights.of_rows(RHO, ids=["a", "b", "c", "d", "e", "f"])
    np.testing.assert_allclose(weights.of(["d", "a"]), [1.5, 2.0])
    with pytest.raises(PatterningError, match="know no row 'x'"):
        weights.of(["x"])
    numbered = Weights.of_rows(RHO)
    np.testing.assert_allclose(numbered.of(torch.tensor([3, 0])), [1.5, 2.0])
    for rows in ([6], [-1], [0.5]):
        with pytest.raises(PatterningError, match="numbers from 0 to 5"):
            numbered.of(rows)


@pytest.mark.parametrize(
    ("rho", "message"),
    [
        ([1.0, -0.5], "negative"),
        ([1.0, np.nan], "NaN"),
        ([0.0, 0.0], "all zero"),
        ([[[1.0]]], "it must be"),
    ],
)
def test_weights_that_cannot_weight_a_loss_are_refused(rho, message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        Weights.of_rows(rho)


def test_a_file_gives_back_the_same_weights(tmp_path: Path) -> None:
    for weights in (
        Weights.of_rows(RHO, ids=list("abcdef")),
        Weights.of_rows(np.arange(12.0).reshape(4, 3)),
    ):
        weights.to_parquet(tmp_path / "rho.parquet")
        again = Weights.from_parquet(tmp_path / "rho.parquet")
        np.testing.assert_array_equal(again.rho, weights.rho)
        np.testing.assert_array_equal(again.ids, weights.ids)
        np.testing.assert_array_equal(again.free, weights.free)
        np.testing.assert_array_equal(again.base_weights, weights.base_weights)
    (tmp_path / "other.parquet").write_bytes(b"no parquet")
    with pytest.raises(PatterningError, match="holds no weights"):
        Weights.from_parquet(tmp_path / "other.parquet")


def gradient_of_the_weighted_loss(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Of Σ q ρ ℓ for ℓ_j = x_j w at w = 1."""
    return torch.from_numpy(weights.base_weights * weights.rho) @ x


def test_loss_weights_and_resampling_have_the_same_expected_gradient() -> None:
    x = torch.linspace(-1, 2, 6, dtype=torch.float64)
    weights = Weights.of_rows(RHO)
    wanted = float(gradient_of_the_weighted_loss(weights, x))
    by_loss = torch.stack([weights.loss(x[[j]], [j]) for j in range(6)]).mean()  # q is uniform: every row equally often
    assert float(by_loss) == pytest.approx(wanted)
    sampler = weights.sampler(seed=3, rows=600)
    drawn = [x[list(sampler)].mean() for _ in range(20)]
    assert float(torch.stack(drawn).mean()) == pytest.approx(wanted, abs=2e-3)
    counts = np.bincount(list(weights.sampler(seed=0, rows=6000)), minlength=6)
    np.testing.assert_allclose(counts / 1000, RHO, atol=0.002)  # stratified: to within one draw


def test_samplers_follow_their_seed_and_serve_a_data_loader() -> None:
    weights = Weights.of_rows(RHO)
    one, other = weights.sampler(5), weights.sampler(5)
    first = list(one)
    assert first == list(other)
    assert list(one) != first  # a new order in the next epoch
    loader = DataLoader(TensorDataset(torch.arange(6)), batch_size=2, sampler=weights.sampler(1))
    seen = torch.cat([batch[0] for batch in loader])
    assert 2 not in seen.tolist()
    with pytest.raises(PatterningError, match="tokens of a row are not drawn apart"):
        Weights.of_rows(np.ones((3, 2))).sampler(0)


def test_masked_tokens_do_not_count_in_the_loss() -> None:
    weights = Weights.of_rows([[1.0, 3.0], [2.0, 2.0]], base_weights=[[1, 1], [1, 0]])
    losses = torch.tensor([[1.0, 2.0], [4.0, 100.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False]])
    rho = weights.rho
    expected = (rho[0, 0] * 1 + rho[0, 1] * 2 + rho[1, 0] * 4) / 3
    assert float(weights.loss(losses, [0, 1], mask)) == pytest.approx(expected)
    with pytest.raises(PatterningError, match="do not fit"):
        weights.loss(losses[:, :1].expand(2, 3), [0, 1])


def test_permuted_weights_keep_the_histogram_and_their_strata() -> None:
    weights = Weights.of_rows(np.linspace(0.1, 1.9, 40))
    control = weights.permuted(1)
    np.testing.assert_allclose(np.sort(control.rho), np.sort(weights.rho))
    assert not np.array_equal(control.rho, weights.rho)
    labels = np.arange(40) % 4
    within = weights.permuted(1, within=labels)
    for label in range(4):
        np.testing.assert_allclose(np.sort(within.rho[labels == label]), np.sort(weights.rho[labels == label]))
    fixed = Weights(weights.rho, weights.ids, weights.base_weights, np.arange(40) < 20)
    np.testing.assert_array_equal(fixed.permuted(2).rho[20:], fixed.rho[20:])


def test_attached_weights_come_with_each_item() -> None:
    weights = Weights.of_rows(RHO)
    attached = weights.attach(TensorDataset(torch.arange(6)))
    item, weight = attached[3]
    assert int(item[0]) == 3
    assert float(weight) == pytest.approx(1.5)
    with pytest.raises(PatterningError, match="has 5"):
        weights.attach(TensorDataset(torch.arange(5)))


@given(st.lists(st.floats(0.0, 5.0), min_size=2, max_size=30).filter(lambda v: sum(v) > 0.1), st.integers(0, 5))
def test_a_sampler_never_draws_what_weighs_nothing(rho: list[float], seed: int) -> None:
    weights = Weights.of_rows(rho)
    drawn = set(weights.sampler(seed, rows=50))
    assert all(rho[j] > 0 for j in drawn)


def test_a_sampler_has_exactly_the_expected_gradient_of_the_weighted_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler's own expectation, integrated over its uniform numbers: shares of sixtieths lie on a grid of them."""
    rho = np.array([3.0, 0.5, 0.0, 1.0, 0.5, 1.0])  # q ρ in twelfths
    weights, grid = Weights.of_rows(rho), 10
    x = torch.tensor([1.0, -2.0, 5.0, 0.5, 3.0, -1.0], dtype=torch.float64)

    class Fixed:
        """Uniform numbers in the middle of the k-th of `grid` cells, and no shuffling."""

        def __init__(self, k: int) -> None:
            self.k = k

        def random(self, count: int) -> np.ndarray:
            return np.full(count, (self.k + 0.5) / grid)

        def permutation(self, rows: np.ndarray) -> np.ndarray:
            return rows

    gradients = []
    for k in range(grid):
        monkeypatch.setattr("patterning.intervention.loading.generator", lambda *_, k=k, **__: Fixed(k))
        gradients.append(float(x[list(weights.sampler(0))].mean()))
    wanted = float(gradient_of_the_weighted_loss(weights, x))
    assert np.mean(gradients) == pytest.approx(wanted, abs=1e-12)
    by_loss = torch.stack([weights.loss(x[[j]], [j]) for j in range(6)]).mean()
    assert float(by_loss) == pytest.approx(wanted, abs=1e-12)


def test_group_weights_are_one_for_each_label() -> None:
    labels = np.array(["code", "prose", "code", "docs"])
    weights = Weights.of_groups(labels, {"code": 1.0, "prose": 2.0, "docs": 0.0})
    np.testing.assert_allclose(weights.rho, [1.0, 2.0, 1.0, 0.0])
    assert weights.facts["rho_by_group"] == {"code": 1.0, "prose": 2.0, "docs": 0.0}
    for groups, rho in ((labels, {"code": 1.0, "prose": 1.0}), (labels, dict.fromkeys("ab", 1.0))):
        with pytest.raises(PatterningError, match="a ρ for each of these labels"):
            Weights.of_groups(groups, rho)
    task = Task(
        torch.nn.Linear(1, 1), lambda model, batch: model(batch)[:, 0] ** 2, torch.arange(4.0)[:, None], [1, 1, 1, 3]
    )
    own = Weights.of_groups(labels, {"code": 1.0, "prose": 2.0, "docs": 0.5}, task)
    assert float((own.base_weights * own.rho).sum()) == pytest.approx(1)
    np.testing.assert_allclose(own.rho / own.rho[0], [1.0, 2.0, 1.0, 0.5])
    own.check(task)
    with pytest.raises(PatterningError, match="3 labels for the 4 rows"):
        Weights.of_groups(labels[:3], {"code": 1.0, "prose": 1.0}, task)


def test_ids_as_a_column_survive_shuffling() -> None:
    pd = pytest.importorskip("pandas")
    weights = Weights.of_rows(RHO, ids=list("abcdef"))
    frame = weights.name_rows(pd.DataFrame({"x": range(6)})).sample(frac=1, random_state=0)
    np.testing.assert_allclose(weights.of(frame["row_id"].to_numpy()), RHO[frame["x"].to_numpy()] / RHO.mean())
    item, name = weights.name_rows(TensorDataset(torch.arange(6)))[4]
    assert (int(item[0]), name) == (4, "e")
    with pytest.raises(PatterningError, match="6 ids, and the data set has 5"):
        weights.name_rows(TensorDataset(torch.arange(5)))
    with pytest.raises(PatterningError, match="has a column 'row_id' already"):
        weights.name_rows(frame)
    with pytest.raises(PatterningError, match="has no length"):
        weights.name_rows(iter([1]))
