"""Faults that a fifth round of use found, by kind: keys, expected changes, a first look, rare rows, settings."""

import collections
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

import patterning as pt
from patterning.core.identity import digest_of
from patterning.verification.effects import paired_effect

SAMPLER = pt.SGLD(30, 30, 2e-3)
QUICK = {"draws": 8, "budget": 1, "progress": False}


def squares(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (model(batch[0])[:, 0] - batch[1]).square()


def regression(n: int, base_weights: object = None) -> pt.Task:
    """A linear model at the least squares of the first 40 rows."""
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, generator=noise)
    y = x @ torch.tensor([1.0, -1.0]) + 0.3 * torch.randn(n, generator=noise)
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x[:40], y[:40, None]).solution.T)
    return pt.Task(model, squares, (x, y), base_weights=base_weights)


def first_weight(model: nn.Module) -> torch.Tensor:
    return model.weight[0, 0] * 1


# --- keys


def tables() -> list[tuple[str, object, object]]:
    masked = [np.ma.masked_array([1, 2], mask) for mask in ([0, 1], [1, 0])]
    factories = [collections.defaultdict(lambda: 1), collections.defaultdict(lambda: 2)]
    marked = [torch.ones(1), torch.ones(1)]
    marked[1].rate = 0.3  # pyright: ignore[reportAttributeAccessIssue]
    return [
        ("frame", pd.DataFrame({"a": [0]}), pd.DataFrame({"a": [1]})),
        ("series", pd.Series([0]), pd.Series([1])),
        ("categories", pd.Categorical(["a"]), pd.Categorical(["b"])),
        ("time", pd.Timestamp("2020-01-01"), pd.Timestamp("2021-01-01")),
        ("masked array", *masked),
        ("factory", *factories),
        ("attribute of a tensor", *marked),
        ("closure of a library", get_ema_multi_avg_fn(0.5), get_ema_multi_avg_fn(0.9)),
    ]


@pytest.mark.parametrize(("one", "two"), [pytest.param(*pair, id=name) for name, *pair in tables()])
def test_what_is_kept_in_c_or_beside_the_attributes_is_in_the_key(one: object, two: object) -> None:
    assert digest_of(one)[0] != digest_of(two)[0]
    assert digest_of(one) == digest_of(one)
    assert not digest_of(one)[1]


def test_the_key_of_a_frame_is_the_same_after_it_was_read() -> None:
    frame = pd.DataFrame({"a": [1, 2], "text": ["x", "y"]})
    before = digest_of(frame)
    frame["a"].sum()
    frame.loc[1]
    frame.index.get_loc(1)
    assert digest_of(frame) == before


def test_attributes_of_a_function_are_in_its_key() -> None:
    def train() -> float:
        return train.rate  # pyright: ignore[reportFunctionMemberAccess]

    train.rate = 0.1  # pyright: ignore[reportFunctionMemberAccess]
    before = digest_of(train)[0]
    train.rate = 0.3  # pyright: ignore[reportFunctionMemberAccess]
    assert digest_of(train)[0] != before


def test_a_vectorised_function_has_no_key() -> None:
    assert digest_of(np.frompyfunc(lambda x: x, 1, 1))[1]
    assert not digest_of(np.exp)[1]


def test_other_labels_in_a_frame_are_other_runs(tmp_path: Path) -> None:
    x, rho = (
        torch.randn(12, 3, generator=torch.Generator().manual_seed(0)),
        pt.Weights.of_rows(np.linspace(0.5, 1.5, 12)),
    )

    def make(frame: pd.DataFrame) -> Callable[[pt.Weights, int], nn.Module]:
        def train(weights: pt.Weights, seed: int) -> nn.Module:
            torch.manual_seed(seed)
            model, labels = nn.Linear(3, 2), torch.tensor(frame["label"].to_numpy())
            optimizer = torch.optim.SGD(model.parameters(), 0.3)
            for _ in range(5):
                optimizer.zero_grad()
                weights.loss(F.cross_entropy(model(x), labels, reduction="none"), np.arange(12)).backward()
                optimizer.step()
            return model

        return train

    measures = {"ones": lambda model: float(model(x).softmax(1)[:, 1].mean().detach())}
    found = [
        pt.verify(make(pd.DataFrame({"label": [label] * 12})), {"w": rho}, measures, range(3), out=out)
        .arms[0]
        .values["ones"]
        for label, out in ((0, tmp_path), (1, tmp_path), (1, None))
    ]
    np.testing.assert_array_equal(found[1], found[2])
    assert found[0].mean() < 0.5 < found[1].mean()


