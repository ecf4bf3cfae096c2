"""Inputs of a fourth round of trials: what was silent is said, or refused by name."""

import json
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import patterning as pt
from patterning.core.errors import PatterningError
from patterning.posterior.find_settings import find_settings
from patterning.posterior.short_chain import ShortChain
from patterning.verification.suspicion import notes_on_jumps
from patterning.verification.verify import _key

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
SETTINGS = {"sampler": pt.SGLD(30, 100, 1e-3), "chains": 2, "draws": 8, "burn_in": 4, "batch_size": 40, "budget": 1,
            "progress": False}  # fmt: skip


def task() -> pt.Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pt.Task(nn.Linear(3, 1), lambda m, b: m(b)[:, 0].square(), X)


def test_a_probed_part_says_what_chi_is_relative_to(tmp_path) -> None:
    part = pt.measure(task(), probes=range(10), **SETTINGS)
    assert str(part).startswith("χ: 1 row, 10 samples in 10 of 40 rows (χ is relative to their mean), nβ 30")
    part.page(tmp_path / "page.html")
    assert "10 samples in 10 of 40 rows (χ is relative to their mean)" in (tmp_path / "page.html").read_text()
    assert "relative" not in str(pt.measure(task(), **SETTINGS)).splitlines()[0]


def test_one_number_is_no_set_of_rows() -> None:
    with pytest.raises(PatterningError, match=r"probes is 20: it must be row numbers, range\(20\) for so many"):
        pt.measure(task(), probes=20, **SETTINGS)  # type: ignore[arg-type]


def test_functions_that_a_loop_made_alike_are_refused() -> None:
    phis = {f"weight {i}": lambda model: model.weight[0, i] for i in range(3)}  # noqa: B023
    with pytest.raises(PatterningError, match="'weight 0' and 'weight 1' are the same at w\\* and beside it"):
        pt.measure(task(), phis, **SETTINGS)
    bound = {f"weight {i}": lambda model, i=i: model.weight[0, i] for i in range(3)}
    assert pt.measure(task(), bound, **SETTINGS).names == tuple(bound)


def test_shares_of_rows_may_agree() -> None:
    phis = {name: lambda model: (model(X)[:, 0] > 0).float().mean() for name in ("train", "test")}
    assert pt.measure(task(), phis, estimator="covariance", **SETTINGS).names == ("train", "test")


def test_what_train_makes_depends_on_the_default_type() -> None:
    weights = pt.Weights.of_rows([0.5, 1.0, 1.5])
    single = _key("code", weights, 0)
    torch.set_default_dtype(torch.float64)
    try:
        assert _key("code", weights, 0) != single
    finally:
        torch.set_default_dtype(torch.float32)
    assert _key("code", weights, 0) == single


def test_the_package_is_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["patterning", "--version"])
    runpy.run_module("patterning", run_name="__main__")
    assert capsys.readouterr().out == f"patterning {pt.__version__}\n"


@pytest.mark.parametrize(("jumps", "told"), [([], False), ([3], True), ([3, 6], True), ([0, 2, 4, 6], False)])
def test_runs_that_jump_now_and_then_are_named(jumps: list[int], told: bool) -> None:
    noise = np.random.default_rng(0).normal(size=(2, 8)) / 100
    noise[1, jumps] -= 1
    notes = notes_on_jumps({"unweighted": {"loss": noise[0]}, "mine": {"loss": noise[1]}}, "unweighted", ["loss"])
    assert bool(notes) is told
    assert all(f"'loss' under mine: {len(jumps)} of 8 pairs" in note for note in notes)


def test_a_pandas_index_names_the_rows() -> None:
    series = pd.Series([1.0, 2.0, 3.0], index=[2, 0, 1])
    np.testing.assert_allclose(pt.Weights.of_rows(series).of([0, 1, 2]), [1.0, 1.5, 0.5])
    groups = pd.Series(list("aab"), index=[2, 0, 1])
    of_groups = pt.Weights.of_groups(groups, {"a": 2, "b": 1}).of([0, 1, 2])
    np.testing.assert_allclose(of_groups / of_groups[1], [2, 1, 2])
    with pytest.raises(PatterningError, match="in another order"):
        pt.Weights.of_rows(pd.Series([1.0, 2.0, 3.0], index=[0, 1, 2]), base_weights=series)
    few = pt.Task(nn.Linear(3, 1), lambda m, b: m(b)[:, 0].square(), X[:3])
    with pytest.raises(PatterningError, match="in another order"):
        pt.Weights.of_groups(groups, {"a": 2, "b": 1}, few)


@pytest.mark.parametrize("ids", [pd.date_range("2020", periods=2), [(0, 1), (0, 2)]])
def test_ids_are_numbers_or_text(ids) -> None:
    with pytest.raises(PatterningError, match="ids must be one name a row, all whole numbers or all text"):
        pt.Weights.of_rows([1.0, 2.0], ids=ids)


