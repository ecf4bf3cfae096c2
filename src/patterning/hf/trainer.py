r"""`WeightedTrainer`: Hugging Face's `Trainer`, and its descendants, under weights.

The gradient of an optimizer step is that of

.. math:: \sum_{j} \rho_j \ell_j \,/\, N

over the N samples (tokens that count, or rows) of all its micro-batches and processes together: the `Trainer`'s own
normalisation since transformers 4.46, with ρ in the sum, and N as the `Trainer` counts it. (For models whose loss it
does not know by name, GPT-2 say, it counts the first token of each row as well: a constant factor.) ρ has mean 1 over
the data, so that weights of 1 are the plain `Trainer`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.face.own_loss import compared, cross_entropies, mean_cross_entropy
from patterning.hf.collate import RowCollator
from patterning.intervention.data_weights import Weights
from patterning.intervention.loading import WeightedRows
from patterning.intervention.row_ids import ROW_ID, refuse_no_samples

try:
    from transformers import Trainer  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise PatterningError(
        f"transformers cannot be imported ({error}): pip install 'patterning[hf]', which brings it"
    ) from None

_Trainer: Any = object if not TYPE_CHECKING else Any
LossesOf = Callable[[Any, Tensor], "Tensor | tuple[Tensor, Tensor]"]
"""(outputs of the model, labels) → losses (b,) or (b, t) in nats, or these with a mask of their shape."""


class WeightedMixin(_Trainer):
    """Training under weights, for any class made of `transformers.Trainer`: `class Mine(WeightedMixin, SFTTrainer)`.

    `weights`: one a row, or one a token. Rows of the training set are known by their ids in the column `row_column`
    (`weights.name_rows(dataset)`), which may be shuffled, filtered and split; evaluation stays unweighted. `losses`:
    what to weight; by default the cross-entropy of each label, shifted where the model shifts labels, and compared
    with the model's own loss on the first minibatch; with losses (b,) of rows of several labels, N is the number of
    rows of the whole step. `resample`: rows are drawn in proportion to ρ, and losses are
    left as they are. Token weights follow the place in the row: sample i predicts token i + 1, so rows must not be
    padded on the left. Raises `PatterningError` for what would train under other weights than these.
    """

    def __init__(
        self,
        *args: Any,
        weights: Weights,
        losses: LossesOf | None = None,
        row_column: str = ROW_ID,
        resample: bool = False,
        **kwargs: Any,
    ) -> None:
        if not isinstance(weights, Weights):
            raise PatterningError(f"weights is {type(weights).__name__}: it must be Weights (Weights.of_rows(ρ))")
        if weights.swapped is not None:
            raise PatterningError(
                "some labels of these weights are exchanged: exchange them in the data "
                "(patterning.tasks.preference.exchange), and set swapped to None"
            )
        if kwargs.get("compute_loss_func") is not None:
            raise PatterningError("compute_loss_func returns one number: give losses=, one loss a row or a token")
        if resample and weights.per_token:
            raise PatterningError("tokens of a row are not drawn apart: resample=False, or weights.by_row()")
        if not hasattr(Trainer, "get_batch_samples"):
            raise PatterningError("this transformers does not count samples over micro-batches: 4.46 or later does")
        self.weights, self.row_column, self.resample = weights, row_column, resample
        self._given, self._shifts = losses, None
        self._rows: Any = None
        self._step_rows: Any = None
        self._weighted = self._training = self._drawn = False
        """Whether the last loss was weighted, a training step goes on, and rows are drawn by their weights."""
        super().__init__(*args, **kwargs)
        self._check_settings()
        self.data_collator = RowCollator(self.data_collator, row_column)
        if not resample:
            self.compute_loss_func = self._weighted_loss

    def _check_settings(self) -> None:
        args: Any = self.args
        if args.n_gpu > 1:
            raise PatterningError("nn.DataParallel splits minibatches from their row ids: start with torchrun instead")
        if args.world_size > 1 and not getattr(args, "average_tokens_across_devices", False):
            raise PatterningError(
                f"each of {args.world_size} processes would divide by its own number of samples, so that rows in short "
                "company would count more: set average_tokens_across_devices=True"
            )
        if args.label_smoothing_factor:
            raise PatterningError("label smoothing is not weighted: set label_smoothing_factor to 0, or give losses=")
        columns = getattr(self.train_dataset, "column_names", None)
        if columns is not None and self.row_column not in columns:
            raise PatterningError(
                f"the training set has no column {self.row_column!r}: give weights.name_rows(dataset), before it is "
                "shuffled or split (packing drops it as well: turn it off)"
            )
        if self.resample and self.train_dataset is not None and not hasattr(self.train_dataset, "__len__"):
            raise PatterningError(
                f"rows of a stream ({type(self.train_dataset).__name__}) cannot be drawn by their weights: give a data "
                "set with a length, or resample=False, which weighs the losses"
            )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.row_column not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, self.row_column]

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        if not self.resample:
            return super()._get_train_sampler(*args, **kwargs)
        dataset = next(iter((*args, *kwargs.values())), None)
        dataset = self.train_dataset if dataset is None else dataset
        rows = dataset[self.row_column] if hasattr(dataset, "column_names") else [
            dataset[i][self.row_column] for i in range(len(dataset))
        ]  # fmt: skip
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._drawn = True
        return WeightedRows(self.weights.of(list(rows)), seed)

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Keep the row ids from the model, in training and in evaluation."""
        self._rows = inputs.pop(self.row_column, None) if hasattr(inputs, "pop") else None
        return super()._prepare_inputs(inputs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of an optimizer step, with the number of their rows kept."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        try:
            rows = torch.tensor(sum(len(batch[self.row_column]) for batch in batches))
        except (KeyError, TypeError, IndexError):  # said where the loss is computed
            self._step_rows = None
            return batches, count
        settings: Any = self.args
        if settings.average_tokens_across_devices and settings.world_size > 1:
            rows = self.accelerator.gather(rows.to(settings.device)).sum()
        self._step_rows = rows
        return batches, count

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """One micro-batch; raises `PatterningError` where it would be trained on without its weights."""
        if self.resample and not self._drawn:
            raise PatterningError(
                "rows are not drawn by their weights, as this trainer makes a data loader of its own: give "
                "resample=False, which weighs the losses"
            )
        self._training, self._weighted = True, False
        try:
            loss = super().training_step(*args, **kwargs)
        finally:
            self._training = False
        self._check_weighted()
        return loss

    def _check_weighted(self) -> None:
        if not self.resample and not self._weighted:
            raise PatterningError(
                f"{type(self).__name__} computes a loss of its own, to which weights do not come (its compute_loss "
                "calls neither compute_loss_func nor super().compute_loss): train by plain Trainer with losses=, one "
                "loss a row, or give resample=True, which leaves losses as they are"
            )

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss of a micro-batch: weighted in training, plain in evaluation."""
        self._rows = inputs.pop(self.row_column, self._rows)
        weighted, above = self.compute_loss_func, super()
        if (model.training or self._training) and weighted is not None:
            self._weighted = False
            self._check_batch(model, inputs)
            loss = above.compute_loss(model, inputs, *args, **kwargs)
            self._check_weighted()
            return loss
        self.compute_loss_func = None
        try:
            return above.compute_loss(model, inputs, *args, **kwargs)
        finally:
            self.compute_loss_func = weighted

    def _check_batch(self, model: Any, inputs: Any) -> None:
        if self._rows is None:
            raise PatterningError(
                f"a minibatch has no {self.row_column!r}: give weights.name_rows(dataset) as the training set, and "
                "keep the collator of this trainer"
            )
        if "labels" not in inputs:
            raise PatterningError("a minibatch has no labels: the collator must make them (mlm=False, say)")
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and "decoder_input_ids" not in inputs:
            raise PatterningError(
                f"{type(model).__name__} makes the decoder's input of the labels, which are held back here: let the "
                "collator add decoder_input_ids (DataCollatorForSeq2Seq(tokenizer, model=model) does)"
            )
        mask = inputs.get("attention_mask")
        if self.weights.per_token and mask is not None and not bool(mask[:, 0].all()):
            raise PatterningError("rows are padded on the left: token weights need tokenizer.padding_side = 'right'")
        if self._given is None and self._shifts is None:
            self._shifts = _shifts_labels(model, inputs)

    def _weighted_loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Σ ρ ℓ over the micro-batch / the samples of the whole step, or the rows where losses are of rows."""
        self._weighted = True
        if self._given is None:
            found = cross_entropies(outputs, labels, bool(self._shifts))
        else:
            found = self._given(outputs, labels)
        losses, mask = _checked(found, labels)
        rho = self._rho(losses, mask)
        total = torch.where(mask.bool(), rho * losses, 0.0).sum()
        if losses.ndim == 1 and labels.ndim > 1 and num_items_in_batch is not None:
            num_items_in_batch = self._step_rows  # the Trainer counts labels
        count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return total / (count.to(total.device) if isinstance(count, Tensor) else count)

    def _rho(self, losses: Tensor, mask: Tensor) -> Tensor:
        """ρ of each loss, shaped like `losses` or (b, 1)."""
        rho = torch.from_numpy(self.weights.of(self._rows)).to(losses)
        if len(rho) != len(losses):
            raise PatterningError(f"{len(losses)} rows of losses for {len(rho)} row ids: packed rows have no weights")
        if rho.ndim == 1:
            return rho.reshape(-1, *[1] * (losses.ndim - 1))
        if losses.ndim == 1:
            raise PatterningError("these weights are of tokens, and the loss is of rows: use weights.by_row()")
        known, width = rho.shape[1], losses.shape[1]
        if known < width and bool(mask[:, known:].any()):
            raise PatterningError(f"rows hold up to {width} samples, and the weights {known} a row")
        refuse_no_samples(self.weights.base_weights[self.weights.places(self._rows)], mask.bool())
        return F.pad(rho, (0, max(0, width - known)), value=1.0)[:, :width]


class WeightedTrainer(WeightedMixin, Trainer):
    """`transformers.Trainer` under `weights=` (see `WeightedMixin`); all else is as there."""


def _checked(found: object, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and their mask, of one shape; raises `PatterningError` for anything else."""
    losses, mask = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(losses, Tensor) or losses.ndim not in (1, 2) or len(losses) != len(labels):
        what = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise PatterningError(
            f"losses= returned {what} for {len(labels)} rows: it must return one loss a row (b,), or a token (b, t), "
            "or a pair of these and their mask"
        )
    if mask is None:
        return losses, torch.ones_like(losses, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape != losses.shape:
        what = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise PatterningError(
            f"the mask of losses= is {what}: it must have the shape of the losses {tuple(losses.shape)}"
        )
    return losses, mask


def _shifts_labels(model: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether the model's own loss is the cross-entropy of shifted labels, or of labels as they stand.

    Raises `PatterningError` where it is neither. Without dropout: no random number is drawn.
    """
    labels = inputs["labels"]
    readings = (True, False) if labels.ndim > 1 else (False,)
    found = compared(
        getattr(model, "_orig_mod", model), inputs,
        {shift: partial(mean_cross_entropy, shift=shift) for shift in readings},
    )  # fmt: skip
    if found is None:
        raise PatterningError("the model returns no loss of its own to compare with: give losses=")
    for shift in readings:
        if found.agrees(shift):
            return shift
    raise PatterningError(
        f"the model's own loss, {found.own[0]:.4g}, is not the mean cross-entropy of its labels: give losses=, a "
        "function of (outputs, labels) that returns one loss a row or a token"
    )
