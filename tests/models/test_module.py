"""`ModuleTask` against direct calls of the module."""

import copy
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.core.flat import FlatTask, evaluate
from patterning.core.supervised import ModuleTask
from patterning.posterior.calibrate import top_curvature
from patterning.training.weighted import TrainConfig, advance, init_state, uniform_weights

CROSS_ENTROPY = partial(nn.functional.cross_entropy, reduction="none")


def data(*shape: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randint(classes, shape[:1], generator=generator)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))


class Attention(nn.Module):
    """PyTorch's own attention, whose fused inference paths have no rule for vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(x)[:, -1])


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.write = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.write.weight = self.read.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.write(torch.tanh(self.read(x)))


class Bare(nn.Module):
    """A parameter that no `reset_parameters` sets."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(5, 3), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.scale


class Convolutional(nn.Sequential):
    """Buffers (running statistics) that are not at their initial values."""

    def __init__(self) -> None:
        super().__init__(nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
        self.train()(torch.randn(32, 6, 8, generator=torch.Generator().manual_seed(1)) + 2)


CASES = {"mlp": (mlp, (20, 5)), "attention": (Attention, (20, 4, 8)), "tied": (Tied, (20, 6)),
         "buffers": (Convolutional, (20, 6, 8))}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_losses_of_every_replica_are_those_of_the_module_called_directly(case):
    build, shape = CASES[case]
    module = build()
    x, y = data(*shape)
    task: FlatTask = ModuleTask(module, CROSS_ENTROPY, x, y)
    flat = task.init([0, 1, 2])
    index = torch.tensor([[0, 1, 2, 3], [19, 3, 3, 7], [5, 4, 3, 2]])

    rows = flat.clone().requires_grad_()
    losses = task.losses(rows, index)
    (gradient,) = torch.autograd.grad(losses.sum(), rows)

    assert losses.shape == (3, 4)
    assert gradient.shape == flat.shape
    for r in range(3):
        task.load(module.eval(), flat[r])
        direct = CROSS_ENTROPY(module(x[index[r]]), y[index[r]])
        torch.testing.assert_close(losses[r], direct)
        torch.testing.assert_close(task.losses(flat[r : r + 1], index[r : r + 1])[0], direct)  # alone as in a batch
        module.zero_grad()
        direct.sum().backward()
        by_hand = torch.cat([p.grad.flatten() for p in module.parameters()])
        torch.testing.assert_close(gradient[r], by_hand, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(evaluate(task.losses, flat, 20, chunk=7)[1], losses.new_tensor(
        [float(task.losses(flat[1:2], torch.tensor([[j]]))) for j in range(20)]))  # fmt: skip


def test_curvature_runs_through_attention():
    """Two derivatives through vmap: what calibration needs."""
    task = ModuleTask(Attention(), CROSS_ENTROPY, *data(20, 4, 8))
    assert top_curvature(task, task.init([0])[0], samples=16) > 0


def test_probe_losses_and_images_with_a_loss_for_each_position():
    x = torch.randint(5, (10, 4), generator=torch.Generator().manual_seed(0))
    module = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 5))
    task = ModuleTask(module, lambda out, y: CROSS_ENTROPY(out.transpose(1, 2), y).mean(1), x, x)
    probe = task.losses_on(x[:3].flip(1), x[:3])
    row = task.init([4])
    task.load(module, row[0])
    direct = CROSS_ENTROPY(module(x[:3].flip(1)).transpose(1, 2), x[:3]).mean(1)
    torch.testing.assert_close(evaluate(probe, row, 3)[0], direct.detach())


def test_checkpoint_round_trip_and_the_task_keeps_its_own_copy():
    module = mlp().double()
    task = ModuleTask(module, CROSS_ENTROPY, *data(20, 5))
    row = task.flatten(module)
    other = task.load(mlp(), row)
    assert row.dtype == torch.float32
    assert row.shape == (task.num_parameters,) == (5 * 8 + 8 + 8 * 3 + 3,)
    assert torch.equal(task.flatten(other), row)
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.float(), b)
    before = task.losses(row[None], torch.arange(20)[None])
    task.load(module, torch.zeros_like(row))
    assert torch.equal(task.losses(row[None], torch.arange(20)[None]), before)
    assert module.training  # the user's module is not put in evaluation mode


def test_init_is_a_function_of_the_seed_and_leaves_every_random_state_alone():
    task = ModuleTask(mlp(), CROSS_ENTROPY, *data(20, 5))
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    rows = task.init([7, 8, 7])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    torch.manual_seed(123)
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(task.init([8])[0], rows[1])
    assert not torch.equal(rows[0], rows[1])
    first = rows[:, :40]  # the weights of Linear(5, 8) are uniform within ± 1/√5
    assert 0.4 < float(first.abs().max()) <= 5**-0.5


def test_a_parents_reset_parameters_wins_over_its_childrens():
    class Zeroed(nn.Sequential):
        def reset_parameters(self) -> None:
            nn.init.zeros_(self[0].weight)

    task = ModuleTask(Zeroed(nn.Linear(5, 3)), CROSS_ENTROPY, *data(20, 5))
    row = task.init([0])[0]
    assert bool((row[:15] == 0).all())
    assert bool((row[15:] != 0).all())


