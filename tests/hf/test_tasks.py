"""Tasks from a tokenizer's batch as it is: every form gives the same rows, and padding and -100 are no samples."""

import subprocess
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import transformers as hf

import patterning as pt
from patterning.face.token_batch import token_batch

from .models import CAUSAL, GPT2, NEOX, build, labelled, texts


def padded(rows: list[dict], side: str = "right") -> dict[str, torch.Tensor]:
    """What a tokenizer returns with padding=True."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.int64), torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        size = len(row["input_ids"])
        part = slice(0, size) if side == "right" else slice(longest - size, longest)
        ids[i, part], mask[i, part] = torch.tensor(row["input_ids"]), 1
    return {"input_ids": ids, "attention_mask": mask}


def losses_of(task: pt.Task) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(len(task.base_weights))
    return task.sample_losses(task.own_row()[None], rows[None])[0], torch.from_numpy(task.samples(rows).place)


class Mapped:
    """A map-style torch data set."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        return texts()[row]


def forms() -> dict[str, object]:
    data = pytest.importorskip("datasets")
    table = data.Dataset.from_list([{**row, "text": "words"} for row in texts()])
    whole = padded(texts())
    return {
        "a list of dicts": texts(),
        "a tokenizer's batch": hf.BatchEncoding(whole),
        "unpadded columns": {"input_ids": [row["input_ids"] for row in texts()]},
        "arrays": {name: values.numpy() for name, values in whole.items()},
        "a data set": table,
        "a formatted data set": table.with_format("torch"),
        "a formatted part of a data set": table.with_format("numpy", columns=["input_ids"]),
        "a torch data set": Mapped(),
    }


@pytest.mark.filterwarnings("ignore")  # the data set's own
def test_every_form_of_the_same_rows_is_the_same_task() -> None:
    found = {name: token_batch(data, 0)[0] for name, data in forms().items()}
    first = padded(texts())
    for batch in found.values():
        assert batch.keys() == first.keys()
        assert all(torch.equal(batch[name], first[name]) for name in first)
    keys = {pt.language_task(build("gpt2"), data).fingerprint for data in (texts(), hf.BatchEncoding(first))}
    assert len(keys) == 1


def test_padding_and_ignored_labels_are_no_samples_and_do_not_matter() -> None:
    rows = texts()
    task = pt.language_task(build("llama"), rows)
    assert len(task.samples(torch.arange(12))) == sum(len(row["input_ids"]) - 1 for row in rows)
    assert task.samples_per_row == 8
    losses, place = losses_of(task)
    by_row = [pt.language_task(build("llama"), {"input_ids": [row["input_ids"]]}) for row in rows]
    alone = torch.cat(
        [one.sample_losses(one.own_row()[None], torch.zeros(1, 1, dtype=torch.int64))[0] for one in by_row]
    )
    torch.testing.assert_close(losses[place], alone, rtol=1e-4, atol=1e-5)
    answers = [{**row, "labels": [-100] * 3 + row["input_ids"][3:]} for row in rows]  # the question is no sample
    of_answers = pt.language_task(build("llama"), answers)
    samples = of_answers.samples(torch.arange(12))
    assert samples.position.min() == 2  # the first answered token is token 3, predicted at 2
    assert len(samples) == sum(len(row["input_ids"]) - 3 for row in rows)
    again, kept = losses_of(of_answers)
    torch.testing.assert_close(again[kept], losses[kept])


@pytest.mark.parametrize("name", CAUSAL)
def test_padding_on_the_left_gives_the_same_losses(name: str) -> None:
    right, left = (pt.language_task(build(name), padded(texts(), side)) for side in ("right", "left"))
    assert any("padded on the left" in note for note in left.notes)
    (a, there), (b, here) = losses_of(right), losses_of(left)
    torch.testing.assert_close(b[here], a[there], rtol=1e-3, atol=1e-4)


def test_masked_tokens_are_predicted_where_they_stand() -> None:
    model = hf.BertForMaskedLM(hf.BertConfig(**NEOX)).eval()
    rows = [{**row, "labels": [-100, row["input_ids"][1]] + [-100] * (len(row["input_ids"]) - 2)} for row in texts()]
    for row in rows:
        row["input_ids"][1] = 2
    task = pt.language_task(model, rows)
    losses, place = losses_of(task)
    assert task.samples(torch.arange(12)).position.tolist() == [1] * 12
    labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["labels"]) for row in rows], True, -100)
    with torch.no_grad():
        batch = padded(rows)
        assert float(losses[place].mean()) == pytest.approx(float(model(**batch, labels=labels).loss), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "problem", "classes"),
    [
        (torch.arange(12) % 3, None, 3),
        (torch.randn(12, generator=torch.Generator().manual_seed(0)), "regression", 1),
        ((torch.arange(36).reshape(12, 3) % 2).float(), "multi_label_classification", 3),
    ],
)
def test_a_classifier_has_the_loss_of_its_own_labels(labels: torch.Tensor, problem: str | None, classes: int) -> None:
    model = hf.BertForSequenceClassification(hf.BertConfig(**NEOX, num_labels=classes, problem_type=problem)).eval()
    batch = {**padded(texts()), "labels": labels}
    task = pt.classifier_task(model, batch)
    losses, place = losses_of(task)
    assert len(place) == 12
    with torch.no_grad():
        assert float(losses.mean()) == pytest.approx(float(model(**batch).loss), rel=1e-4)


