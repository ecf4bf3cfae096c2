import pytest
import torch

from patterning.core.task import Task
from patterning.models import split
from patterning.models.components import Component, find_component
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.models.split import SplitBlock, split_head

CONFIGS = [
    LanguageConfig(11, 7, 2, 4, 8),
    LanguageConfig(11, 7, 2, 2, 8, mlp_ratio=0, positions="shortformer"),
]


def make_task(config: LanguageConfig) -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LanguageModel(config)
        for p in model.parameters():
            p.data = p + 0.3 * torch.randn(p.shape)  # biases and LayerNorms that matter
        tokens = torch.randint(11, (12, 7))
    return Task(model, next_token_losses, tokens)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["l0h1", "l1h0"])
@pytest.mark.parametrize("wide", [1, 64])
def test_a_head_apart_is_the_same_function_with_the_same_gradient(
    config: LanguageConfig, name: str, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "WIDE", wide)  # 1: the MLP reads what the head adds from the head's own numbers
    task = make_task(config)
    anchor = 1.1 * task.flatten(task.module)  # not the module's own values
    free = Restricted(task, anchor, name)
    assert free.module is not task.module
    noise = torch.randn(3, free.num_parameters, generator=torch.Generator().manual_seed(1))
    flat = (free.anchor + 0.2 * noise).requires_grad_()
    index = torch.arange(5).expand(3, -1)
    apart, whole = free.sample_losses(flat, index), task.sample_losses(free.expand(flat), index)
    torch.testing.assert_close(apart, whole, rtol=1e-5, atol=1e-6)
    slopes = [torch.autograd.grad((found**2).sum(), flat)[0] for found in (apart, whole)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5 * float(slopes[1].abs().max()))  # float32 sums
    vector = torch.randn(flat.shape, generator=torch.Generator().manual_seed(2))
    bends = []
    for losses in (lambda at: free.sample_losses(at, index), lambda at: task.sample_losses(free.expand(at), index)):
        (slope,) = torch.autograd.grad(losses(flat).mean(), flat, create_graph=True)
        bends.append(torch.autograd.grad(slope, flat, vector)[0])
    torch.testing.assert_close(*bends, rtol=1e-3, atol=1e-5 * float(bends[1].abs().max()))
    mixed = torch.arange(12).view(3, 4)  # a minibatch for each replica
    torch.testing.assert_close(
        free.sample_losses(flat, mixed), task.sample_losses(free.expand(flat), mixed), rtol=1e-5, atol=1e-6
    )
    probe = Probe(free, torch.arange(5), 3)
    found, tangent = probe.along(flat.detach(), vector)
    _, known = torch.func.jvp(lambda at: task.sample_losses(free.expand(at), index), (flat.detach(),), (vector,))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tangent, known, rtol=1e-4, atol=1e-5 * float(known.abs().max()))
    assert any("others" in constant for constant in probe._constants[0])  # the other heads are kept
    assert any(constant.endswith("read") for constant in probe._constants[0]) == (wide == 1 and config.mlp_ratio > 0)
    torch.testing.assert_close(probe(flat), whole, rtol=1e-5, atol=1e-6)


def test_only_the_head_itself_is_set_apart() -> None:
    task = make_task(CONFIGS[0])
    masks = dict(find_component(task.module, "l0h1").masks)
    mask = masks["blocks.0.attention.qkv.weight"]
    assert mask is not None
    fewer = masks | {"blocks.0.attention.qkv.weight": mask & (torch.arange(len(mask)) < 16)[:, None]}
    own = Restricted(task, task.flatten(task.module), Component("l0h1", fewer))
    others = [Restricted(task, task.flatten(task.module), name) for name in ("l0 attn", "embed", "full")]
    assert not any(isinstance(part, SplitBlock) for free in (own, *others) for part in free.module.modules())
    assert split_head(torch.nn.Linear(2, 2), "l0h1") is None
