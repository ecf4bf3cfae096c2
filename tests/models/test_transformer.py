"""The packed transformer against a plain one written here: one sequence, one replica, no batching, no masks."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from patterning.models.transformer import (
    TransformerConfig,
    answer_logits,
    count_parameters,
    init_parameters,
    parameter_shapes,
    unflatten,
)

START, PAD, END = 0, 1, 2


def normalise(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    mean = x.sum(-1, keepdim=True) / x.shape[-1]
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / x.shape[-1]
    return (x - mean) / (variance + 1e-5) ** 0.5 * scale + shift


def plain_logits(config: TransformerConfig, row: Tensor, sequence: list[int]) -> Tensor:
    """Five logits at the end of one unpadded sequence; parameters are cut from the row in the documented order."""
    d, h, place = config.width, config.heads, 0

    def cut(*shape: int) -> Tensor:
        nonlocal place
        place += math.prod(shape)
        return row[place - math.prod(shape) : place].reshape(shape)

    embed, positions = cut(5, d), cut(config.context, d)
    x = torch.stack([embed[token] + positions[t] for t, token in enumerate(sequence)])
    for _ in range(config.layers):
        scale, shift, qkv, qkv_bias = cut(d), cut(d), cut(d, 3 * d), cut(3 * d)
        out, out_bias = cut(d, d), cut(d)
        scale2, shift2, up, up_bias, down, down_bias = cut(d), cut(d), cut(d, 4 * d), cut(4 * d), cut(4 * d, d), cut(d)
        y = normalise(x, scale, shift) @ qkv + qkv_bias
        heads = []
        for head in range(h):
            size = d // h
            q, k, v = (y[:, part * d + head * size : part * d + (head + 1) * size] for part in range(3))
            seen = []
            for t in range(len(sequence)):
                weight = (k[: t + 1] @ q[t] / math.sqrt(size)).exp()
                seen.append((weight / weight.sum()) @ v[: t + 1])
            heads.append(torch.stack(seen))
        x = x + torch.cat(heads, dim=1) @ out + out_bias
        y = normalise(x, scale2, shift2) @ up + up_bias
        y = y / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + y @ down + down_bias
    scale, shift = cut(d), cut(d)
    logits = normalise(x[-1], scale, shift) @ cut(d, 5)
    assert place == len(row)
    return logits


def case(config: TransformerConfig, replicas: int, batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random float64 parameters (none is zero or one), and padded token rows with their last positions."""
    rng = np.random.default_rng(seed)
    flat = torch.from_numpy(0.3 * rng.standard_normal((replicas, count_parameters(config))))
    last = rng.integers(2, config.context, size=(replicas, batch))
    tokens = rng.integers(3, 5, size=(replicas, batch, config.context))
    tokens[:, :, 0] = START
    grid = np.arange(config.context)
    tokens = np.where(grid > last[:, :, None], PAD, np.where(grid == last[:, :, None], END, tokens))
    return flat, torch.from_numpy(tokens), torch.from_numpy(last)


@pytest.mark.parametrize(("layers", "count"), [(1, 53_440), (2, 103_424), (3, 153_408)])
def test_parameter_counts_are_the_papers(layers: int, count: int) -> None:
    config = TransformerConfig(layers=layers, heads=4, context=42)
    assert config.width == 64
    assert count_parameters(config) == count
    assert init_parameters(config, [0]).shape == (1, count)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("heads", [1, 4])
def test_logits_and_gradients_are_the_plain_transformers(layers: int, heads: int) -> None:
    config = TransformerConfig(layers=layers, heads=heads, context=11, width=8)
    flat, tokens, last = case(config, replicas=3, batch=4, seed=10 * layers + heads)
    pull = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 4, 5)))
    flat.requires_grad_()
    found = answer_logits(config, flat, tokens[:, :, : int(last.max()) + 1], last)
    (found_gradient,) = torch.autograd.grad((pull * found).sum(), flat)
    wanted = torch.stack(
        [
            torch.stack(
                [
                    plain_logits(config, flat[r], row[: int(end) + 1].tolist())
                    for row, end in zip(tokens[r], last[r], strict=True)
                ]
            )
            for r in range(3)
        ]
    )
    (wanted_gradient,) = torch.autograd.grad((pull * wanted).sum(), flat)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(found_gradient, wanted_gradient, rtol=1e-10, atol=1e-10)
    assert float(wanted_gradient.abs().max()) > 0.1  # the comparison is not of zeros


def test_the_gradient_is_that_of_finite_differences() -> None:
    config = TransformerConfig(layers=2, heads=2, context=7, width=4)
    flat, tokens, last = case(config, replicas=2, batch=3, seed=1)
    direction = torch.from_numpy(np.random.default_rng(2).standard_normal(flat.shape))

    def value(x: Tensor) -> Tensor:
        return (answer_logits(config, x, tokens, last) ** 2).sum()

    (gradient,) = torch.autograd.grad(value(leaf := flat.clone().requires_grad_()), leaf)
    slope = (value(flat + 1e-5 * direction) - value(flat - 1e-5 * direction)) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-6)