def test_frozen_parameters_are_clamped():
    module = mlp()
    module[0].requires_grad_(False)
    task = ModuleTask(module, CROSS_ENTROPY, *data(20, 5))
    assert task.num_parameters == 8 * 3 + 3
    other = task.load(copy.deepcopy(module), task.init([3])[0])
    assert torch.equal(other[0].weight, module[0].weight)
    assert not torch.equal(other[3].weight, module[3].weight)


def test_it_trains():
    x, _ = data(64, 5)
    y = (x[:, 0] > 0).long()
    task = ModuleTask(mlp(), CROSS_ENTROPY, x, y)
    config = TrainConfig(steps=150, batch_size=32, learning_rate=1e-2)
    end = advance(task, config, init_state(task, [0, 1]), [0, 1], uniform_weights(task), 150)
    assert bool((evaluate(task.losses, end.flat, 64).mean(1) < 0.2).all())


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        (None, [1, 1, 1, 1]),
        ([1.0, 3.0, 0.0, 2.0], [1, 3, 0, 2]),
        ([0.1, 0.3, 0.0, 0.2], [1, 3, 0, 2]),
    ],
)
def test_draws_hold_each_sample_as_often_as_its_base_weight_says(weights, counts):
    given = None if weights is None else torch.tensor(weights)
    task = ModuleTask(mlp(), CROSS_ENTROPY, *data(4, 5), given)
    assert task.draws.bincount(minlength=4).tolist() == counts
    torch.testing.assert_close(task.base_weights, torch.tensor(counts).double() / sum(counts), rtol=1e-6, atol=0)


def test_draws_of_uneven_weights_are_close_to_them():
    given = torch.rand(50, generator=torch.Generator().manual_seed(0)) + 0.1
    task = ModuleTask(mlp(), CROSS_ENTROPY, *data(50, 5), given)
    counts = task.draws.bincount(minlength=50)
    assert float((counts - len(task.draws) * task.base_weights).abs().max()) <= 1


X, Y = data(20, 5)
HOLED = X.index_fill(0, torch.tensor([6]), float("nan"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ModuleTask(mlp(), CROSS_ENTROPY, X, Y[:19]), r"inputs \(20, 5\) and targets \(19,\)"),
        (lambda: ModuleTask(mlp(), CROSS_ENTROPY, X[:0], Y[:0]), r"n > 0 samples"),
        (lambda: ModuleTask(mlp(), nn.functional.cross_entropy, X, Y), r"gave shape \(\) for 4 rows"),
        (lambda: ModuleTask(mlp(), lambda o, y: nn.functional.one_hot(y, 3) - o, X, Y), "gave 3 losses for a sample"),
        (lambda: ModuleTask(mlp(), CROSS_ENTROPY, HOLED, Y), "loss of row 6 is NaN"),
        (lambda: ModuleTask(mlp(), CROSS_ENTROPY, X[:, :4], Y), "cannot run on the data"),
        (
            lambda: ModuleTask(mlp(), lambda _o, _y: 1.0, X, Y),
            "the loss returned float",
        ),
        (lambda: ModuleTask(nn.ReLU(), CROSS_ENTROPY, X, Y), "no parameter of the module requires a gradient"),
        (lambda: ModuleTask(mlp(), CROSS_ENTROPY, X, Y, torch.ones(19)), "must be 20 numbers"),
        (
            lambda: ModuleTask(mlp(), CROSS_ENTROPY, X, Y, -torch.ones(20)),
            "must be finite numbers >= 0, one for each of the 20 rows: row 0 has -1",
        ),
        (lambda: ModuleTask(mlp(), CROSS_ENTROPY, X, Y, torch.zeros(20)), "are all 0"),
        (lambda: ModuleTask(Bare(), CROSS_ENTROPY, X, Y).init([0]), r"scale: no reset_parameters\(\) sets"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(build, message):
    with pytest.raises(PatterningError, match=message):
        build()


def test_wrong_rows_and_sample_numbers_are_refused():
    task = ModuleTask(mlp(), CROSS_ENTROPY, X, Y)
    row = task.init([0])[0]
    for flat, index in [(row, torch.arange(3)), (row[None, 1:], torch.arange(3)[None]), (row[None], torch.arange(3))]:
        with pytest.raises(PatterningError, match=r"are not \(r, 75\) and \(r, b\)"):
            task.losses(flat, index)
    with pytest.raises(PatterningError, match=r"must be \(75,\)"):
        task.load(mlp(), row[1:])
    with pytest.raises(PatterningError, match=r"0\.weight is \(7, 5\) where this task's module has \(8, 5\)"):
        task.flatten(nn.Sequential(nn.Linear(5, 7)))
    with pytest.raises(PatterningError, match=r"0\.weight is missing"):
        task.load(nn.Linear(5, 8), row)


def test_without_reset_parameters_everything_but_init_works():
    module = Bare()
    task = ModuleTask(module, CROSS_ENTROPY, X, Y)
    expected = CROSS_ENTROPY(module(X), Y).detach()
    torch.testing.assert_close(evaluate(task.losses, task.flatten(module)[None], 20)[0], expected)


def test_a_diverged_replica_passes_its_nan_on_and_spares_the_others():
    task = ModuleTask(mlp(), CROSS_ENTROPY, X, Y)
    flat = task.init([0, 1])
    alone = task.losses(flat[1:], torch.arange(20)[None])
    flat[0] = torch.nan
    both = task.losses(flat, torch.arange(20).expand(2, -1))
    assert bool(both[0].isnan().all())
    torch.testing.assert_close(both[1:], alone)
