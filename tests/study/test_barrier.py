"""The barrier of a solution that is only left: the loss on the way out less that at the solution, string by string."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from patterning.core.errors import PatterningError
from patterning.core.samples import Samples
from patterning.study.bench import Bench, Kind
from patterning.study.readings_of_solutions import Barrier
from patterning.study.subject import Runs

CURVE = np.array([0.1, 0.3, -0.2, -0.4, 0.0, 0.2])
"""Sample j has loss CURVE_j x² / 2: more weight on those with CURVE > 0 makes a well around 0 deeper."""


def bench_of(x: np.ndarray, kept: tuple[int, ...] = (10, 20, 30)) -> Any:
    """Pilots that stand at x (r, 3) at steps 10, 20 and 30; a solution is |x| < 0.1."""
    weights = torch.full((6,), 1 / 6)
    losses = lambda flat, index: torch.from_numpy(CURVE)[index] * flat[:, :1].square() / 2  # noqa: E731
    runs = Runs({}, np.array([10, 20, 30]), {"near": 1 - np.abs(x)}, {step: x[:, [step // 10 - 1]] for step in kept})
    subject = SimpleNamespace(
        flat=SimpleNamespace(losses=losses, base_weights=weights), device="cpu", free=np.ones(6, dtype=bool),
        samples=Samples(np.arange(6), np.zeros(6, dtype=np.int64), np.full(6, 1 / 6), np.arange(6)), data=None,
        outcomes=[SimpleNamespace(measure="near")],
    )  # fmt: skip
    seeds = SimpleNamespace(pilots=range(len(x)))
    return Bench(subject, None, seeds, {"": runs}, 0.5, False)  # type: ignore[arg-type]


def test_it_is_the_loss_on_the_way_out_less_that_at_the_solution() -> None:
    bench = bench_of(np.array([[0.0, 1.0, 2.0], [0.5, 0.05, 1.5], [0.0, 0.05, 0.0]]))
    direction = Barrier(Kind("near", 0.9), "the well").read("barrier", bench).direction
    assert direction.facts["left"] == ["the well-0-10, then step 20", "the well-1-20, then step 30"]
    centred = CURVE - CURVE.mean()
    np.testing.assert_allclose(direction.s, centred / np.sqrt((centred**2).mean()), atol=1e-12)
    assert direction.facts["reliability"] == pytest.approx(1.0)
    reversed_ = Barrier(Kind("near", 0.9), "the well", sign=-1.0).read("barrier", bench).direction
    np.testing.assert_allclose(reversed_.s, -direction.s, atol=1e-12)


def test_weight_along_it_raises_the_barrier() -> None:
    bench = bench_of(np.array([[0.0, 1.0, 2.0], [0.05, 0.9, 2.0]]))
    rho = 1 + 0.1 * Barrier(Kind("near", 0.9)).read("barrier", bench).direction.s
    assert (rho * CURVE).mean() > CURVE.mean() + 0.01


@pytest.mark.parametrize(
    ("x", "kept"), [([[0.0, 0.0, 0.0]], (10, 20, 30)), ([[1.0, 0.5, 0.0]], (10, 20, 30)), ([[0.0, 1.0, 1.0]], (10, 30))]
)
def test_no_way_out_is_said(x: list[list[float]], kept: tuple[int, ...]) -> None:
    with pytest.raises(PatterningError, match="no pilot was seen to leave a solution of the kind 'the well'"):
        Barrier(Kind("near", 0.9), "the well").read("barrier", bench_of(np.array(x), kept))


def test_ways_out_that_differ_are_refused() -> None:
    bench = bench_of(np.array([[0.0, 1.0, 2.0], [0.0, -1.0, 2.0]]))
    bench.subject.flat.losses = lambda flat, index: torch.from_numpy(CURVE)[index] * flat[:, :1]
    found = Barrier(Kind("near", 0.9)).read("barrier", bench).direction
    assert found.refused == "the ways out differ: reliability -1.00 (at least 0.5)"


def test_one_way_out_has_no_error_and_is_refused() -> None:
    found = Barrier(Kind("near", 0.9)).read("barrier", bench_of(np.array([[0.0, 1.0, 2.0]]))).direction
    assert found.refused == "one way out was seen, so that its error is not known"
