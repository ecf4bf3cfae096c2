"""A newcomer's script: which texts a BERT classifier learns one of its classes from, and what more of them do."""

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, PrinterCallback, TrainingArguments

import patterning as pt
from patterning.tasks.text.embedded import sample_documents

kinds = ["".join(part.text for part in kind.documents[:9])[:9000].encode() for kind in sample_documents()][:3]
rows = [{"input_ids": list(kinds[i % 3][8 * i : 8 * i + 8 + i % 5]), "label": i % 3} for i in range(900)]
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
config = AutoConfig.for_model("bert", vocab_size=256, num_labels=3, **sizes)
quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
steady = {"per_device_train_batch_size": 32, "logging_strategy": "no"}


def train(weights, seed, steps=25):
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    how = TrainingArguments("out", max_steps=steps, learning_rate=3e-3, seed=seed, **quiet, **steady)
    data = weights.name_rows(Dataset.from_dict({name: column.tolist() for name, column in task.data.items()}))
    trainer = pt.hf.WeightedTrainer(model, how, train_dataset=data, weights=weights, resample=True)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model.eval()


net = AutoModelForSequenceClassification.from_config(config)
task, *held = [pt.classifier_task(net, part) for part in (rows[:300], rows[302:600:3], rows[602::3])]
loss, test = ({"class 2": lambda model, of=of: of.loss_fn(model, of.data).mean()} for of in held)
at, sampler = train(pt.Weights.uniform(task), 1000, steps=70), pt.SGLD(300, 3000, 1e-5)
chi = pt.measure(task, loss, at=at, sampler=sampler, estimator="first-order")
print(chi, *chi.top(3, "class 2", decode=lambda row, _: bytes(row["input_ids"].tolist())), sep="\n")
check = pt.verify(train, {"more of class 2": chi.invert({"class 2": -1}).weights(2)}, test, seeds=range(3))
check.show()
