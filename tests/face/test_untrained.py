"""χ of a model that was never trained is said to be that."""

import torch
from torch import nn

import patterning as pt


def test_a_checkpoint_that_knows_nothing_is_named() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    y = (x[:, 0] > 0).long()

    def loss(model: nn.Module, batch) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    task = pt.Task(nn.Linear(4, 2), loss, (x, y))
    settings = {"sampler": pt.SGLD(60, 60, 1e-3), "estimator": "first-order", "progress": False}
    slope = {"first": lambda model: model.weight[1, 0]}
    fresh = pt.measure(task, slope, at=torch.zeros(10), **settings)
    assert "it seems untrained" in fresh.warnings[0]
    assert "at=" in str(fresh)
    trained = pt.fit(task, None, 0, steps=300, batch_size=30, learning_rate=3e-2)
    assert not any("untrained" in line for line in pt.measure(task, slope, at=trained, **settings).warnings)


def test_weights_print_as_one_line() -> None:
    text = repr(pt.Weights.of_rows([2.0, 1.0, 0.0]))
    assert len(text.splitlines()) == 1
    assert "effective sample size 60 %" in text