def test_labels_of_groups_that_are_named_otherwise_are_shown_as_they_are() -> None:
    with pytest.raises(PatterningError, match=r"are \[1, 2\] and rho_by_group names \['1', '2'\]"):
        pt.Weights.of_groups([1, 2, 1], {"1": 2, "2": 1})
    np.testing.assert_allclose(pt.Weights.of_groups(["a", None], {"a": 2, None: 1}).rho, [4 / 3, 2 / 3])


def test_arms_of_other_base_weights_are_no_comparison() -> None:
    one, other = pt.Weights.of_rows([1.0, 2.0]), pt.Weights.of_rows([1.0, 2.0], base_weights=[1.0, 3.0])
    with pytest.raises(PatterningError, match="the arm 'b' has other base weights than 'a'"):
        pt.verify(lambda weights, seed: seed, {"a": one, "b": other}, {"x": float}, range(6))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_what_the_caller_switched_off_is_on(around) -> None:
    inside = task()
    plain = pt.measure(inside, **SETTINGS).chi
    with around():
        np.testing.assert_array_equal(pt.measure(inside, **SETTINGS).chi, plain)
        fitted = pt.fit(inside, None, 0, steps=3, batch_size=20)
    for p, q in zip(fitted.parameters(), pt.fit(inside, None, 0, steps=3, batch_size=20).parameters(), strict=True):
        assert torch.equal(p, q)


def test_threads_do_not_see_one_another() -> None:
    tasks = [task(), task()]
    plain = pt.measure(tasks[0], **SETTINGS).chi
    with ThreadPoolExecutor(2) as pool:
        for own in (tasks, [tasks[0]] * 2):
            for found in pool.map(lambda one: pt.measure(one, **SETTINGS).chi, own):
                np.testing.assert_array_equal(found, plain)


def test_a_parameter_without_numbers_is_let_be() -> None:
    model = nn.Linear(3, 1)
    model.register_parameter("empty", nn.Parameter(torch.zeros(0, 2)))
    made = pt.Task(model, lambda m, b: m(b)[:, 0].square(), X)
    assert pt.measure(made, **SETTINGS).chi.shape == (1, 40)


def test_the_pair_that_a_loss_returns_can_be_weighted() -> None:
    losses, mask = torch.arange(6.0).reshape(2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]])
    weights = pt.Weights.of_rows([1.5, 0.5])
    assert float(weights.loss((losses, mask), [0, 1])) == float(weights.loss(losses, [0, 1], mask)) == 1.0


def test_what_was_to_be_held_has_its_own_sentence() -> None:
    weights = pt.Weights.of_rows(np.linspace(0.5, 1.5, 20))

    def train(weights: pt.Weights, seed: int) -> np.ndarray:
        return np.random.default_rng([seed, int(1e6 * weights.rho[0])]).normal(size=3) / 100 + [
            weights.rho @ np.arange(20),
            0,
            0,
        ]

    measures = {"asked": lambda run: run[0], "held": lambda run: run[0] + run[1], "kept": lambda run: run[1]}
    found = pt.verify(train, {"mine": weights}, measures, range(8), wanted={"mine": {"asked": 1, "held": 0, "kept": 0}})
    lines = found.findings()
    assert lines[0].startswith("mine, asked: steers: against unweighted +35")
    assert lines[1].startswith("mine, held, which was to be held: not held, moved beyond permuted: against unweighted")
    assert lines[2].startswith("mine, kept, which was to be held: no")
    assert len(lines) == 3


def test_a_stored_chi_of_the_same_data_is_read_with_a_module_made_anew(tmp_path) -> None:
    pt.measure(task(), **SETTINGS).save(tmp_path / "chi.zarr")
    again = pt.Task(nn.Linear(3, 1), lambda m, b: m(b)[:, 0].square(), X)
    with pytest.warns(pt.PatterningWarning, match="the same data, with another model"):
        assert len(pt.load(tmp_path / "chi.zarr", again).invert({"full": 1}).weights(0.1, force=True)) == 40
    other = pt.Task(nn.Linear(3, 1), lambda m, b: m(b)[:, 0].square(), X + 1)
    with pytest.raises(PatterningError, match="was measured on another task"):
        pt.load(tmp_path / "chi.zarr", other)


def test_a_decode_that_fails_says_what_it_is_given(tmp_path) -> None:
    chi = pt.measure(task(), **SETTINGS)
    with pytest.raises(PatterningError, match=r"decode failed for row .*a function of \(row of the data, position\)"):
        chi.top(1, decode=lambda row: "")


@pytest.mark.parametrize("policy", ["clip", "tilt", "rank", "rank-tilt", "constrained"])
def test_what_the_direction_froze_stays_frozen(policy) -> None:
    few = np.arange(40) < 12
    direction = pt.measure(task(), {"w": lambda model: model.weight[0, 0]}, **SETTINGS).invert({"w": 1}, free=few)
    weights = direction.weights(0.4, policy, force=True)
    assert (weights.rho[12:] == 1).all()
    assert (weights.permuted(0).rho[12:] == 1).all()
    assert not weights.free[12:].any()
    assert np.ptp(weights.rho[:12]) > 0


