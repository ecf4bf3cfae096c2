"""What a fourteenth round of trying found: gradient hooks of parameters."""

import warnings

import pytest
import torch
from torch import nn

import patterning as pt

from .common import squares


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_gradient_hooks_of_a_parameter_are_said_to_be_left_out(kind: str) -> None:
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    net = nn.Linear(3, 1)
    handle = getattr(net.weight, kind)(lambda gradient: None)
    with pytest.warns(pt.PatterningWarning, match=r"hooks of weight are not followed.*pt.Component with a mask"):
        pt.Task(net, squares, (x, x[:, 0]))
    handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pt.Task(net, squares, (x, x[:, 0]))
