"""Slopes against finite differences, and against the first-order χ that the response stage computes."""

import numpy as np
import pytest
import torch

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.response.slopes import component_gradients, loss_slopes

TOKENS = torch.randint(17, (9, 10), generator=torch.Generator().manual_seed(1))


def model() -> LanguageModel:
    torch.manual_seed(0)
    built = LanguageModel(LanguageConfig(17, 10, 2, 2, 8, 0, "shortformer"))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return built.eval()


def test_gradients_and_slopes_are_those_of_the_component() -> None:
    lm = model()
    task = Task(lm, next_token_losses, TOKENS)
    anchor, rows = task.flatten(lm), torch.tensor([0, 2, 3, 7, 8])
    names = ("l0h1", "l1h0", "unembed")
    gradients = component_gradients(task, anchor, names, rows, at_once=2)
    slopes = loss_slopes(lm, TOKENS, gradients)
    assert slopes.shape == (9 * 9, 3)
    for i, name in enumerate(names):
        free = Restricted(task, anchor, name)
        flat = free.anchor[None].clone().requires_grad_()
        (own,) = torch.autograd.grad(free.losses(flat, rows[None]).mean(), flat)
        assert int((gradients[i] != 0).sum()) <= free.num_parameters
        assert gradients[i].norm() == pytest.approx(float(own.norm()), rel=1e-4)
        expected = Probe(free, torch.arange(9)).along(free.anchor[None], own)[1][0]
        torch.testing.assert_close(slopes[:, i], expected.detach(), atol=1e-5, rtol=1e-3)
        # along its own gradient the mean loss of the rows rises by |g|²
        mean = slopes[:, i].view(9, 9)[rows].mean()
        assert float(mean) == pytest.approx(float(own.norm() ** 2), rel=1e-3)


def test_slopes_are_finite_differences() -> None:
    lm = model().double()
    direction = torch.randn(
        1, sum(p.numel() for p in lm.parameters()), generator=torch.Generator().manual_seed(2)
    ).double()
    found = loss_slopes(lm, TOKENS, direction)[:, 0]
    before = torch.nn.utils.parameters_to_vector(lm.parameters()).detach()
    ends = []
    for sign in (1, -1):
        torch.nn.utils.vector_to_parameters(before + sign * 1e-5 * direction[0], lm.parameters())
        ends.append(next_token_losses(lm, TOKENS).detach().flatten())
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-6)


def test_bad_input_is_named() -> None:
    lm = model()
    task = Task(lm, next_token_losses, TOKENS)
    with pytest.raises(PatterningError, match="not \\(k,"):
        loss_slopes(lm, TOKENS, torch.zeros(2, 5))
    with pytest.raises(PatterningError, match="at least one row"):
        component_gradients(task, task.flatten(lm), ["l0h0"], torch.tensor([], dtype=torch.long))
