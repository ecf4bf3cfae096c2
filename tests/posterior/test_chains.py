"""Chains around a checkpoint: their law, their randomness and what becomes of one that diverges."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor
from zoo.quadratic import Bowl, chain_variance, linear_regression

from patterning.core.errors import PatterningError
from patterning.core.flat import FlatTask
from patterning.posterior.chains import ChainConfig, ChainTrace, gaussian, minibatch, run_chains
from patterning.posterior.sgld import SGLD
from patterning.tasks.parentheses import make_parentheses

CONFIG = ChainConfig(chains=3, draws=4, burn_in=6, steps_between_draws=5, batch_size=8, seed=2)


def run(
    task: FlatTask,
    anchor: Tensor,
    kernel: SGLD,
    config: ChainConfig,
    *,
    first_chain: int = 0,
    loss_band: float = math.inf,
) -> tuple[Tensor, ChainTrace]:
    """All draws (draws, chains, P), and the trace."""
    draws: list[Tensor] = []
    numbers: list[int] = []

    def keep(number: int, position: Tensor) -> None:
        numbers.append(number)
        draws.append(position.clone())

    trace = run_chains(task, anchor, kernel, config, keep, first_chain=first_chain, loss_band=loss_band)
    stopped = len(trace.diverged) == config.chains  # once every chain has diverged, nothing is drawn any more
    assert stopped or numbers == list(range(config.draws))
    return torch.stack(draws) if draws else torch.empty(0), trace


def bowl(parameters: int = 6) -> Bowl:
    return Bowl(curvature=torch.linspace(0.5, 3, parameters), centre=torch.linspace(-1, 1, parameters), floor=0.25)


def test_mean_and_variance_of_every_coordinate_are_the_discretised_laws() -> None:
    # Every coordinate of the bowl is a chain of its own: 16 x 800 chains for each of five curvatures.
    n_beta, gamma, each, chains = 30.0, 20.0, 800, 16
    curvature = torch.tensor([1 / 3, 1.0, 3.0, 7.0, 10.0]).repeat_interleave(each)
    task = Bowl(curvature=curvature, centre=torch.full((5 * each,), 0.5))
    kernel = SGLD(n_beta, gamma, 0.01)
    config = ChainConfig(chains=chains, draws=1, burn_in=100, steps_between_draws=1, batch_size=4, seed=5)
    draws, trace = run(task, torch.zeros(5 * each), kernel, config)
    assert not trace.diverged
    groups = draws[0].double().view(chains, 5, each).permute(1, 0, 2).reshape(5, -1)
    count = chains * each
    for group, h in zip(groups, (1 / 3, 1.0, 3.0, 7.0, 10.0), strict=True):
        total = n_beta * h + gamma
        wanted = chain_variance(total, kernel.step_size)
        assert abs(float(group.var()) / wanted - 1) < 3.5 * math.sqrt(2 / count)
        mean = n_beta * h * 0.5 / total  # between the anchor at 0 and the minimum at ½
        assert abs(float(group.mean()) - mean) < 3.5 * math.sqrt(wanted / count)
    assert float(groups[4].var()) * (n_beta * 10 + gamma) > 2  # ελ = 3.2: 1/λ would be wrong five times over


def test_local_learning_coefficient_is_the_closed_form() -> None:
    n_beta, gamma, parameters, chains = 30.0, 5.0, 3000, 12
    curvature = torch.linspace(1, 8, parameters)
    task = Bowl(curvature=curvature, centre=torch.zeros(parameters), floor=0.7)
    kernel = SGLD(n_beta, gamma, 0.004)
    config = ChainConfig(chains=chains, draws=4, burn_in=100, steps_between_draws=40, batch_size=2, seed=6)
    draws, _ = run(task, torch.zeros(parameters), kernel, config)
    h = curvature.double().numpy()
    variance = chain_variance(n_beta * h + gamma, kernel.step_size)
    wanted = n_beta * float((h * variance).sum()) / 2
    error = n_beta * math.sqrt(float(((h * variance) ** 2).sum()) / 2 / (chains * 4))
    losses = (h * draws.double().numpy() ** 2).sum(-1) / 2
    assert abs(n_beta * losses.mean() - wanted) < 3.5 * error
    assert wanted - parameters / 2 > 8 * error  # the coefficient d/2 of the continuous posterior is told apart


def test_local_learning_coefficient_of_a_regular_model_is_half_its_dimension() -> None:
    parameters = 4000
    task = Bowl(curvature=torch.full((parameters,), 2.0), centre=torch.zeros(parameters))
    kernel = SGLD(n_beta=1000.0, localization=1.0, step_size=2e-5)  # ελ = 0.04: 1 % of discretisation error
    config = ChainConfig(chains=8, draws=2, burn_in=250, steps_between_draws=50, batch_size=1, seed=7)
    draws, _ = run(task, torch.zeros(parameters), kernel, config)
    found = 1000.0 * float((2.0 * draws.double() ** 2).sum(-1).mean()) / 2
    assert found == pytest.approx(parameters / 2, rel=0.02)


def test_draws_and_losses_are_taken_when_they_say() -> None:
    task, config = bowl(), CONFIG
    draws, trace = run(task, task.centre + 0.1, SGLD(30.0, 10.0, 1e-3), config)
    assert trace.losses.shape == (26, 3)
    index = torch.zeros(3, 1, dtype=torch.int64)
    torch.testing.assert_close(trace.losses[0], task.losses((task.centre + 0.1).expand(3, -1), index)[:, 0])
    for draw in range(3):  # the draw after step 6 + 5 (draw + 1) is where the next step's loss is measured
        torch.testing.assert_close(trace.losses[11 + 5 * draw], task.losses(draws[draw], index)[:, 0])


@pytest.mark.parametrize("kind", ["bowl", "regression"])
def test_a_chain_is_the_same_bits_alone_and_batched(kind: str) -> None:
    task = bowl() if kind == "bowl" else linear_regression(0, 9, 6)[0]
    anchor, kernel = task.init([0])[0], SGLD(30.0, 10.0, 1e-3)
    together, trace = run(task, anchor, kernel, CONFIG, first_chain=4)
    assert not torch.equal(together[:, 0], together[:, 1])
    for c in range(3):
        alone, lone_trace = run(task, anchor, kernel, dataclasses.replace(CONFIG, chains=1), first_chain=4 + c)
        assert torch.equal(alone[:, 0], together[:, c])
        assert torch.equal(lone_trace.losses[:, 0], trace.losses[:, c])


def test_a_chain_of_the_transformer_is_the_same_to_rounding_alone_and_batched() -> None:
    # To rounding only: see test_transformer.py (the strings of the other chains change the blocking of sums).
    task = make_parentheses(max_length=12, draws=200, layers=2, heads=2, width=8, test_strings=20, seed=1)
    anchor, kernel = task.init([0])[0].double(), SGLD(30.0, 100.0, 1e-3)
    together, _ = run(task, anchor, kernel, CONFIG)
    assert together.dtype == torch.float64
    for c in range(3):
        alone, _ = run(task, anchor, kernel, dataclasses.replace(CONFIG, chains=1), first_chain=c)
        torch.testing.assert_close(alone[:, 0], together[:, c], rtol=0, atol=1e-12)


def test_a_chain_does_not_depend_on_how_many_draws_follow() -> None:
    task = linear_regression(0, 9, 6)[0]
    anchor, kernel = task.init([0])[0], SGLD(30.0, 10.0, 1e-3)
    short, _ = run(task, anchor, kernel, CONFIG)
    long, _ = run(task, anchor, kernel, dataclasses.replace(CONFIG, draws=9))
    assert torch.equal(long[:4], short)
    other, _ = run(task, anchor, kernel, dataclasses.replace(CONFIG, seed=3))
    assert not torch.equal(other, short)


@dataclasses.dataclass
class Poisoned:
    """A bowl whose replica `row` goes wrong after `start` calls: NaN, a jump of the loss, or a NaN slope."""

    inner: Bowl
    row: int
    start: int
    kind: str
    calls: int = 0

    @property
    def base_weights(self) -> Tensor:
        return self.inner.base_weights

    @property
    def draws(self) -> Tensor:
        return self.inner.draws

    def init(self, seeds: Sequence[int]) -> Tensor:
        return self.inner.init(seeds)

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        clean = self.inner.losses(flat, index)
        self.calls += 1
        if self.calls <= self.start:
            return clean
        wrong = {
            "nan": lambda x: x * float("nan"),
            "jump": lambda x: x + 100,
            "slope": lambda x: x + (0 * x).sqrt(),
        }[self.kind]
        rows = list(clean)
        rows[self.row] = wrong(rows[self.row])
        return torch.stack(rows)


@pytest.mark.parametrize(
    ("kind", "start", "steps"),
    [
        ("nan", 0, 200),
        ("nan", 60, 200),
        ("nan", 180, 180 + 1),  # the last step
        ("nan", 60, 75),  # after the last whole window of 50 steps
        ("nan", 10, 20),  # a run shorter than a window
        ("slope", 179, 180),  # the last update, which no loss has seen
        ("jump", 0, 100),
        ("jump", 60, 200),
        ("jump", 20, 75),
        ("jump", 5, 20),
    ],
)
def test_a_diverged_chain_is_named_and_the_others_keep_their_numbers(kind: str, start: int, steps: int) -> None:
    config = ChainConfig(chains=4, draws=1, burn_in=steps - 1, steps_between_draws=1, batch_size=2, seed=3)
    anchor, kernel = bowl().centre, SGLD(30.0, 10.0, 1e-3)
    clean, clean_trace = run(bowl(), anchor, kernel, config, first_chain=10, loss_band=20)
    assert clean_trace.diverged == {}
    draws, trace = run(Poisoned(bowl(), 1, start, kind), anchor, kernel, config, first_chain=10, loss_band=20)
    assert list(trace.diverged) == [1]
    assert trace.diverged[1].startswith("chain 11: ")
    assert ("above its band of 20" if kind == "jump" else "nan") in trace.diverged[1]
    others = [0, 2, 3]
    assert torch.equal(draws[:, others], clean[:, others])
    assert torch.equal(trace.losses[:, others], clean_trace.losses[:, others])


def test_a_single_bad_minibatch_is_not_a_divergence() -> None:
    class Spike(Poisoned):
        def losses(self, flat: Tensor, index: Tensor) -> Tensor:
            losses = super().losses(flat, index)
            self.start = 10**9 if self.calls > self.start else self.start
            return losses

    config = ChainConfig(chains=4, draws=1, burn_in=99, steps_between_draws=1, batch_size=2, seed=3)
    task = Spike(bowl(), 1, 30, "jump")
    _, trace = run(task, bowl().centre, SGLD(30.0, 10.0, 1e-3), config, loss_band=20)
    assert float(trace.losses.max()) > 100
    assert trace.diverged == {}


def test_a_chain_that_climbs_out_of_its_band_by_itself_is_named() -> None:
    # ελ > 4 on the steepest coordinates: the chain is unstable, and in float32 it overflows.
    task = Bowl(curvature=torch.full((3,), 10.0), centre=torch.zeros(3))
    config = ChainConfig(chains=2, draws=2, burn_in=150, steps_between_draws=25, batch_size=2)
    _, trace = run(task, torch.zeros(3), SGLD(30.0, 10.0, 0.1), config, loss_band=1.0)
    assert sorted(trace.diverged) == [0, 1]


def test_minibatches_draw_samples_in_proportion_to_their_weights() -> None:
    q = np.array([0.0, 0.05, 0.3, 0.0, 0.15, 0.5, 0.0])
    cumulative, size, steps = np.cumsum(q), 16, 2000
    counts = np.stack([np.bincount(minibatch(cumulative, 1, 0, step, size), minlength=7) for step in range(steps)])
    assert (counts[:, q == 0] == 0).all()
    error = np.sqrt(size * q * (1 - q) / steps)  # of independent draws: an upper bound
    assert (np.abs(counts.mean(0) - size * q) <= 3.5 * error).all()
    assert (counts.var(0) <= size * q * (1 - q)).all()


def test_stratified_minibatches_have_less_noise_than_independent_ones() -> None:
    values = np.random.default_rng(0).standard_normal(40)
    q = np.full(40, 1 / 40)
    means = [values[minibatch(np.cumsum(q), 1, 0, step, 20)].mean() for step in range(3000)]
    assert np.mean(means) == pytest.approx(values.mean(), abs=4 * np.std(means) / math.sqrt(3000))
    # Twenty slices of two samples each: the variance is the mean variance within a pair, over 20.
    pairs = values.reshape(20, 2)
    assert np.var(means) == pytest.approx(pairs.var(axis=1).mean() / 20, rel=0.1)
    assert np.var(means) < values.var() / 20


def test_minibatches_and_noise_are_functions_of_seed_chain_and_step() -> None:
    cumulative = np.cumsum(np.full(1000, 1e-3))
    base = minibatch(cumulative, 1, 2, 3, 32)
    np.testing.assert_array_equal(base, minibatch(cumulative, 1, 2, 3, 32))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert (minibatch(cumulative, *other, 32) != base).any()
    wide = gaussian(torch.empty(4, 5000), 1, 7, 3)
    assert wide.dtype == torch.float32
    assert torch.equal(wide[2:3], gaussian(torch.empty(1, 5000), 1, 9, 3))
    for other in ((2, 7, 3), (1, 8, 3), (1, 7, 4)):
        assert not torch.equal(gaussian(torch.empty(1, 5000), *other), wide[:1])
    assert kstest(wide.double().numpy().ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(wide.numpy())[np.triu_indices(4, 1)]).max() < 4 / math.sqrt(5000)


@pytest.mark.parametrize("name", ["chains", "draws", "steps_between_draws", "batch_size"])
def test_sizes_that_leave_nothing_to_average_are_refused(name: str) -> None:
    with pytest.raises(PatterningError, match=f"{name} is 0"):
        dataclasses.replace(CONFIG, **{name: 0})
