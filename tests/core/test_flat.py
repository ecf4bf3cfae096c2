"""`evaluate` against the losses themselves, whatever the chunk."""

import numpy as np
import pytest
import torch
from zoo.quadratic import linear_regression

from patterning.core.flat import evaluate


@pytest.mark.parametrize("chunk", [1, 4, 10, 512])
def test_evaluate_gives_every_sample_of_every_replica(chunk: int) -> None:
    task, x, y = linear_regression(0, 10, 3)
    w = np.random.default_rng(1).standard_normal((4, 3))
    found = evaluate(task.losses, torch.from_numpy(w), 10, chunk)
    assert not found.requires_grad
    np.testing.assert_allclose(found.numpy(), (w @ x.T - y) ** 2 / 2, atol=1e-12)