@pytest.mark.parametrize("change", ["facts", "free"])
def test_all_of_the_weights_that_train_is_given_is_in_the_key(change: str, tmp_path: Path) -> None:
    from dataclasses import replace

    first = pt.Weights.of_rows(np.linspace(0.5, 1.5, 12))
    other = replace(first, facts={"rate": 1.0}) if change == "facts" else replace(first, free=np.arange(12) > 0)

    def train(weights: pt.Weights, seed: int) -> float:
        return float(seed + weights.rho[0] + weights.facts.get("rate", 0.0) + weights.free.sum())  # pyright: ignore

    found = [
        pt.verify(train, {"w": one}, {"value": float}, range(3), out=tmp_path, recheck=False).arms[1].values["value"]
        for one in (first, other)
    ]
    assert (found[0] != found[1]).all()


def test_what_an_observable_reads_from_a_file_is_in_the_key_where_it_is_0_at_the_checkpoint(tmp_path: Path) -> None:
    task, place = regression(40), tmp_path / "scale.pt"
    start = task.module.weight.detach().clone()

    def drift(model: nn.Module) -> torch.Tensor:
        return ((model.weight - start).square() * torch.load(place)).sum()

    found = []
    for scale, out in (((1.0, 1.0), "run"), ((5.0, 0.0), "run"), ((5.0, 0.0), "new")):
        torch.save(torch.tensor([scale]), place)
        settings = {"sampler": SAMPLER, "estimator": "covariance", **QUICK}
        found.append(pt.measure(task, {"drift": drift}, out=tmp_path / out, **settings).chi)
    assert not np.array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[1], found[2])


# --- numbers


@pytest.mark.parametrize("every", [1, 4, 20])
def test_the_expected_change_is_that_of_the_probed_rows_share_of_the_data(every: int) -> None:
    task = regression(400)
    x, y = (part.double() for part in task.data)
    start = task.module.weight.detach().double()[0]

    def mean(rho: np.ndarray) -> float:
        """The exact posterior mean of the first weight."""
        q = torch.tensor(rho) / rho.sum()
        matrix = 60 * (x.T * q) @ x + 30 * torch.eye(2)
        return float(torch.linalg.solve(matrix, 60 * (x.T * q) @ y + 30 * start)[0])

    settings = {"sampler": SAMPLER, "burn_in": 100, "batch_size": 400, **QUICK, "draws": 40}
    plan = pt.measure(task, {"a": first_weight}, probes=range(0, 400, every), **settings).invert({"a": 1})
    weights = plan.weights(0.1)
    exact = (mean(weights.rho) - mean(np.ones(400))) / 0.1
    assert weights.facts["predicted_per_strength"]["a"]["value"] == pytest.approx(exact, rel=0.05)
    assert plan.predicted["a"].value == pytest.approx(exact, rel=0.05)


def test_rows_without_a_base_weight_have_their_own_susceptibility_and_serve_no_weights() -> None:
    task = regression(60, [1.0] * 40 + [0.0] * 20)
    chi = pt.measure(task, {"a": first_weight}, sampler=SAMPLER, burn_in=60, batch_size=40, **QUICK)
    np.testing.assert_allclose(chi.rows().chi, chi.chi)
    held_out = pt.measure(task, {"a": first_weight}, probes=range(40, 60), sampler=SAMPLER, batch_size=40, **QUICK)
    with pytest.raises(pt.PatterningError, match="the probed rows have no base weight"):
        held_out.invert({"a": 1}).weights(0.1)


@pytest.mark.parametrize("phi", ["probes", "data"])
@pytest.mark.parametrize("case", ["an odd number", "base weights", "shares"])
def test_a_first_look_at_the_component_loss_weighs_rows_as_the_loss_does(case: str, phi: str) -> None:
    n = 5 if case == "an odd number" else 24
    noise = torch.Generator().manual_seed(0)
    x, y, shares = torch.randn(n, 4, generator=noise), torch.arange(n) % 3, torch.tensor([1.0, 0.05] * 12)[:n]
    torch.manual_seed(0)
    model = nn.Linear(4, 3)

    def losses(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> object:
        found = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return (found, batch[2]) if case == "shares" else found

    base = [1.0, 10.0] * 12 if case == "base weights" else None
    task = pt.Task(model, losses, (x, y, shares), base_weights=base)
    chi = pt.measure(task, sampler=pt.SGLD(30, 10.0, 1e-3), estimator="first-order", phi=phi, progress=False).chi[0]
    each = F.cross_entropy(model(x), y, reduction="none")
    gradients = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(one, list(model.parameters()), retain_graph=True)])
            for one in each
        ]
    ).double()
    mean = task.base_weights @ gradients
    np.testing.assert_allclose(chi, -(gradients - mean) @ mean / 10, rtol=1e-3, atol=1e-6)


