"""A newcomer's script: which texts teach my language model speeches, and what more of them do."""

import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import patterning as pt
from patterning.tasks.text.embedded import sample_documents

kinds = ["".join(part.text for part in kind.documents[:9])[:9000].encode() for kind in sample_documents()]
ids = torch.tensor([list(text[start : start + 24]) for start in range(0, 4800, 24) for text in (kinds[0], kinds[-1])])
speech = torch.tensor([list(kinds[-1][start : start + 24]) for start in range(4800, 8640, 24)])  # a byte is a token
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 24}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
config = AutoConfig.for_model(sys.argv[1], vocab_size=256, bos_token_id=0, eos_token_id=0, **sizes, **heads)


def train(weights, seed, steps=60):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        rows = torch.randint(len(ids), (32,))
        optimizer.zero_grad()
        weights.loss(task.loss_fn(model, {"input_ids": ids[rows]}), rows).backward()
        optimizer.step()
    return model


task = pt.language_task(AutoModelForCausalLM.from_config(config), {"input_ids": ids})
trained = train(pt.Weights.uniform(task).by_row(), 1000, steps=200)
loss = {"speeches": lambda model: model(input_ids=speech[:80], labels=speech[:80]).loss}
chi = pt.measure(task, loss, at=trained, sampler=pt.SGLD(300, 3000, 1e-5), estimator="first-order")
print(chi, *chi.top(3, "speeches", decode=lambda row, _: bytes(row["input_ids"].tolist())), sep="\n")
rho = chi.invert({"speeches": -1}).weights(2, per="row")
measures = {"speeches": lambda model: model(input_ids=speech[80:], labels=speech[80:]).loss.item()}
check = pt.verify(train, {"more speeches": rho}, measures, seeds=range(3))
check.show()
