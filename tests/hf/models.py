"""Small Hugging Face models with random weights, made from configurations: nothing is fetched."""

import torch
import transformers as hf
from torch import nn

from patterning.models.architectures import layout_of

hf.logging.set_verbosity_error()

VOCABULARY = 50
SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA = {
    **SIZES, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
GPT2 = {**SIZES, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4}
NEOX = {
    **SIZES, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 32,
}  # fmt: skip

CAUSAL = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, head_dim=6, attention_bias=True)),
    "smollm2": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**LLAMA, head_dim=6)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**LLAMA, tie_word_embeddings=True)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**LLAMA, head_dim=6)),
    "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**NEOX)),
}
CLASSIFIERS = {
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**NEOX, num_labels=3)),
    "distilbert": lambda: hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(**SIZES, dim=16, hidden_dim=24, n_layers=2, n_heads=4, num_labels=3)
    ),
    "gpt2 classifier": lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(**GPT2, num_labels=3)),
    "llama classifier": lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**LLAMA, num_labels=3)),
}


def build(name: str, spread: float = 0.3) -> nn.Module:
    """A model in evaluation mode, its parameters far enough from 0 that attention is not uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (CAUSAL | CLASSIFIERS)[name]()
        for p in model.parameters():
            p.detach().add_(spread * torch.randn(p.shape))
    return model.eval()


def read_by_heads(model: nn.Module, layer: int, ids: torch.Tensor) -> torch.Tensor:
    """What the heads of a layer read, (b, t, heads, size): the input of the module that takes it to the stream."""
    layout, seen = layout_of(model), []
    assert layout is not None
    handle = model.get_submodule(layout.output.format(layer)).register_forward_pre_hook(
        lambda _module, arguments: seen.append(arguments[0].detach())
    )
    with torch.no_grad():
        model(input_ids=ids)
    handle.remove()
    return seen[0].unflatten(2, (layout.heads, -1))


def texts(rows: int = 12, shortest: int = 5, longest: int = 9) -> list[dict[str, list[int]]]:
    """Rows of unequal lengths, as a tokenizer returns them one by one; the first is the longest."""
    noise = torch.Generator().manual_seed(1)
    lengths = [longest, *torch.randint(shortest, longest + 1, (rows - 1,), generator=noise).tolist()]
    return [{"input_ids": torch.randint(3, VOCABULARY, (size,), generator=noise).tolist()} for size in lengths]


def labelled(rows: int = 12) -> list[dict]:
    """The same with a class for each row."""
    return [{**row, "label": i % 3} for i, row in enumerate(texts(rows))]
