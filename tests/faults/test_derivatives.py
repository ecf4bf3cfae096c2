"""Derivatives that a loss has, lacks or gives wrongly: found before anything is sampled, and named."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.posterior.sgld import SGLD
from tests.faults.common import (
    CE,
    PAIRED,
    TOKENS,
    X,
    Y,
    chi,
    classify,
    seeded,
)


class NoCast(nn.Linear):
    """A module that refuses any conversion, as one loaded from a quantised file does."""

    def float(self):
        raise ValueError("`.float()` is not supported for quantised models")


def test_a_float32_module_is_not_cast() -> None:
    assert Task(NoCast(6, 3), classify, (X, Y)).num_parameters == 21
    with pytest.raises(PatterningError, match="cannot be copied or converted to float32"):
        Task(NoCast(6, 3).to(torch.float64), classify, (X, Y))


class NoForward(torch.autograd.Function):
    """Doubles; without a forward derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return 2 * grad


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(checkpoint(lambda y: torch.tanh(self.a(y)), x, use_reentrant=False))


def absolute(model, batch) -> Tensor:
    return (model(batch[0])[:, 0] - batch[1]).abs()


@pytest.mark.parametrize(
    ("module", "loss", "data"),
    [
        (nn.Linear(6, 3), lambda model, batch: CE(NoForward.apply(model(batch[0])), batch[1]), (X, Y)),
        (nn.Linear(6, 1), absolute, (X, torch.randn(128, generator=torch.Generator().manual_seed(1)))),
        (nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), classify, (X, Y)),
        (nn.Sequential(nn.EmbeddingBag(9, 6), nn.Linear(6, 3)), classify, (TOKENS, Y[:64])),
    ],
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_auto_falls_back_where_derivatives_are_missing(module, loss, data) -> None:
    """χ comes out, by pathwise where it can serve, else by covariance with a note that says why."""
    task, kernel = Task(seeded(module), loss, data), SGLD(3000, 100, 5e-5)
    found = chi(task, kernel=kernel, chains=PAIRED, estimator="auto").by_component["full"]
    assert np.isfinite(found.susceptibility.chi).all()
    if found.estimator == "covariance":
        assert "not pathwise" in found.note
        with pytest.raises(PatterningError, match="pathwise estimator cannot serve"):
            chi(task, kernel=kernel, chains=PAIRED, estimator="pathwise")
    if loss is absolute or "NoForward" in loss.__code__.co_names:
        assert found.estimator == "covariance"


class WrongBackward(torch.autograd.Function):
    """Doubles, and says that it triples."""

    generate_vmap_rule = True
    forward = staticmethod(NoForward.forward)
    setup_context = staticmethod(NoForward.setup_context)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return 3 * grad


def test_gradients_that_are_not_those_of_the_loss_are_refused() -> None:
    with pytest.raises(PatterningError, match="not that of its values"):
        Task(seeded(Checkpointed()), classify, (X, Y))
    net = seeded(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)))
    with pytest.raises(PatterningError, match=r"depends on parameter 0\.weight, but its gradient does not reach it"):
        Task(net, lambda model, b: CE(model[1](model[0](b[0]).detach()), b[1]), (X, Y))
    with pytest.raises(PatterningError, match="not that of its values"):
        Task(nn.Linear(6, 3), lambda model, b: CE(WrongBackward.apply(model(b[0])), b[1]), (X, Y))


def test_losses_without_a_gradient_are_refused() -> None:
    net = seeded(nn.Linear(6, 3))
    for loss in (
        lambda model, batch: CE(model(batch[0]).detach(), batch[1]),
        lambda model, batch: CE(batch[0][:, :3], batch[1]),
        lambda model, batch: CE(model(batch[0]).argmax(1)[:, None].float().expand(-1, 3), batch[1]),
    ):
        with pytest.raises(PatterningError, match="does not depend on the module's parameters"):
            Task(net, loss, (X, Y))
    with pytest.raises(PatterningError, match="must call the one that it is given"):
        Task(net, lambda _model, batch: CE(net(batch[0]), batch[1]), (X, Y))
