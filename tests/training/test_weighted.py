"""Weighted training: exact bits where they are promised, and known minimisers."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor
from zoo.quadratic import QuadraticTask, linear_regression

from patterning.core.errors import PatterningError
from patterning.models.transformer import unflatten
from patterning.tasks.parentheses import Parentheses, Strings, make_parentheses
from patterning.training.weighted import (
    TrainConfig,
    TrainState,
    advance,
    epoch_minibatches,
    init_state,
    normalise_weights,
    uniform_weights,
)

CONFIG = TrainConfig(steps=10, batch_size=16)
# Softmax ignores key biases: their gradient is rounding noise (1e-21), and Adam with coupled L2 multiplies what they
# hold by up to lr · wd / 1e-8 = 100 each step until it is of the size of lr. Runs that differ in the last bit therefore
# agree in every parameter only without weight decay, and with it in all but these.
NO_DECAY = TrainConfig(steps=10, batch_size=16, weight_decay=0)


@pytest.fixture(scope="module")
def task() -> Parentheses:
    return make_parentheses(max_length=16, draws=200, layers=2, heads=2, width=16, test_strings=20, seed=1)


@pytest.fixture(scope="module")
def regression() -> QuadraticTask:
    return linear_regression(0, 12, 3)[0]


def random_weights(count: int, seed: int = 0, rows: int | None = None) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(0.1, 3, size=count if rows is None else (rows, count)))


def double(state: TrainState) -> TrainState:
    return TrainState(
        state.step, *(getattr(state, name).double() for name in ("flat", "first_moment", "second_moment"))
    )


def rows(state: TrainState, keep: slice) -> TrainState:
    return TrainState(state.step, *(getattr(state, name)[keep] for name in ("flat", "first_moment", "second_moment")))


def assert_same_bits(a: TrainState, b: TrainState) -> None:
    assert a.step == b.step
    for name in ("flat", "first_moment", "second_moment"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def without_key_biases(task: Parentheses, flat: Tensor) -> Tensor:
    parts = unflatten(task.model, flat)
    width = task.model.width
    kept = [
        torch.cat([part[:, :width], part[:, 2 * width :]], dim=1) if name.endswith("qkv.bias") else part
        for name, part in parts.items()
    ]
    return torch.cat([part.reshape(len(flat), -1) for part in kept], dim=1)


def test_pausing_at_any_step_gives_the_same_bits(task: Parentheses) -> None:
    # 200 draws in batches of 16 are epochs of 12 steps: the run crosses an epoch.
    seeds, rho, until = [5, 6], random_weights(len(task.train)), 14
    start = init_state(task, seeds)
    whole = advance(task, CONFIG, start, seeds, rho, until)
    assert whole.step == until
    for pause in (1, 11, 12, 13, 14):
        paused = advance(task, CONFIG, start, seeds, rho, pause)
        assert paused.step == pause
        assert_same_bits(advance(task, CONFIG, paused, seeds, rho, until), whole)
    one_by_one = start
    for step in range(1, until + 1):
        one_by_one = advance(task, CONFIG, one_by_one, seeds, rho, step)
    assert_same_bits(one_by_one, whole)


def test_advancing_leaves_the_given_state_alone(task: Parentheses) -> None:
    start = init_state(task, [5])
    copy = TrainState(0, start.flat.clone(), start.first_moment.clone(), start.second_moment.clone())
    assert not torch.equal(advance(task, CONFIG, start, [5], uniform_weights(task), 3).flat, start.flat)
    assert_same_bits(start, copy)
    assert_same_bits(advance(task, CONFIG, start, [5], uniform_weights(task), 0), start)


@pytest.mark.parametrize("decay", [0.0, 1e-3, 0.1])
def test_weights_of_one_are_unweighted_training_by_a_hand_written_adam(task: Parentheses, decay: float) -> None:
    config = dataclasses.replace(CONFIG, weight_decay=decay)
    state = advance(task, config, double(init_state(task, [7])), [7], uniform_weights(task), 10)
    w = task.init([7]).double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    minibatch = epoch_minibatches(task, 7, config.batch_size)
    for t in range(1, 11):
        leaf = w.clone().requires_grad_()
        loss = task.losses(leaf, minibatch(t - 1)[None]).mean()
        (g,) = torch.autograd.grad(loss, leaf)
        g = g + decay * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - config.learning_rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    found, wanted = without_key_biases(task, state.flat), without_key_biases(task, w)
    assert found.shape[1] == task.num_parameters - 2 * 16
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
    if decay == 0:
        torch.testing.assert_close(state.flat, w, rtol=0, atol=1e-11)


def test_full_batches_find_the_weighted_least_squares_solution(regression: QuadraticTask) -> None:
    _, x, y = linear_regression(0, 12, 3)
    q, rho = regression.base_weights.numpy(), random_weights(12, rows=2).numpy()
    config = TrainConfig(steps=1500, batch_size=len(regression.draws), learning_rate=0.01, weight_decay=0)
    found = advance(regression, config, double(init_state(regression, [0, 1])), [0, 1], torch.from_numpy(rho), 1500)
    for r in range(2):
        weight = q * rho[r]
        wanted = np.linalg.solve(x.T @ (weight[:, None] * x), x.T @ (weight * y))
        np.testing.assert_allclose(found.flat[r].numpy(), wanted, atol=1e-5)
    unweighted = np.linalg.solve(x.T @ (q[:, None] * x), x.T @ (q * y))
    assert np.abs(found.flat[0].numpy() - unweighted).max() > 1e-2  # ρ mattered


class Relabelled(Parentheses):
    """The same strings with every third label turned round."""

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        turned = np.arange(len(self.train)) % 3 == 0
        return self.losses_on(Strings(self.train.steps, self.train.labels ^ turned))(flat, index)


def test_a_run_settles_as_its_learning_rate_falls(regression: QuadraticTask) -> None:
    config = TrainConfig(steps=200, batch_size=12, learning_rate=0.1, settle=0.25)
    assert [config.rate(step) for step in (0, 150)] == [0.1, 0.1]
    assert config.rate(175) == pytest.approx(0.1 * (1 - 0.98 / 2))
    assert config.rate(200) == pytest.approx(0.002)
    plain = dataclasses.replace(config, settle=0)
    state, rho = init_state(regression, [3]), uniform_weights(regression)
    before = [advance(regression, own, state, [3], rho, 150) for own in (config, plain)]
    assert_same_bits(*before)
    rest, moving = (advance(regression, own, before[0], [3], rho, 160) for own in (config, plain))
    assert not torch.equal(rest.flat, moving.flat)
    paused = advance(regression, config, advance(regression, config, state, [3], rho, 155), [3], rho, 160)
    assert_same_bits(paused, rest)
    with pytest.raises(PatterningError, match="it is a share of the steps"):
        TrainConfig(10, settle=1.5)


def test_samples_of_weight_zero_leave_no_trace(task: Parentheses) -> None:
    relabelled = Relabelled(**{field.name: getattr(task, field.name) for field in dataclasses.fields(task)})
    rho = random_weights(len(task.train))
    start = init_state(task, [3])
    assert not torch.equal(
        advance(task, CONFIG, start, [3], rho, 10).flat, advance(relabelled, CONFIG, start, [3], rho, 10).flat
    )
    rho[::3] = 0
    assert_same_bits(advance(task, CONFIG, start, [3], rho, 10), advance(relabelled, CONFIG, start, [3], rho, 10))


@pytest.mark.parametrize("scale", [1e-6, 7.3, 1e9])
def test_only_ratios_of_the_weights_matter(task: Parentheses, scale: float) -> None:
    rho, start = random_weights(len(task.train)), double(init_state(task, [3, 4]))
    a = advance(task, NO_DECAY, start, [3, 4], rho, 10)
    b = advance(task, NO_DECAY, start, [3, 4], rho * scale, 10)
    torch.testing.assert_close(a.flat, b.flat, rtol=0, atol=1e-11)


def test_a_replica_alone_and_batched_with_other_weights_and_starts_is_the_same_bits(task: Parentheses) -> None:
    # Three arms of one seed: the same minibatches, other weights and other initial parameters.
    seeds, rho = [9, 9, 9], random_weights(len(task.train), rows=3)
    for start in (init_state(task, [1, 2, 3]), double(init_state(task, [1, 2, 3]))):
        together = advance(task, CONFIG, start, seeds, rho, 10)
        for r in range(3):
            keep = slice(r, r + 1)
            alone = advance(task, CONFIG, rows(start, keep), seeds[keep], rho[keep], 10)
            assert_same_bits(alone, rows(together, keep))


def test_a_replica_alone_and_batched_with_other_seeds_agrees_to_rounding(task: Parentheses) -> None:
    # Not bit for bit: see test_transformer.py (the strings of the other seeds change the blocking of sums).
    seeds, rho = [1, 2, 3], random_weights(len(task.train), rows=3)
    start = double(init_state(task, seeds))
    together = advance(task, NO_DECAY, start, seeds, rho, 10)
    for r in range(3):
        keep = slice(r, r + 1)
        alone = advance(task, NO_DECAY, rows(start, keep), seeds[keep], rho[keep], 10)
        torch.testing.assert_close(alone.flat, together.flat[keep], rtol=0, atol=1e-10)


def test_on_step_sees_the_weighted_minibatch_losses(regression: QuadraticTask) -> None:
    seen: dict[int, Tensor] = {}
    rho = random_weights(12)
    start = double(init_state(regression, [2, 3]))
    config = TrainConfig(steps=2, batch_size=8)
    advance(regression, config, start, [2, 3], rho, 2, seen.__setitem__)
    assert sorted(seen) == [1, 2]
    mean_one = rho / (rho * regression.base_weights).sum()
    for r, seed in enumerate((2, 3)):
        index = epoch_minibatches(regression, seed, 8)(0)
        losses = regression.losses(start.flat[r : r + 1], index[None])[0]
        assert float(seen[1][r]) == pytest.approx(float((mean_one[index] * losses).mean()), abs=1e-12)


def test_an_epoch_visits_every_draw_once(regression: QuadraticTask) -> None:
    count = len(regression.draws)
    divisor = next(b for b in range(2, count + 1) if count % b == 0)
    minibatch = epoch_minibatches(regression, 4, divisor)
    per_epoch = count // divisor
    wanted = Counter(regression.draws.tolist())
    epochs = [torch.cat([minibatch(e * per_epoch + i) for i in range(per_epoch)]).tolist() for e in range(3)]
    for epoch in epochs:
        assert Counter(epoch) == wanted
    assert epochs[0] != epochs[1] != epochs[2]
    assert minibatch(1).tolist() == epochs[0][divisor : 2 * divisor]  # going back in time is the same
    assert epoch_minibatches(regression, 5, divisor)(0).tolist() != minibatch(0).tolist()


def test_an_incomplete_last_batch_is_dropped(regression: QuadraticTask) -> None:
    count = len(regression.draws)
    size = count // 2 + 1
    minibatch = epoch_minibatches(regression, 4, size)
    assert [len(minibatch(step)) for step in range(3)] == [size] * 3
    whole = epoch_minibatches(regression, 4, count)
    assert torch.equal(minibatch(2), whole(2)[:size])  # step 2 is epoch 2


def test_minibatches_depend_on_the_seed_and_not_on_the_weights(task: Parentheses) -> None:
    indices: list[Tensor] = []

    class Watching(Parentheses):
        def losses(self, flat: Tensor, index: Tensor) -> Tensor:
            indices.append(index)
            return super().losses(flat, index)

    watched = Watching(**{field.name: getattr(task, field.name) for field in dataclasses.fields(task)})
    for rho in (uniform_weights(task), random_weights(len(task.train))):
        advance(watched, CONFIG, init_state(task, [8]), [8], rho, 3)
    assert all(torch.equal(a, b) for a, b in zip(indices[:3], indices[3:], strict=True))


def test_normalised_weights_have_mean_one_under_q(regression: QuadraticTask) -> None:
    q = regression.base_weights
    scaled = normalise_weights(random_weights(12, rows=4), q)
    torch.testing.assert_close((scaled * q).sum(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rho: torch.cat([rho, rho[:1]]), "there are 13 weights for 12 samples"),
        (lambda rho: rho.index_fill(0, torch.tensor([3, 4]), float("nan")), "2 of 12 weights are NaN or infinite"),
        (lambda rho: rho.index_fill(0, torch.tensor([3]), float("inf")), "1 of 12 weights are NaN or infinite"),
        (lambda rho: rho * 0, "all zero"),
        (lambda rho: -rho, "are negative"),
        (lambda rho: torch.stack([rho, rho * 0]), "all zero"),
    ],
)
def test_weights_that_cannot_weight_a_loss_are_refused(regression: QuadraticTask, change, message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        advance(regression, CONFIG, init_state(regression, [0, 1]), [0, 1], change(random_weights(12)), 1)


def test_a_batch_larger_than_the_data_is_refused(regression: QuadraticTask) -> None:
    count = len(regression.draws)
    with pytest.raises(PatterningError, match=f"batch_size {count + 1} is larger than the {count}"):
        epoch_minibatches(regression, 0, count + 1)