def test_rows_of_small_base_weight_are_trained_on_as_their_weights_say() -> None:
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, generator=noise)
    y = x @ torch.tensor([1.0, -1.0])
    y[35:] = x[35:] @ torch.tensor([-2.0, 3.0])
    base = torch.ones(40)
    base[35:] = 0.0013
    task = pt.Task(nn.Linear(2, 1, bias=False), squares, (x, y), base_weights=base)
    rho = pt.Weights.of_groups(["common"] * 35 + ["rare"] * 5, {"common": 1.0, "rare": 500.0}, task)
    fitted = pt.fit(task, rho, 0, steps=1500, batch_size=40, learning_rate=1e-2).weight.detach()[0]
    share, rows = torch.tensor(rho.base_weights * rho.rho), x.double()
    exact = torch.linalg.solve((rows.T * share) @ rows, (rows.T * share) @ y.double())
    np.testing.assert_allclose(fitted, exact, atol=0.1)  # plain least squares of the common rows is 0.3 away


def test_tiny_measures_have_an_interval_and_huge_ones_are_refused() -> None:
    arm, base = np.array([1.0, 2.0, 4.0, 4.5]), np.array([0.5, 2.5, 3.0, 3.0])
    effect, tiny = paired_effect(arm, base), paired_effect(1e-300 * arm, 1e-300 * base)
    np.testing.assert_allclose(
        [tiny.difference, tiny.low, tiny.high], 1e-300 * np.array([effect.difference, effect.low, effect.high])
    )
    weights = pt.Weights.of_rows(np.linspace(0.5, 1.5, 4))
    for value, says in ((1e300, r"differences of numbers past 1e\+100"), (10**400, "is inf")):
        with pytest.raises(pt.PatterningError, match=says):
            pt.verify(lambda w, seed: w.rho[0] + seed, {"w": weights}, {"m": lambda _r, v=value: v}, range(3))


# --- what was refused badly


@pytest.mark.parametrize(
    ("sampler", "more"),
    [
        (pt.SGLD(np.int64(30), 30.0, np.float32(1e-3)), {}),
        (pt.RMSPropSGLD(np.int64(30), 30.0, np.float64(1e-3)), {"estimator": "covariance"}),
        (SAMPLER, {"chains": np.int32(4), "seed": np.int64(1)}),
    ],
)
def test_settings_may_be_numpy_numbers(sampler: object, more: dict[str, object]) -> None:
    assert pt.measure(regression(40), sampler=sampler, **QUICK, **more).chi.shape == (1, 40)  # pyright: ignore


@pytest.mark.parametrize("estimator", ["pathwise", "first-order", "covariance"])
def test_data_sets_may_read_values_of_tensors(estimator: str) -> None:
    x, y = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
            return (x[row] / x[row].norm()).numpy(), int(y[row])

    torch.manual_seed(0)
    model, loss = nn.Linear(6, 3), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")
    settings = {"sampler": SAMPLER, "estimator": estimator, **QUICK}
    found = pt.measure(pt.Task(model, loss, Rows()), **settings)
    whole = pt.measure(pt.Task(model, loss, (x / x.norm(dim=1, keepdim=True), y)), **settings)
    np.testing.assert_allclose(found.chi, whole.chi, rtol=1e-4, atol=1e-7)


def test_rows_are_found_by_ids_of_another_type_and_nothing_is_no_row() -> None:
    large = pt.Weights.of_rows([2.0, 1.0, 0.0], ids=np.array([2**60 + 1, 2**60 + 2, 5], np.uint64))
    np.testing.assert_array_equal(large.of(torch.tensor([2**60 + 2, 5])), [1.0, 0.0])
    with pytest.raises(pt.PatterningError, match="rows hold None"):
        pt.Weights.of_rows([2.0, 1.0, 0.0], ids=[10, 20, 30]).of([None])


def test_a_mask_may_be_a_list() -> None:
    weights = pt.Weights.of_rows([[1.0, 2.0], [3.0, 0.0]])
    assert float(weights.loss(torch.ones(2, 2), [0, 1], [[1, 0], [1, 1]])) == pytest.approx(4 / 3 * weights.rho[0, 0])


def test_a_module_that_changed_is_told_before_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    task = regression(40)
    with torch.no_grad():
        task.module.weight.mul_(3)
    monkeypatch.setattr("patterning.face.measure.component_response", lambda *_a, **_k: pytest.fail("sampled"))
    with pytest.raises(pt.PatterningError, match="changed after the task was made, make it anew"):
        pt.measure(task, sampler=SAMPLER, **QUICK)


def test_a_folder_in_the_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    pt.measure(regression(40), sampler=SAMPLER, out="~/run", **QUICK)
    assert (tmp_path / "home" / "run").is_dir()
    assert not (tmp_path / "~").exists()
