"""Hugging Face's Trainer under weights: the same bits where weights are 1, one loss however it is cut into batches."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")
pytest.importorskip("accelerate")

from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

import patterning as pt  # noqa: E402
from patterning.hf import RowCollator, WeightedMixin, WeightedTrainer  # noqa: E402
from patterning.intervention.row_ids import ROW_ID  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and accelerate, about themselves

ROWS, LENGTH, VOCABULARY = 24, 9, 13
LENGTHS = [3 + row % 7 for row in range(ROWS)]


def gpt2(dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=1, n_head=2,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def texts() -> Any:
    rng = np.random.default_rng(0)
    return datasets.Dataset.from_dict({"input_ids": [rng.integers(1, VOCABULARY, k).tolist() for k in LENGTHS]})


def pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """On the right; labels of padding are ignored."""
    tokens = [torch.as_tensor(row["input_ids"]) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def settings(folder: Path, **more: Any) -> TrainingArguments:
    given = {
        "per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": 0.05, "report_to": "none", "seed": 3,
        "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "use_cpu": True, "optim": "sgd",
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **given | more)


def trained(trainer: Trainer) -> tuple[torch.Tensor, list[float]]:
    trainer.train()
    row = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return row, [log["loss"] for log in trainer.state.log_history if "loss" in log]


def counted(trainer: Trainer) -> int:
    """Samples as the Trainer counts them: for a model whose loss it does not know by name, first tokens as well."""
    shifted = getattr(trainer, "_loss_shifts_labels", False)
    return sum(LENGTHS) - (ROWS if shifted else 0)


def row_weights() -> pt.Weights:
    return pt.Weights.of_rows(np.linspace(0.0, 2.0, ROWS))


def test_weights_of_one_are_the_plain_trainer_bit_for_bit(tmp_path: Path) -> None:
    ones = pt.Weights.of_rows(np.ones(ROWS))
    given = settings(tmp_path, gradient_accumulation_steps=2)
    plain, losses = trained(Trainer(gpt2(0.1), given, train_dataset=texts(), data_collator=pad))
    weighted, same = trained(
        WeightedTrainer(gpt2(0.1), given, train_dataset=ones.name_rows(texts()), data_collator=pad, weights=ones)
    )
    assert torch.equal(plain, weighted)
    np.testing.assert_allclose(same, losses, rtol=1e-6)
    other, _ = trained(
        WeightedTrainer(
            gpt2(0.1), given, train_dataset=ones.name_rows(texts()), data_collator=pad, weights=row_weights()
        )
    )
    assert not torch.allclose(plain, other, atol=1e-4)


@pytest.mark.parametrize("per_token", [False, True])
def test_micro_batches_are_one_big_batch_and_both_are_the_formula(tmp_path: Path, per_token: bool) -> None:
    rng = np.random.default_rng(1)
    mask = np.arange(LENGTH - 1) < np.array(LENGTHS)[:, None] - 1
    rho = rng.uniform(0, 2, (ROWS, LENGTH - 1)) if per_token else np.linspace(0.0, 2.0, ROWS)
    weights = pt.Weights.of_rows(rho, base_weights=mask if per_token else mask.sum(1))
    data = weights.name_rows(texts()).shuffle(seed=4)

    def of(batch: int, steps: int) -> Trainer:
        given = settings(
            tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=steps, max_steps=1,
            learning_rate=1.0,
        )  # fmt: skip
        return WeightedTrainer(gpt2(), given, train_dataset=data, data_collator=pad, weights=weights)

    whole = of(ROWS, 1)
    big, _ = trained(whole)
    for batch, steps in ((2, 12), (8, 3)):  # unequal lengths: micro-batches hold unequal numbers of tokens
        torch.testing.assert_close(trained(of(batch, steps))[0], big, rtol=0, atol=1e-6)
    model = gpt2()
    total = torch.tensor(0.0)
    for row, tokens in enumerate(texts()["input_ids"]):  # each row by itself, in its place
        ids = torch.tensor(tokens)
        losses = F.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
        own = weights.rho[row] if not per_token else weights.rho[row, : len(losses)]
        total = total + (torch.as_tensor(own, dtype=torch.float32) * losses).sum()
    (total / counted(whole)).backward()
    expected = torch.cat([(p - p.grad).detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(big, expected, rtol=0, atol=1e-6)


def test_rows_of_other_models_and_text_ids(tmp_path: Path) -> None:
    names = [f"row-{i}" for i in range(ROWS)]
    weights = pt.Weights.of_rows(np.linspace(0.0, 2.0, ROWS), ids=names)
    data = texts().add_column("label", [row % 3 for row in range(ROWS)])

    def classifier() -> BertForSequenceClassification:
        torch.manual_seed(0)
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3,
            )
        )  # fmt: skip

    def labelled(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return pad(rows) | {"labels": torch.tensor([row["label"] for row in rows])}

    given = settings(tmp_path, per_device_train_batch_size=ROWS, max_steps=1, learning_rate=1.0)
    found, _ = trained(
        WeightedTrainer(
            classifier(), given, train_dataset=weights.name_rows(data).shuffle(seed=1), data_collator=labelled,
            weights=weights,
        )
    )  # fmt: skip
    model, batch = classifier(), labelled(list(data))
    labels = batch.pop("labels")
    losses = F.cross_entropy(model(**batch).logits, labels, reduction="none")
    weights.loss(losses, names).backward()
    expected = torch.cat([(p if p.grad is None else p - p.grad).detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_resampling_draws_what_weighs_more_and_leaves_losses_alone(tmp_path: Path) -> None:
    weights = pt.Weights.of_rows([3.0, 0.0, *[1.0] * (ROWS - 2)])
    data = weights.name_rows(texts()).shuffle(seed=2)
    trainer = WeightedTrainer(
        gpt2(), settings(tmp_path), train_dataset=data, data_collator=pad, weights=weights, resample=True
    )
    drawn = [row for batch in trainer.get_train_dataloader() for row in batch["row_id"].tolist()]
    assert len(drawn) == ROWS
    assert 1 not in drawn
    assert drawn.count(0) in (2, 3, 4)
    assert trainer.compute_loss_func is None
    trainer.train()


def test_evaluation_is_unweighted_and_needs_no_ids(tmp_path: Path) -> None:
    weights = row_weights()
    given = settings(tmp_path, per_device_eval_batch_size=ROWS)
    plain = Trainer(gpt2(), given, data_collator=pad).evaluate(texts())["eval_loss"]
    trainer = WeightedTrainer(
        gpt2(), given, train_dataset=weights.name_rows(texts()), data_collator=pad, weights=weights
    )
    assert trainer.evaluate(texts())["eval_loss"] == pytest.approx(plain, rel=1e-6)
    assert trainer.evaluate(weights.name_rows(texts()))["eval_loss"] == pytest.approx(plain, rel=1e-6)


class Squared(GPT2LMHeadModel):
    """A loss that is no cross-entropy."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = super().forward(*args, **kwargs)
        if found.loss is not None:
            found["loss"] = found.loss**2
        return found


