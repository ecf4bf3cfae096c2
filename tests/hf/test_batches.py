"""Batches as they come against plain torch, row by row and unpadded: left padding, labels, wrappers, and own losses."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("transformers")

import transformers as hf

import patterning as pt
from patterning.face.token_batch import token_batch

from .models import NEOX, SIZES, build, texts
from .test_tasks import losses_of, padded

M = pt.measures
LEFT, RIGHT = padded(texts(), "left"), padded(texts())


def bert(kind: type = hf.BertForSequenceClassification, **more) -> nn.Module:
    torch.manual_seed(0)
    return kind(hf.BertConfig(**NEOX, initializer_range=0.3, **more)).eval()


def by_row(model: nn.Module) -> torch.Tensor:
    """Losses of next tokens, one row after the other, without padding."""
    rows = [torch.tensor([row["input_ids"]]) for row in texts()]
    with torch.no_grad():
        return torch.cat([F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none") for ids in rows])


def test_measures_of_rows_padded_on_the_left_are_those_of_the_rows() -> None:
    model = build("gpt2")
    where = "transformer.h.0"
    with torch.no_grad():
        assert float(M.loss_on(LEFT)(model)) == pytest.approx(float(by_row(model).mean()), rel=1e-5)
        last = [model(torch.tensor([row["input_ids"]])).logits[0, -1] for row in texts()]
        expected = float(torch.stack([logits[7] - logits[9] for logits in last]).mean())
        assert float(M.logit_difference(LEFT, 7, 9)(model)) == pytest.approx(expected, rel=1e-4)
        for make in (
            lambda data: M.previous_token("l1h2", data),
            lambda data: M.head_ablation("l1h2", data, "mean"),
            lambda data: M.projection(where, torch.ones(16), data),
        ):
            assert float(make(LEFT)(model)) == pytest.approx(float(make(texts())(model)), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("given", [True, False])
def test_a_token_after_a_gap_in_the_mask_is_a_sample_as_it_is_to_the_model(given: bool) -> None:
    model = build("llama")
    ids = torch.randint(16, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0, 1, 1, 1], [1] * 6, [1, 1, 1, 0, 0, 1]])
    labels = ids.masked_fill(mask == 0, -100)
    task = pt.language_task(model, {"input_ids": ids, "attention_mask": mask} | ({"labels": labels} if given else {}))
    with torch.no_grad():
        own = float(model(input_ids=ids, attention_mask=mask, labels=labels).loss)
    losses = losses_of(task)[0]
    assert int(losses.count_nonzero()) == 12
    assert float(losses.sum()) / 12 == pytest.approx(own, rel=1e-5)


def test_columns_are_tokens_of_the_text_on_either_side() -> None:
    labels = LEFT["input_ids"].masked_fill(LEFT["attention_mask"] == 0, -100)
    moved, notes = token_batch({**LEFT, "labels": labels}, 0)
    assert any("padded on the left" in note for note in notes)
    assert torch.equal(moved["input_ids"], RIGHT["input_ids"])
    assert torch.equal(moved["attention_mask"], RIGHT["attention_mask"])
    assert torch.equal(moved["labels"], RIGHT["input_ids"].masked_fill(RIGHT["attention_mask"] == 0, -100))
    positions = (LEFT["attention_mask"].cumsum(1) - 1).clamp(min=0)
    given, _ = token_batch({**LEFT, "position_ids": positions}, 0)
    assert torch.equal(given["position_ids"] * RIGHT["attention_mask"], torch.arange(9) * RIGHT["attention_mask"])
    left, right = (pt.language_task(build("gpt2"), data) for data in (LEFT, RIGHT))
    rows = torch.arange(12)
    assert np.array_equal(left.samples(rows).position, right.samples(rows).position)  # so token weights are the same


def test_roberta_counts_positions_from_its_padding() -> None:
    config = {**NEOX, "pad_token_id": 1, "max_position_embeddings": 12}
    torch.manual_seed(0)
    model = hf.RobertaForSequenceClassification(hf.RobertaConfig(**config, num_labels=2, initializer_range=0.3)).eval()
    side = {**LEFT, "input_ids": LEFT["input_ids"].masked_fill(LEFT["attention_mask"] == 0, 1)}
    labels = torch.arange(12) % 2
    losses, _ = losses_of(pt.classifier_task(model, {**side, "labels": labels}))
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([row["input_ids"]])).logits for row in texts()])
    torch.testing.assert_close(losses, F.cross_entropy(logits, labels, reduction="none"), rtol=1e-4, atol=1e-5)
    with pytest.raises(pt.PatterningError, match=r"has 10 positions: .*max_length=10"):
        pt.classifier_task(model, {"input_ids": torch.full((2, 11), 5), "labels": [0, 1]})


class Adapter(nn.Module):
    """A wrapper as peft's: what else it is given is passed on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base, self.config = model, model.config

    def forward(self, input_ids=None, attention_mask=None, **more):
        return self.base(input_ids=input_ids, attention_mask=attention_mask, **more)