def test_what_moves_with_what_was_asked_for_cannot_be_held(tmp_path) -> None:
    phis = {"a": lambda m: m.weight[0, 0], "b": lambda m: 2 * m.weight[0, 0] + 1, "c": lambda m: m.weight[0, 1]}
    chi = pt.measure(task(), phis, **SETTINGS)
    assert (
        "b cannot be held: the samples that move what was asked for move it as well"
        in chi.invert({"a": 1}, "b").refused
    )
    assert "cannot be held" not in str(chi.invert({"a": 1}, "c").refused)
    chi.save(tmp_path / "chi.zarr")
    assert pt.invert_store(tmp_path / "chi.zarr", {"a": 1}, "b").refused == chi.invert({"a": 1}, "b").refused
    assert chi.invert({"a": 1}, hold=None).wanted == {"a": 1.0}  # type: ignore[arg-type]


def test_weights_and_directions_are_equal_to_themselves_alone() -> None:
    weights = pt.Weights.of_rows([1.0, 2.0])
    assert weights in [pt.Weights.of_rows([1.0, 2.0]), weights]
    assert weights != pt.Weights.of_rows([1.0, 2.0])
    assert len({weights, weights}) == 1


def test_an_observable_that_reads_another_file_than_before_is_measured_again(tmp_path) -> None:
    (tmp_path / "scale.txt").write_text("1.0")
    read = {"w": lambda model: float((tmp_path / "scale.txt").read_text()) * model.weight[0, 0]}
    first = pt.measure(task(), read, out=tmp_path / "run", **SETTINGS).chi
    (tmp_path / "scale.txt").write_text("3.0")
    again = pt.measure(task(), read, out=tmp_path / "run", **SETTINGS).chi
    np.testing.assert_allclose(again, 3 * first, rtol=1e-4)


def test_series_in_another_order_are_refused_where_rows_go_by_place() -> None:
    order = np.roll(np.arange(40), 1)
    chi = pt.measure(task(), {"w": lambda model: model.weight[0, 0]}, **SETTINGS)
    direction, groups = chi.invert({"w": 1}), pd.Series(np.arange(40) % 2, index=order)
    for call in (
        lambda: chi.invert({"w": 1}, free=groups > 0),
        lambda: direction.weights(0.1, force=True, free=groups > 0),
        lambda: direction.weights(0.1, force=True, within=groups),
        lambda: direction.weights(0.1, force=True).permuted(0, within=groups),
        lambda: pt.Task(nn.Linear(3, 1), lambda m, b: m(b)[:, 0].square(), X, groups + 1.0),
    ):
        with pytest.raises(PatterningError, match="holds the numbers of the rows in another order"):
            call()


def fitted(scale: float) -> pt.Task:
    y = scale * (X @ torch.tensor([1.0, -0.5, 0.3]) + 0.5 * torch.randn(40, generator=torch.Generator().manual_seed(1)))
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(X, y[:, None]).solution.T)
    return pt.Task(model, lambda m, b: (m(b[0])[:, 0] - b[1]).square() / 2, (X, y))


def test_losses_of_large_targets_are_calibrated() -> None:
    large = fitted(100)
    for n_beta in (0.01, None, 1000):
        found = find_settings(large, large.own_row(), ["full"], n_beta=n_beta, batch_size=40)
        assert found.verdict == "healthy", found.text


def test_facts_of_weights_are_plain_values() -> None:
    chi = pt.measure(task(), {"w": lambda model: model.weight[0, 0]}, **SETTINGS)
    json.dumps(dict(chi.invert({"w": 1}).weights(np.float32(0.1), force=True).facts))


@pytest.mark.parametrize("probes", [{1, 2}, slice(3), []])
def test_what_names_no_rows_says_so(probes) -> None:
    with pytest.raises(PatterningError, match=r"^probes is (a set|a slice|empty)"):
        pt.measure(task(), probes=probes, **SETTINGS)


def test_the_step_that_is_said_is_the_step_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, own = [], fitted(1)
    for length in (0.2, 2.0):
        monkeypatch.setattr(
            "patterning.posterior.find_settings.try_chain",
            lambda *of, length=length: ShortChain(length, 0.0, of[2].step_size),
        )
        found = find_settings(own, own.own_row(), ["full"], batch_size=40)
        assert found.verdict == "healthy"
        assert f"ε {found.kernel.step_size:.2g};" in found.text
        steps.append(found.kernel.step_size)
    assert steps[1] == pytest.approx(steps[0] / 10)


def test_a_look_does_not_say_that_something_was_not_held() -> None:
    rows = pt.Weights.of_rows(np.linspace(0.5, 1.5, 20))
    moved = pt.verify(lambda w, seed: w.rho[0] + seed / 100 * w.rho[1], {"mine": rows}, {"x": float}, range(3),
                      wanted={"mine": {"x": 0}})  # fmt: skip
    assert moved.findings()[0].startswith("mine, x, which was to be held: a look")
