"""Initial values of the language model."""

import dataclasses

import pytest
import torch

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses

CONFIG = LanguageConfig(
    50, 16, 2, 2, 64, mlp_ratio=0, positions="shortformer", init_std=0.1, position_init="sinusoidal", position_scale=3.0
)


def test_initial_sizes_are_those_asked_for() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LanguageModel(CONFIG)
    for part, std in (
        (model.embed, 0.1), (model.unembed, 0.1), (model.layers()[1].attention.qkv, 0.1),
        (model.layers()[1].attention.out, 0.05),  # divided by the root of what is added to the stream: 2 · 2 layers
    ):  # fmt: skip
        assert part.weight.detach().std().item() == pytest.approx(std, rel=0.05)
    plain = LanguageModel(dataclasses.replace(CONFIG, init_std=0.02, position_init="normal"))
    assert plain.positions.weight.detach().std().item() == pytest.approx(0.02, rel=0.1)


def test_waves_are_of_one_amplitude_and_tell_positions_apart() -> None:
    waves = LanguageModel(CONFIG).positions.weight.detach()
    assert torch.equal(waves[0], torch.tensor([0.0, 3.0]).repeat(32))
    pairs = waves.unflatten(1, (32, 2))
    torch.testing.assert_close(pairs.norm(dim=2), torch.full((16, 32), 3.0))
    shifts = waves @ waves.T  # a function of the distance alone, largest at 0
    for distance in range(1, 16):
        diagonal = shifts.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-3)
        assert float(diagonal[0]) < 0.9 * float(shifts[0, 0])
    task = Task(LanguageModel(CONFIG), next_token_losses, torch.zeros(2, 16, dtype=torch.long))
    fresh = task.load(LanguageModel(CONFIG), task.init([4])[0])
    assert torch.equal(fresh.get_parameter("positions.weight"), waves)


def test_an_odd_width_has_no_waves() -> None:
    with pytest.raises(PatterningError, match="width 15 is odd"):
        LanguageConfig(50, 16, 1, 3, 15, position_init="sinusoidal")