class Anything(Adapter):
    def forward(self, *args, **more):
        return self.base(*args, **more)


def test_wrappers_pass_on_what_the_model_takes() -> None:
    model = build("gpt2")
    positions = torch.arange(9).flip(0).expand(12, 9)
    with torch.no_grad():
        logits = model(**RIGHT, position_ids=positions).logits
    expected = F.cross_entropy(logits[:, :-1].transpose(1, 2), RIGHT["input_ids"][:, 1:], reduction="none")
    for kind in (Adapter, Anything):
        losses, place = losses_of(pt.language_task(kind(model), {**RIGHT, "position_ids": positions}))
        torch.testing.assert_close(losses[place], expected.flatten()[place], rtol=1e-4, atol=1e-5)
        losses, place = losses_of(pt.language_task(kind(model), LEFT))
        torch.testing.assert_close(losses[place], by_row(model), rtol=1e-4, atol=1e-4)
    task = pt.language_task(nn.DataParallel(model), RIGHT)
    assert any("within DataParallel" in note for note in task.notes)
    with pytest.raises(pt.PatterningError, match="takes no input_ids by name"):
        pt.language_task(nn.Linear(2, 2), RIGHT)


class Renamed(hf.BertForMaskedLM):
    """A masked language model under another name."""


class Unnamed(hf.BertPreTrainedModel):
    """One that no name tells, but its own loss."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.bert, self.cls = hf.BertModel(config, add_pooling_layer=False), nn.Linear(16, 50)

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        logits = self.cls(self.bert(input_ids, attention_mask=attention_mask)[0])
        loss = None if labels is None else F.cross_entropy(logits.transpose(1, 2), labels)
        return hf.modeling_outputs.MaskedLMOutput(loss=loss, logits=logits)


@pytest.mark.parametrize("kind", [Renamed, Unnamed])
def test_a_masked_model_is_known_by_its_parents_and_by_its_own_loss(kind: type) -> None:
    model = bert(kind)
    ids = RIGHT["input_ids"].clone()
    labels = torch.full_like(ids, -100)
    labels[:, 2], ids[:, 2] = ids[:, 2], 2
    batch = {**RIGHT, "input_ids": ids, "labels": labels}
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=RIGHT["attention_mask"]).logits
    expected = float(F.cross_entropy(logits[:, 2], labels[:, 2]))
    losses, place = losses_of(pt.language_task(model, batch))
    assert float(losses[place].mean()) == pytest.approx(expected, rel=1e-4)
    if kind is Renamed:
        assert float(M.loss_on(batch)(model).detach()) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(pt.PatterningError, match="has no labels"):
        pt.language_task(model, RIGHT)


def test_loss_on_takes_labels_as_the_classifier_does() -> None:
    ratings, several = torch.arange(12) % 5, (torch.arange(36).reshape(12, 3) % 2).float()
    tags = RIGHT["input_ids"] % 3
    with torch.no_grad():
        one = bert(num_labels=1)
        expected = F.mse_loss(one(**RIGHT).logits[:, 0], ratings.float())
        assert float(M.loss_on({**RIGHT, "labels": ratings})(one)) == pytest.approx(float(expected), rel=1e-5)
        many = bert(num_labels=3)
        expected = F.binary_cross_entropy_with_logits(many(**RIGHT).logits, several)
        assert float(M.loss_on({**RIGHT, "labels": several})(many)) == pytest.approx(float(expected), rel=1e-5)
        tagger = bert(hf.BertForTokenClassification, num_labels=3)
        kept = RIGHT["attention_mask"] > 0
        expected = F.cross_entropy(tagger(**RIGHT).logits[kept], tags[kept])
        assert float(M.loss_on({**LEFT, "labels": LEFT["input_ids"] % 3})(tagger)) == pytest.approx(
            float(expected), rel=1e-5
        )


class Weighing(hf.BertForSequenceClassification):
    """Class weights in its own loss."""

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        found = super().forward(input_ids, attention_mask=attention_mask)
        if labels is not None:
            found["loss"] = F.cross_entropy(found.logits, labels, weight=torch.tensor([20.0, 1.0, 1.0]))
        return found


def refused(data: object, says: str, model: nn.Module | None = None, task=pt.classifier_task) -> None:
    with pytest.raises(pt.PatterningError, match=says):
        task(bert(num_labels=3) if model is None else model, data)


def test_labels_that_do_not_fit_are_refused() -> None:
    refused({**RIGHT, "labels": torch.arange(12) % 3}, "is not their mean cross-entropy", bert(Weighing, num_labels=3))
    unknown = torch.ones(12, 3)
    unknown[4, 1] = -100
    refused({**RIGHT, "labels": unknown}, "labels of row 4 are not between 0 and 1")
    refused({**RIGHT, "labels": torch.ones(12, 3, dtype=torch.int64)}, "one a row or one a token")
    gpt2 = build("gpt2")
    short = [{**row, "labels": row["input_ids"][2:]} for row in texts()]
    refused(short, "labels of shape", gpt2, pt.language_task)  # of the answers alone: they could begin anywhere
    refused([{**row, "labels": [0] * (len(row["input_ids"]) - 1)} for row in texts()], "one for each token")
    whole = [{**row, "labels": row["input_ids"] + [-100] * (9 - len(row["input_ids"]))} for row in texts()]
    refused(whole, "labels of shape", gpt2, pt.language_task)
    one = pt.classifier_task(bert(num_labels=3), [{**row, "label": [i % 3]} for i, row in enumerate(texts())])
    assert one.data["labels"].tolist() == [i % 3 for i in range(12)]
    both = pt.classifier_task(bert(num_labels=3), {**RIGHT, "label": [0] * 12, "labels": [1] * 12})
    assert both.data["labels"].tolist() == [1] * 12
    assert any("columns labels and label" in note for note in both.notes)
    lead = pt.language_task(gpt2, {"input_ids": LEFT["input_ids"]})
    assert any("at the beginning of rows count as text" in note for note in lead.notes)


def test_frames_are_read() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(texts(), index=range(5, 17))
    assert torch.equal(token_batch(frame, 0)[0]["input_ids"], RIGHT["input_ids"])
    with pytest.raises(pt.PatterningError, match="has no rows 0 to 11"):
        token_batch(frame["input_ids"], 0)


def test_hooks_of_gradient_checkpointing_are_left_out_of_the_copy() -> None:
    model = build("gpt2")
    model.enable_input_require_grads()
    task = pt.language_task(model, texts())
    chi = pt.measure(
        task, {"loss": M.loss_on(RIGHT)}, "full", sampler=pt.SGLD(10, 300, 1e-4), estimator="first-order",
        batch_size=4, progress=False,
    )  # fmt: skip
    assert np.isfinite(chi.chi).all()
    assert torch.equal(task.flatten(model), task.own_row())
    assert model.get_input_embeddings()._forward_hooks  # the model is as it was


def test_what_a_measure_cannot_take_is_refused() -> None:
    model, ids = build("gpt2"), torch.arange(3, 15)[None].expand(3, -1)
    blocks = M.repeated_random(50, 8, 4, 0)
    with torch.device("meta"):
        empty = hf.GPT2LMHeadModel(hf.GPT2Config(**SIZES, n_positions=32, n_embd=16, n_layer=1, n_head=4))
    cases = {
        "must be a token number": lambda: M.logit_difference(ids, torch.arange(5), 3),
        "right is float": lambda: M.logit_difference(ids, 3.7, 3),
        "wrong is str": lambda: M.logit_difference(ids, 3, "the"),
        "tokens must lie in its vocabulary": lambda: M.logit_difference(ids, 3, 99)(model),
        "must be a tensor": lambda: M.projection("transformer.h.0", [1.0] * 16, ids),
        "without padding": lambda: M.repeated_gap({"input_ids": blocks, "attention_mask": (blocks > 3).long()}),
        "the tokenizer is not the model's": lambda: M.loss_on(ids + 40)(model),
        "has 32 positions": lambda: M.loss_on(torch.full((2, 40), 5))(model),
        "holds no sample": lambda: M.loss_on({"input_ids": ids, "labels": torch.full_like(ids, -100)})(model),
        "padding alone": lambda: M.loss_on({"input_ids": ids, "attention_mask": torch.zeros_like(ids)})(model),
        "meta device": lambda: M.loss_on(ids)(empty),
        "those of a classifier": lambda: M.loss_on(ids)(bert(num_labels=3)),
    }
    for says, make in cases.items():
        with pytest.raises(pt.PatterningError, match=re.escape(says)):
            make()
    with torch.no_grad():
        expected = float(M.repeated_gap(blocks)(model))
        for form in (blocks.tolist(), {"input_ids": blocks, "attention_mask": torch.ones_like(blocks)}):
            assert float(M.repeated_gap(form)(model)) == expected


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"observables": [len]}, "observables is list"),
        ({"reliability": "high"}, "reliability is 'high'"),
        ({"sampler": None}, "sampler None is no sampler"),
    ],
)
def test_settings_of_another_type_are_refused(more: dict, says: str) -> None:
    task = pt.Task(nn.Linear(2, 1), lambda model, x: model(x)[:, 0] ** 2, torch.eye(2))
    with pytest.raises(pt.PatterningError, match=says):
        pt.measure(task, **{"sampler": pt.SGLD(10, 300, 1e-4), "progress": False, **more})
