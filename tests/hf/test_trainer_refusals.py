"""What would train unweighted, or under another size, behind Hugging Face's Trainer: weighted as said, or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
pytest.importorskip("datasets")
pytest.importorskip("accelerate")

from transformers import GPT2LMHeadModel, T5Config, T5ForConditionalGeneration, Trainer

import patterning as pt
from patterning.hf import WeightedMixin, WeightedTrainer

from .test_weighted_trainer import ROWS, VOCABULARY, gpt2, pad, row_weights, settings, texts, trained

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and accelerate, about themselves


class Theirs(Trainer):
    """A loss of its own, as trainers of class weights, rewards and preferences have."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        outputs = model(**{name: values for name, values in inputs.items() if name != "row_id"})
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class Behind(WeightedMixin, Theirs):
    """The mixin in front of them."""


class InFront(Theirs, WeightedTrainer):
    """Their loss in front of the mixin's."""


def trainer(kind: Any = WeightedTrainer, model: Any = None, **more: Any) -> Any:
    weights = more.pop("weights", row_weights())
    usual = {"train_dataset": weights.name_rows(texts()), "data_collator": pad, "weights": weights}
    return kind(model or gpt2(), **{"args": more.pop("args"), **usual, **more})


def test_a_trainer_whose_own_loss_weights_do_not_reach_is_refused(tmp_path: Path) -> None:
    before = gpt2()
    behind, in_front = (trainer(kind, args=settings(tmp_path)) for kind in (Behind, InFront))
    for one in (behind, in_front):
        with pytest.raises(pt.PatterningError, match="to which weights do not come"):
            one.train()
    late = trainer(args=settings(tmp_path))
    late.compute_loss = lambda model, inputs, *_, **__: model(**inputs).loss
    with pytest.raises(pt.PatterningError, match="to which weights do not come"):
        late.train()
    for one in (behind, in_front, late):  # not a single step was made
        for p, q in zip(one.model.parameters(), before.parameters(), strict=True):
            assert torch.equal(p, q)
    trainer(Behind, args=settings(tmp_path, max_steps=1), resample=True).train()  # drawn, whatever the loss


def test_a_loss_that_is_only_looked_at_on_its_way_stays_weighted(tmp_path: Path) -> None:
    seen = list[float]()

    class Logs(WeightedTrainer):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            loss = super().compute_loss(model, inputs, *rest, **more)
            seen.append(float((loss[0] if isinstance(loss, tuple) else loss).detach()))
            return loss

    plain, logged = (trained(trainer(kind, args=settings(tmp_path)))[0] for kind in (WeightedTrainer, Logs))
    assert torch.equal(plain, logged)
    assert seen


def test_a_stream_is_not_drawn_by_weights(tmp_path: Path) -> None:
    stream = row_weights().name_rows(texts()).to_iterable_dataset()
    with pytest.raises(pt.PatterningError, match="cannot be drawn by their weights"):
        trainer(args=settings(tmp_path), train_dataset=stream, resample=True)

    class Loader(WeightedTrainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(self.train_dataset, 4, collate_fn=self.data_collator)

    with pytest.raises(pt.PatterningError, match="makes a data loader of its own"):
        trainer(Loader, args=settings(tmp_path), resample=True).train()


def test_losses_of_rows_are_divided_by_the_rows_of_the_step(tmp_path: Path) -> None:
    weights = row_weights()

    def by_row(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        losses = F.cross_entropy(outputs.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
        return losses.sum(1) / (labels[:, 1:] != -100).sum(1)

    def run(batch: int, steps: int) -> torch.Tensor:
        given = settings(
            tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=steps, max_steps=1, learning_rate=1
        )
        return trained(trainer(args=given, weights=weights, losses=by_row))[0]

    model, total = gpt2(), torch.tensor(0.0)
    for rho, tokens in zip(weights.rho, texts()["input_ids"], strict=True):
        ids = torch.tensor(tokens)
        total = total + float(rho) * F.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:])
    (total / ROWS).backward()
    expected = torch.cat([(p - p.grad).detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(run(ROWS, 1), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(run(4, 6), expected, rtol=0, atol=1e-6)


def test_losses_and_masks_of_other_shapes_are_refused(tmp_path: Path) -> None:
    cases = {
        "one loss a row": lambda outputs, _: outputs.logits.mean(),
        "must have the shape of the losses": lambda outputs, _: (outputs.logits.mean((1, 2)), torch.ones(3, 2)),
    }
    for message, losses in cases.items():
        with pytest.raises(pt.PatterningError, match=message):
            trainer(args=settings(tmp_path), losses=losses).train()


class ClassWeighted(GPT2LMHeadModel):
    """Cross-entropy with class weights, which is the plain one where all tokens are equally likely."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **more: Any) -> Any:
        found = super().forward(input_ids=input_ids, attention_mask=attention_mask, **more)
        if labels is not None:
            heavy = torch.ones(VOCABULARY)
            heavy[:5] = 20
            found["loss"] = F.cross_entropy(found.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), weight=heavy)
        return found


def test_a_loss_with_class_weights_is_seen_at_the_start_of_training(tmp_path: Path) -> None:
    model = ClassWeighted(gpt2().config)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.01)
    with pytest.raises(pt.PatterningError, match="is not the mean cross-entropy"):
        trainer(model=model, args=settings(tmp_path)).train()
    with pytest.raises(pt.PatterningError, match="is not their mean cross-entropy"):
        pt.language_task(model, texts())


def test_a_token_that_is_no_sample_of_the_weights_is_refused(tmp_path: Path) -> None:
    lengths = np.array([len(row) for row in texts()["input_ids"]])
    mask = np.arange(8) < lengths[:, None] - 1
    moved = np.stack([np.roll(row, 8 - (size - 1)) for row, size in zip(mask, lengths, strict=True)])
    weights = pt.Weights.of_rows(np.ones(mask.shape), base_weights=moved)  # made of rows padded on the left
    with pytest.raises(pt.PatterningError, match="no sample to the weights"):
        trainer(args=settings(tmp_path), weights=weights).train()


def test_an_encoder_with_a_decoder_is_told_to_make_the_decoders_input(tmp_path: Path) -> None:
    sizes = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0))
    with pytest.raises(pt.PatterningError, match=r"held back here: let the collator add decoder_input_ids"):
        trainer(model=model, args=settings(tmp_path)).train()