def test_float32_logits_are_the_float64_ones_to_rounding() -> None:
    config = TransformerConfig(layers=3, heads=4, context=42)
    _, tokens, last = case(config, replicas=2, batch=16, seed=3)
    flat = init_parameters(config, [0, 1])
    torch.testing.assert_close(
        answer_logits(config, flat, tokens, last).double(),
        answer_logits(config, flat.double(), tokens, last),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("layers", [1, 2])
def test_what_stands_after_end_is_never_read(layers: int) -> None:
    config = TransformerConfig(layers=layers, heads=2, context=14, width=8)
    flat, tokens, last = case(config, replicas=2, batch=6, seed=4)
    noise = torch.from_numpy(np.random.default_rng(5).integers(0, 5, size=tuple(tokens.shape)))
    after = torch.arange(14) > last[:, :, None]
    assert bool((noise != tokens)[after].any())
    plain = answer_logits(config, flat, tokens, last)
    assert torch.equal(plain, answer_logits(config, flat, torch.where(after, noise, tokens), last))


@pytest.mark.parametrize("layers", [1, 2])
def test_an_answer_depends_on_its_own_string_only(layers: int) -> None:
    config = TransformerConfig(layers=layers, heads=2, context=14, width=8)
    flat, tokens, last = case(config, replicas=2, batch=6, seed=6)
    together = answer_logits(config, flat, tokens, last)
    for r in range(2):
        for b in range(6):
            end = int(last[r, b])
            alone = answer_logits(
                config, flat[r : r + 1], tokens[r : r + 1, b : b + 1, : end + 1], last[r : r + 1, b : b + 1]
            )
            torch.testing.assert_close(together[r, b], alone[0, 0], rtol=0, atol=1e-12)


def test_order_of_the_symbols_matters() -> None:
    config = TransformerConfig(layers=1, heads=2, context=6, width=8)
    flat, _, _ = case(config, replicas=1, batch=1, seed=7)
    tokens = torch.tensor([[[0, 3, 4, 2], [0, 4, 3, 2]]])
    logits = answer_logits(config, flat, tokens, torch.tensor([[3, 3]]))[0]
    assert float((logits[0] - logits[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_replica_is_the_same_bits_alone_and_batched_on_the_same_strings(layers: int, dtype: torch.dtype) -> None:
    config = TransformerConfig(layers=layers, heads=4, context=42)
    flat, tokens, last = case(config, replicas=3, batch=16, seed=8)
    flat = flat.to(dtype).requires_grad_()
    tokens, last = tokens[:1].expand(3, -1, -1).contiguous(), last[:1].expand(3, -1).contiguous()
    logits = answer_logits(config, flat, tokens, last)
    (gradient,) = torch.autograd.grad(logits.square().sum(), flat)
    for r in range(3):
        one = flat[r : r + 1].detach().clone().requires_grad_()
        alone = answer_logits(config, one, tokens[:1], last[:1])
        (alone_gradient,) = torch.autograd.grad(alone.square().sum(), one)
        assert torch.equal(logits[r], alone[0])
        assert torch.equal(gradient[r], alone_gradient[0])


def test_a_replica_agrees_to_rounding_with_itself_batched_among_other_strings() -> None:
    # Not bit for bit: the longest string of the whole batch sets the width of attention, and the fullest replica the
    # number of packed rows, so sums over positions and over rows are blocked differently in the last place.
    config = TransformerConfig(layers=2, heads=4, context=42)
    flat, tokens, last = case(config, replicas=3, batch=16, seed=9)
    flat.requires_grad_()
    logits = answer_logits(config, flat, tokens, last)
    (gradient,) = torch.autograd.grad(logits.square().sum(), flat)
    for r in range(3):
        end = int(last[r].max()) + 1
        alone = answer_logits(config, flat[r : r + 1], tokens[r : r + 1, :, :end], last[r : r + 1])
        (alone_gradient,) = torch.autograd.grad(alone.square().sum(), flat)
        torch.testing.assert_close(logits[r], alone[0], rtol=1e-12, atol=1e-12)
        scale = float(gradient[r].abs().max())
        torch.testing.assert_close(gradient[r], alone_gradient[r], rtol=0, atol=1e-12 * scale)


def test_initial_parameters_have_the_stated_laws() -> None:
    config = TransformerConfig(layers=2, heads=4, context=42)
    parts = unflatten(config, init_parameters(config, range(8)))
    for name, values in parts.items():
        if name.endswith(".scale"):
            assert bool((values == 1).all())
        elif name.endswith((".shift", ".bias")):
            assert bool((values == 0).all())
        else:
            wanted = 0.02 / 2 if name.endswith(("attention_out.weight", "mlp_out.weight")) else 0.02
            spread = values.numel() ** -0.5
            assert float(values.double().std()) == pytest.approx(wanted, rel=4 * spread)
            assert float(values.double().mean()) == pytest.approx(0, abs=4 * wanted * spread)


def test_initial_parameters_are_a_function_of_the_seed() -> None:
    config = TransformerConfig(layers=1, heads=2, context=8, width=8)
    both = init_parameters(config, [3, 4])
    assert both.dtype == torch.float32
    assert torch.equal(both[1:], init_parameters(config, [4]))
    assert not torch.equal(both[0], both[1])


def test_unflatten_is_the_row_cut_in_order() -> None:
    config = TransformerConfig(layers=2, heads=2, context=8, width=8)
    flat = torch.arange(2 * count_parameters(config), dtype=torch.float64).view(2, -1)
    parts = unflatten(config, flat)
    assert {name: tuple(part.shape[1:]) for name, part in parts.items()} == parameter_shapes(config)
    assert torch.equal(torch.cat([part.reshape(2, -1) for part in parts.values()], dim=1), flat)
