"""Models whose heads lie otherwise than in Llama or BERT: named rightly, or not named."""

from copy import deepcopy

import pytest
import torch

pytest.importorskip("transformers")

import transformers as hf

from patterning.models.architectures import layout_of
from patterning.models.components import find_component

from .models import read_by_heads

SIZES = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FULL = {"layer_types": ["full_attention"] * 2, "num_key_value_heads": 2, "head_dim": 8}
NAMED = {
    "a row of gains for each head": ("Cohere", "CohereForCausalLM", {"use_qk_norm": True}),
    "two sizes of heads": (
        "Gemma4Text", "Gemma4ForCausalLM",
        {
            **FULL, "layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 16,
            "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 40, "num_kv_shared_layers": 0,
            "sliding_window": 4,
        },
    ),
    "a number for each head": (
        "GptOss", "GptOssForCausalLM",
        {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 2},
    ),
    "heads narrower than the stream": (
        "MobileBert", "MobileBertForMaskedLM",
        {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    ),
}  # fmt: skip
UNNAMED = {
    "gates among the queries": ("Qwen3_5Text", "Qwen3_5ForCausalLM", FULL),
    "differences of heads": ("DiffLlama", "DiffLlamaForCausalLM", {"num_key_value_heads": 4}),
    "heads beside a convolution": ("ConvBert", "ConvBertForMaskedLM", {"embedding_size": 16, "conv_kernel_size": 3}),
}
IDS = torch.randint(4, 40, (2, 8), generator=torch.Generator().manual_seed(0))


def build(kind: tuple[str, str, dict]) -> torch.nn.Module:
    config, name, more = kind
    if not hasattr(hf, f"{config}Config") or not hasattr(hf, name):
        pytest.skip(f"this version of transformers has no {name}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(hf, name)(getattr(hf, f"{config}Config")(**{**SIZES, **more}))
        for p in model.parameters():
            p.detach().add_(0.3 * torch.randn(p.shape))
    return model.eval()


@pytest.mark.parametrize("what", NAMED)
def test_a_head_moves_what_it_reads_and_nothing_else(what: str) -> None:
    model = build(NAMED[what])
    layout = layout_of(model)
    assert layout is not None
    for layer in (0, 1):
        here = read_by_heads(model, layer, IDS)
        for i in range(4):
            copy, noise = deepcopy(model), torch.Generator().manual_seed(2)
            own = dict(copy.named_parameters())
            for name, mask in find_component(model, f"l{layer}h{i}").masks.items():
                assert mask is not None
                assert bool(mask.any()), name
                own[name].detach().add_(torch.randn(mask.shape, generator=noise) * mask)
            moved = (read_by_heads(copy, layer, IDS) != here).any(3).any(1).any(0).nonzero()[:, 0].tolist()
            first = i - i % layout.shares
            assert moved == list(range(first, first + layout.shares))


@pytest.mark.parametrize("what", UNNAMED)
def test_heads_that_do_not_lie_side_by_side_have_no_names(what: str) -> None:
    assert layout_of(build(UNNAMED[what])) is None
