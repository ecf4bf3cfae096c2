"""Inputs of a third round of trials that gave a wrong number without a word: right now, or refused by name."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import patterning as pt
from patterning.core.errors import PatterningError
from patterning.intervention import edits

N = 60


@pytest.fixture(scope="module")
def measured() -> tuple[pt.Response, np.ndarray]:
    rng = torch.Generator().manual_seed(0)
    x, other = torch.randn(N, 4, generator=rng), torch.randn(40, 4, generator=rng)
    y = (x[:, 0] + 0.5 * torch.randn(N, generator=rng) > 0).long()
    task = pt.Task(nn.Linear(4, 2), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), (x, y))
    trained = pt.fit(task, None, 0, steps=200, learning_rate=1e-2, batch_size=30)
    phis = {"p": lambda m: m(other)[:, 1].mean(), "h": lambda m: m(other)[20:].square().mean()}
    chi = pt.measure(
        task, phis, sampler=pt.SGLD(60, 20, 2e-3), at=trained, burn_in=60, draws=20, batch_size=N, budget=1,
        progress=False,
    )  # fmt: skip
    return chi, y.numpy()


@pytest.mark.parametrize(
    "settings",
    [{}, {"policy": "linear"}, {"policy": "rank"}, {"cap": 1.3, "strength": 0.5}, {"within": True},
     {"policy": "constrained", "free": np.arange(N) < 30}],
)  # fmt: skip
def test_what_is_expected_is_expected_of_these_weights(measured, settings: dict[str, Any]) -> None:
    chi, labels = measured
    settings = {"strength": 0.02} | settings | ({"within": labels} if "within" in settings else {})
    rho = chi.invert({"p": 1}).weights(settings.pop("strength"), force=True, **settings)
    own = chi.n_beta * chi.chi @ (rho.base_weights * (rho.rho - 1)) / rho.facts["strength"]
    for k, name in enumerate(chi.names):
        expected = rho.facts["predicted_per_strength"][name]
        assert expected["value"] == pytest.approx(own[k], abs=2 * (expected["high"] - expected["low"]) + 1e-9)


def test_an_observable_that_is_another_one_after_sampling_is_refused() -> None:
    class Warm:
        calls = 0

        def __call__(self, m: nn.Module) -> torch.Tensor:
            self.calls += 1
            return m.weight[0, 0] * (1.0 if self.calls < 50 else 3.0)

    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    task = pt.Task(nn.Linear(3, 1), lambda m, b: m(b[0])[:, 0].square(), (x,))
    with pytest.raises(PatterningError, match="it keeps a state that calls change"):
        pt.measure(task, {"phi": Warm()}, sampler=pt.SGLD(30, 100, 1e-3), budget=1, progress=False)


@pytest.mark.parametrize("what", ["labels", "weights"])
def test_indexes_that_contradict_one_another_are_refused(what: str) -> None:
    x = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 3)).astype("f4"))
    y = pd.Series(np.arange(20) % 2)
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")  # noqa: E731
    shuffled = y.sample(frac=1, random_state=0)
    data, q = ((x, shuffled), None) if what == "labels" else ((x, y), pd.Series(np.ones(20), index=shuffled.index))
    with pytest.raises(PatterningError, match="in another order, and rows are paired by place"):
        pt.Task(nn.Linear(3, 2), loss, data, q)
    other = x.set_axis(range(100, 120))  # names that have nothing to do with one another
    pt.Task(nn.Linear(3, 2), loss, (other, y))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda w: w.of(np.array([True, False, False, True])), "rows are True and False"),
        (lambda w: edits.dropped(w, np.array([True, False, False, True])), "rows are True and False"),
        (lambda w: edits.dropped(w, "ab"), "rows is one text"),
        (lambda w: edits.duplicated(w, [3, 3]), "named twice"),
        (lambda w: w.loss(torch.ones(2, 2, 2), [3, 1]), "do not fit"),
    ],
)
def test_rows_are_asked_for_by_their_ids(call, says: str) -> None:
    with pytest.raises(PatterningError, match=says):
        call(pt.Weights.of_rows([0.5, 2.0, 1.0, 0.5], ids=[3, 1, 0, 2]))


def test_one_run_under_two_seeds_is_no_two_pairs() -> None:
    up = {"up": pt.Weights.of_rows(np.r_[np.full(20, 0.5), np.full(20, 1.5)])}

    def train(weights: pt.Weights, seed: int) -> float:
        return float((weights.rho * np.random.default_rng([0, seed // 2]).normal(size=40)).mean())

    with pytest.raises(PatterningError, match="6 of 12 seeds give the outcomes of another one"):
        pt.verify(train, up, {"m": lambda r: r}, range(12))


def test_accuracies_may_well_agree_over_seeds() -> None:
    """Most runs are right on all of 300 test rows, under either weights: that tells nothing of their seeds."""
    up = {"up": pt.Weights.of_rows(np.r_[np.full(20, 0.5), np.full(20, 1.5)])}

    def train(weights: pt.Weights, seed: int) -> float:
        wrong = max(0, seed % 5 - 2 + (weights.rho[0] < 1))
        return float(np.float32(1 - wrong / 300))

    assert pt.verify(train, up, {"accuracy": lambda r: r}, range(10)).rows()


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2)), "sparse gradients"),
        ("jit", "compiled by torch.jit"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit itself
def test_modules_that_cannot_be_followed_are_named(module: Any, says: str) -> None:
    module = torch.jit.script(nn.Linear(2, 2)) if module == "jit" else module
    data = (torch.randint(5, (10, 2)), torch.zeros(10, dtype=torch.long))
    with pytest.raises(PatterningError, match=says):
        pt.Task(module, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), data)


def test_a_frame_of_several_kinds_of_numbers_is_read() -> None:
    x = pd.DataFrame({"a": np.arange(8.0), "b": np.arange(8) % 2 == 0})
    task = pt.Task(nn.Linear(2, 1), lambda m, b: m(b)[:, 0].square(), x)
    assert task.data[1].tolist() == [1.0, 0.0]
