"""A newcomer's script: which texts a BERT classifier learns one of its classes from, and what more of them do."""

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import patterning as pt
from patterning.tasks.text.embedded import sample_documents

kinds = ["".join(part.text for part in kind.documents[:9])[:9000].encode() for kind in sample_documents()][:3]
rows = [{"input_ids": list(kinds[i % 3][8 * i : 8 * i + 8 + i % 5]), "label": i % 3} for i in range(900)]
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
config = AutoConfig.for_model("bert", vocab_size=256, num_labels=3, **sizes)


def train(weights, seed, steps=60):
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in torch.tensor(list(weights.sampler(seed, rows=32 * steps))).split(32):
        optimizer.zero_grad()
        task.loss_fn(model, {name: column[batch] for name, column in task.data.items()}).mean().backward()
        optimizer.step()
    return model.eval()


net = AutoModelForSequenceClassification.from_config(config)
task, *held = [pt.classifier_task(net, part) for part in (rows[:300], rows[302:600:3], rows[602::3])]
loss, test = ({"class 2": lambda model, of=of: of.loss_fn(model, of.data).mean()} for of in held)
at, sampler = train(pt.Weights.uniform(task), 1000, steps=150), pt.SGLD(300, 3000, 1e-5)
chi = pt.measure(task, loss, at=at, sampler=sampler, estimator="first-order")
print(chi, *chi.top(3, "class 2", decode=lambda row, _: bytes(row["input_ids"].tolist())), sep="\n")
check = pt.verify(train, {"more of class 2": chi.invert({"class 2": -1}).weights(2)}, test, seeds=range(3))
check.show()
