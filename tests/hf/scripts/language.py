"""A newcomer's script: which texts teach my language model speeches, and what more of them do."""

import copy
import sys

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, PrinterCallback, TrainingArguments, default_data_collator

import patterning as pt
from patterning.tasks.text.embedded import sample_documents

kinds = ["".join(part.text for part in kind.documents[:9])[:9000].encode() for kind in sample_documents()]
ids = [list(text[start : start + 24]) for start in range(0, 4800, 24) for text in (kinds[0], kinds[-1])]
speech = torch.tensor([list(kinds[-1][start : start + 24]) for start in range(4800, 8640, 24)])  # a byte is a token
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
config = AutoConfig.for_model(sys.argv[1], vocab_size=256, num_key_value_heads=4, bos_token_id=0, **sizes)
quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
steady = {"per_device_train_batch_size": 32, "logging_strategy": "no"}


def train(weights, seed, start=None, steps=15):
    model = copy.deepcopy(start or trained)
    how = TrainingArguments("out", max_steps=steps, learning_rate=5e-3, seed=seed, **quiet, **steady)
    data = weights.name_rows(Dataset.from_dict({"input_ids": ids, "labels": ids}))
    trainer = pt.hf.WeightedTrainer(model, how, default_data_collator, data, weights=weights)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model


task = pt.language_task(AutoModelForCausalLM.from_config(config), {"input_ids": torch.tensor(ids)})
trained = train(pt.Weights.uniform(task).by_row(), 1000, task.module, steps=80)
loss, test = ({"speeches": lambda model, x=x: model(input_ids=x, labels=x).loss} for x in (speech[:80], speech[80:]))
chi = pt.measure(task, loss, at=trained, sampler=pt.SGLD(300, 3000, 1e-5), estimator="first-order")
print(chi, *chi.top(3, "speeches", decode=lambda row, _: bytes(row["input_ids"].tolist())), sep="\n")
check = pt.verify(train, {"speeches": chi.invert({"speeches": -1}).weights(1, per="row")}, test, seeds=range(3))
check.show()
