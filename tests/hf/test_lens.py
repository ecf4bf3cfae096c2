"""TransformerLens: heads by name, measures, processed weights refused; a bridge sends one to the model itself."""

import pytest
import torch

pytest.importorskip("transformer_lens")
pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own

import patterning as pt  # noqa: E402
from patterning.models.components import find_component  # noqa: E402

BLOCKS = pt.measures.repeated_random(20, 12, 4, 0)


def hooked(normalization: str = "LN", **more):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {"n_layers": 2, "d_model": 16, "n_ctx": 16, "d_head": 4, "n_heads": 4, "d_vocab": 20, "act_fn": "gelu"}
    model = HookedTransformer(HookedTransformerConfig(**sizes, normalization_type=normalization, seed=0, **more))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model.eval()


def losses(model, tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(tokens)[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")


def test_heads_and_measures_of_a_hooked_transformer() -> None:
    model = hooked()
    with torch.no_grad():
        _, cache = model.run_with_cache(BLOCKS)
        pattern = cache["blocks.1.attn.hook_pattern"][:, 2]
        previous = pattern.diagonal(-1, dim1=1, dim2=2).mean()
        assert float(pt.measures.previous_token("l1h2", BLOCKS)(model)) == pytest.approx(float(previous), rel=1e-4)
        without = hooked()
        without.blocks[1].attn.W_O[2] = 0
        worth = float(losses(without, BLOCKS).mean() - losses(model, BLOCKS).mean())
        assert float(pt.measures.head_ablation("l1h2", BLOCKS)(model)) == pytest.approx(worth, rel=1e-3)
    task = pt.Task(model, losses, BLOCKS)
    chi = pt.measure(
        task, {"gap": pt.measures.repeated_gap(BLOCKS)}, "l1h2", sampler=pt.SGLD(10, 300, 1e-4),
        estimator="first-order", progress=False,
    )  # fmt: skip
    assert chi.chi.std() > 0


def test_processed_weights_are_refused_and_a_model_made_without_gains_is_not() -> None:
    model = hooked("LNPre")
    assert find_component(model, "l1h2").count(model) == 3 * 16 * 4 + 16 * 4 + 3 * 4
    model.cfg.original_architecture = "GPT2LMHeadModel"  # as from_pretrained says
    with pytest.raises(pt.PatterningError, match="from_pretrained_no_processing"):
        find_component(model, "l1h2")


def test_a_bridge_is_sent_to_the_model_that_it_wraps() -> None:
    sources = pytest.importorskip("transformer_lens.model_bridge.sources")
    from .models import build

    model = build("llama")
    bridge = sources.build_bridge_from_module(model, "LlamaForCausalLM", hf_config=model.config)
    with pytest.raises(pt.PatterningError, match="make the task of the Hugging Face model itself"):
        find_component(bridge, "l1h2")
    assert find_component(bridge, "model.layers.1.*q_proj*").count(bridge) == 24 * 16 + 24
