"""Parity with a TransformerLens HookedTransformer of the same weights: logits and attention patterns.

Needs the extra `lens` (pip install -e '.[dev,lens]'; HookedTransformer left TransformerLens after version 3).
"""

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformer_lens")
pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own

from patterning.models.language import LanguageConfig, LanguageModel  # noqa: E402
from patterning.tasks.induction import attention_patterns  # noqa: E402
from patterning.training.language import init_language  # noqa: E402

POSITIONS = {"added": "standard", "shortformer": "shortformer"}


def hooked(model: LanguageModel):
    """The HookedTransformer of a model's weights, none of them folded or centred."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = model.config
    h, d = config.heads, config.width
    peer = HookedTransformer(
        HookedTransformerConfig(
            n_layers=config.layers, d_model=d, n_ctx=config.context, d_head=d // h, n_heads=h,
            d_vocab=config.vocabulary, d_mlp=config.mlp_ratio * d or None, attn_only=not config.mlp_ratio,
            act_fn="gelu" if config.mlp_ratio else None, normalization_type="LN",
            positional_embedding_type=POSITIONS[config.positions],
        )
    )  # fmt: skip
    state: dict[str, Tensor] = {
        "embed.W_E": model.embed.weight, "pos_embed.W_pos": model.positions.weight,
        "unembed.W_U": model.unembed.weight.T, "unembed.b_U": torch.zeros(config.vocabulary),
        "ln_final.w": model.ln_final.weight, "ln_final.b": model.ln_final.bias,
    }  # fmt: skip
    for i, block in enumerate(model.layers()):
        there = f"blocks.{i}."
        for name, weight, bias in zip(
            "QKV", block.attention.qkv.weight.chunk(3), block.attention.qkv.bias.chunk(3), strict=True
        ):
            state[f"{there}attn.W_{name}"] = weight.reshape(h, d // h, d).transpose(1, 2)
            state[f"{there}attn.b_{name}"] = bias.reshape(h, d // h)
        state[f"{there}attn.W_O"] = block.attention.out.weight.T.reshape(h, d // h, d)
        state[f"{there}attn.b_O"] = block.attention.out.bias
        state[f"{there}ln1.w"], state[f"{there}ln1.b"] = block.ln1.weight, block.ln1.bias
        if block.mlp is not None and block.ln2 is not None:
            state[f"{there}ln2.w"], state[f"{there}ln2.b"] = block.ln2.weight, block.ln2.bias
            state[f"{there}mlp.W_in"], state[f"{there}mlp.b_in"] = block.mlp.read.weight.T, block.mlp.read.bias
            state[f"{there}mlp.W_out"], state[f"{there}mlp.b_out"] = block.mlp.write.weight.T, block.mlp.write.bias
    found = peer.load_state_dict({name: value.detach() for name, value in state.items()}, strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith(("attn.mask", "attn.IGNORE")) for name in found.missing_keys)  # constants, no weights
    return peer


@pytest.mark.parametrize("mlp_ratio", [0, 4])
@pytest.mark.parametrize("positions", POSITIONS)
def test_logits_and_patterns_are_those_of_a_hooked_transformer(positions: str, mlp_ratio: int) -> None:
    config = LanguageConfig(50, 24, 2, 4, 32, mlp_ratio, positions, init_std=0.3)  # pyright: ignore[reportArgumentType]
    model = init_language(config, 0)
    noise = torch.Generator().manual_seed(1)
    for p in model.parameters():  # biases and gains that are not 0 and 1 as well
        p.detach().add_(0.2 * torch.randn(p.shape, generator=noise))
    tokens = torch.randint(50, (5, 24), generator=noise)
    with torch.no_grad():
        theirs, cache = hooked(model).run_with_cache(tokens, prepend_bos=False)
        ours = model(tokens)
    assert ours.std() > 1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    patterns = torch.stack([cache[f"blocks.{i}.attn.hook_pattern"] for i in range(2)])
    torch.testing.assert_close(attention_patterns(model, tokens), patterns, rtol=1e-4, atol=1e-5)
    assert patterns.amax(-1)[..., 5:].mean() > 0.5  # far from uniform