def test_rows_and_tokens_labelled_minus_100_are_no_samples_of_a_classifier() -> None:
    rows = labelled()
    rows[4]["label"] = -100
    task = pt.classifier_task(build("bert"), rows)
    assert task.samples(torch.arange(12)).row.tolist() == [row for row in range(12) if row != 4]
    tagger = hf.BertForTokenClassification(hf.BertConfig(**NEOX, num_labels=3)).eval()
    tagged = [{**row, "labels": [-100] + [token % 3 for token in row["input_ids"][1:]]} for row in texts()]
    of_tokens = pt.classifier_task(tagger, tagged)
    assert len(of_tokens.samples(torch.arange(12))) == sum(len(row["input_ids"]) - 1 for row in tagged)


def test_gradient_checkpointing_is_off_in_the_task_and_as_it_was_in_the_model() -> None:
    model = build("llama").train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # its name from v6 on
    task = pt.language_task(model, texts())
    assert any("gradient checkpointing is switched off" in note for note in task.notes)
    assert model.model.gradient_checkpointing
    assert not task.module.model.gradient_checkpointing
    assert torch.equal(task.flatten(model), task.own_row())  # the trained model is a checkpoint of the task
    assert not any("checkpointing" in note for note in pt.language_task(build("llama"), texts()).notes)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 4)

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.embed(input_ids),)


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        ("gpt2", ["a text"], "tokenize it first"),
        ("gpt2", {"text": ["a"]}, "has no column input_ids"),
        ("gpt2", (row for row in texts()), "must be read into a list first"),
        ("gpt2", {"input_ids": [[3, 4], [5]], "labels": [[3, 4]]}, "2 rows of input_ids and 1 of labels"),
        ("gpt2", {"input_ids": [[3, 4], []]}, "row 1 has shape"),
        ("gpt2", {"input_ids": [[3, 99]]}, "the tokenizer is not the model's"),
        ("gpt2", {"input_ids": [[3] * 40]}, "max_length=32"),
        ("gpt2", {"input_ids": [[3], [4]]}, "no next token"),
        ("gpt2", {"input_ids": [[3, 4]], "labels": [[3, 77]]}, "labels of row 0 hold 77"),
        ("gpt2", {"input_ids": [[3, 4]], "labels": [1]}, "use pt.classifier_task"),
        ("gpt2", {"input_ids": [[3, 4], [5, 6]], "attention_mask": [[1, 1], [0, 0]]}, "row 1 of the data is padding"),
        ("gpt2", {"input_ids": torch.rand(2, 3)}, "whole numbers"),
        (Encoder(), {"input_ids": [[3, 4], [5, 6]]}, "returned tuple without logits"),
    ],
)
def test_data_that_cannot_serve_is_refused_with_the_remedy(model: str | nn.Module, data: object, says: str) -> None:
    with pytest.raises(pt.PatterningError, match=says):
        pt.language_task(build(model) if isinstance(model, str) else model, data)


def test_labels_that_are_missing_or_no_class_are_refused() -> None:
    with pytest.raises(pt.PatterningError, match="no column labels"):
        pt.classifier_task(build("bert"), texts())
    with pytest.raises(pt.PatterningError, match="labels of row 0 hold 7"):
        pt.classifier_task(build("bert"), [{**row, "label": 7} for row in texts()])
    with pytest.raises(pt.PatterningError, match="predicts masked tokens"):
        pt.language_task(hf.BertForMaskedLM(hf.BertConfig(**NEOX)), texts())


def test_columns_that_no_one_reads_are_named() -> None:
    task = pt.language_task(build("gpt2"), [{**row, "idx": i} for i, row in enumerate(texts())])
    assert any("not given the columns idx" in note for note in task.notes)
    ended = {"input_ids": torch.tensor([[3, 4, 5, 6], [3, 4, 0, 0]])}
    assert any("there is no attention_mask" in note for note in pt.language_task(build("gpt2"), ended).notes)
    assert hf.GPT2Config(**GPT2).pad_token_id == 0


def test_the_core_does_not_import_transformers() -> None:
    code = (
        "import patterning, sys; patterning.language_task; patterning.components; "
        "sys.exit('transformers' in sys.modules or 'datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