def test_what_would_train_under_other_weights_is_refused(tmp_path: Path) -> None:
    weights, given = row_weights(), settings(tmp_path)
    data = weights.name_rows(texts())

    def trainer(model: Any = None, **more: Any) -> WeightedTrainer:
        usual = {"train_dataset": data, "data_collator": pad, "weights": weights}
        return WeightedTrainer(model or gpt2(), more.pop("args", given), **usual | more)

    for message, more in (
        ("no column 'row_id'", {"train_dataset": texts()}),
        ("it must be Weights", {"weights": np.ones(ROWS)}),
        ("give losses=", {"compute_loss_func": lambda *_: 0.0}),
        ("not drawn apart", {"weights": pt.Weights.of_rows(np.ones((ROWS, 8))), "resample": True}),
        ("label smoothing", {"args": settings(tmp_path, label_smoothing_factor=0.1)}),
        ("labels of these weights are exchanged", {"weights": pt.Weights(
            weights.rho, weights.ids, weights.base_weights, weights.free, swapped=np.arange(ROWS) == 1)}),
    ):  # fmt: skip
        with pytest.raises(pt.PatterningError, match=message):
            trainer(**more)
    with pytest.raises(pt.PatterningError, match=r"hold up to . samples, and the weights 2 a row"):
        trainer(weights=pt.Weights.of_rows(np.ones((ROWS, 2)))).train()
    with pytest.raises(pt.PatterningError, match=r"know no row|numbers from 0 to 3"):
        trainer(weights=pt.Weights.of_rows(np.ones(4))).train()
    model = Squared(gpt2().config)  # its arguments are *args and **kwargs
    with pytest.raises(pt.PatterningError, match="remove_unused_columns=False"):
        trainer(model).train()
    with pytest.raises(pt.PatterningError, match="is not the mean cross-entropy"):
        trainer(model, args=settings(tmp_path, remove_unused_columns=False)).train()

    def left(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: values.flip(1) for name, values in pad(rows).items()}

    with pytest.raises(pt.PatterningError, match="padded on the left"):
        trainer(weights=pt.Weights.of_rows(np.ones((ROWS, 8))), data_collator=left).train()

    def sorted_by_length(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return pad(sorted(rows, key=lambda row: len(row["input_ids"])))

    with pytest.raises(pt.PatterningError, match="changes the order of the rows in a minibatch"):
        trainer(weights=pt.Weights.of_rows(np.ones(ROWS)), data_collator=sorted_by_length).train()

    def labels_exchanged(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "x": torch.tensor([row["x"] for row in rows]),
            "labels": torch.tensor([1 - row["labels"] for row in rows]),
        }

    pairs = [{"x": [1.0 * i, 2.0], "labels": i % 2, ROW_ID: i} for i in range(4)]
    assert RowCollator(labels_exchanged)(pairs)[ROW_ID].tolist() == [0, 1, 2, 3]
    with pytest.raises(pt.PatterningError, match="packed together"):
        RowCollator(lambda rows: {"input_ids": torch.zeros(1, 9)})([data[0], data[1]])


def test_the_mix_in_serves_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    weights = pt.Weights.of_rows(np.linspace(0.0, 2.0, ROWS), base_weights=np.array(LENGTHS) - 1)
    data = texts().add_column("labels", texts()["input_ids"])

    class WeightedSFT(WeightedMixin, trl.SFTTrainer):
        pass

    def run(batch: int, steps: int, **more: Any) -> torch.Tensor:
        config = trl.SFTConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=batch, gradient_accumulation_steps=steps, max_steps=1,
            learning_rate=1.0, report_to="none", use_cpu=True, optim="sgd", lr_scheduler_type="constant", bf16=False,
            max_grad_norm=0.0, disable_tqdm=True, save_strategy="no", gradient_checkpointing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        return trained(WeightedSFT(
            gpt2(), config, train_dataset=weights.name_rows(data).shuffle(seed=1), data_collator=pad, weights=weights,
            processing_class=tokenizer(),
        ))[0]  # fmt: skip

    given = settings(tmp_path, per_device_train_batch_size=ROWS, max_steps=1, learning_rate=1.0)
    expected, _ = trained(
        WeightedTrainer(gpt2(), given, train_dataset=weights.name_rows(data), data_collator=pad, weights=weights)
    )
    torch.testing.assert_close(run(ROWS, 1), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(run(4, 6), expected, rtol=0, atol=1e-6)


def tokenizer() -> Any:
    """A whole tokenizer of numbers, for trainers that insist on one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="0")


def test_importing_the_package_imports_no_transformers() -> None:
    code = "import sys, patterning as pt; pt.Weights; pt.hf; assert not {'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
