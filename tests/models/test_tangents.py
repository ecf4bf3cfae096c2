"""Fused forward derivatives: PyTorch's own, to rounding, in turns and under vmap."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from patterning.models.language import LanguageConfig, LanguageModel
from patterning.models.tangents import fused_tangents

with torch.random.fork_rng():
    torch.manual_seed(0)
    MODEL = LanguageModel(LanguageConfig(vocabulary=7, context=6, layers=2, heads=2, width=8, init_std=0.3)).double()
TOKENS = torch.randint(7, (5, 6), generator=torch.Generator().manual_seed(0))
VALUES = {name: p.detach() for name, p in MODEL.named_parameters()}


def along(function, at: Tensor, tangent: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        return jvp(function, (at,), (tangent,))[1]


@pytest.mark.parametrize(
    "moving", ["embed.weight", "blocks.0.ln1.weight", "blocks.0.mlp.read.weight", "blocks.1.attention.qkv.bias"]
)
@pytest.mark.parametrize("batched", [False, True])
def test_fused_tangents_are_a_central_difference(moving, batched) -> None:
    """Whatever moves: what comes before a layer, or its own weights, for which the swap must stand back."""
    rng = torch.Generator().manual_seed(1)
    at = VALUES[moving] + 0.1 * torch.randn(3, *VALUES[moving].shape, generator=rng, dtype=torch.float64)
    tangent = torch.randn(at.shape, generator=rng, dtype=torch.float64)

    def one(value: Tensor) -> Tensor:
        return functional_call(MODEL, {**VALUES, moving: value}, (TOKENS,))

    def every(values: Tensor) -> Tensor:
        return vmap(one)(values) if batched else torch.stack([one(value) for value in values])

    with fused_tangents():
        found = along(every, at, tangent)
    expected = (every(at + 1e-5 * tangent) - every(at - 1e-5 * tangent)) / 2e-5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # the difference has its own error
    torch.testing.assert_close(found, along(every, at, tangent), rtol=1e-10, atol=1e-12)


def test_fused_tangents_are_cheaper_where_weights_stand_still() -> None:
    """The product with a weight's zero tangent is gone: as many products as layers, twice."""
    layer, x = nn.Linear(4, 3).requires_grad_(False), torch.randn(2, 4)

    def products(*contexts) -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as seen:
            if contexts:
                with contexts[0]:
                    along(layer, x, x)
            else:
                along(layer, x, x)
        return sum(event.count for event in seen.key_averages() if event.key in {"aten::mm", "aten::addmm"})

    assert products(fused_tangents()) < products()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.softmax(x, dim=0),
        lambda x: x.softmax(-1),
        lambda x: torch.softmax(x, 1),
        lambda x: F.softmax(x, -1, dtype=torch.float64),  # another type: left to PyTorch
        lambda x: F.layer_norm(x, (3, 4)),
        lambda x: F.layer_norm(x, (4,), weight=torch.arange(4.0, dtype=torch.float64)),
        lambda x: F.linear(x, torch.ones(2, 4, dtype=torch.float64)),
    ],
)
def test_each_function_in_each_form(function) -> None:
    x, t = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    with fused_tangents():
        found, value = along(function, x, t), function(x)
    torch.testing.assert_close(value, function(x), rtol=0, atol=0)
    torch.testing.assert_close(found, along(function, x, t), rtol=1e-10, atol=1e-12)


def test_autocast_is_left_to_pytorch() -> None:
    layer, x, t = nn.Linear(4, 3).requires_grad_(False), torch.randn(2, 4), torch.randn(2, 4)

    def half(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return F.layer_norm(layer(x), (3,)).softmax(-1)

    with fused_tangents():
        found = along(half, x, t)
    assert torch.equal(found, along(half, x, t))
