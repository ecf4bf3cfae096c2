"""Any `torch.nn.Module` with any per-sample loss as a `Task`: the way in for a user's own model and checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from patterning.core.anchors import check_like, check_rest, given_module, matching, remember_given, row_of
from patterning.core.answers import Trial, losses_and_mask
from patterning.core.batch import Batch, as_batch, count_rows, take_rows
from patterning.core.calls import BatchLoss, WithLoss, differentiable, in_float64, no_inference_path, plain, rounded
from patterning.core.devices import DeviceLike, device_of, find_device, moved
from patterning.core.errors import PatterningError
from patterning.core.give_back import give_back
from patterning.core.identity import digest
from patterning.core.indexes import in_one_order
from patterning.core.key_losses import key_losses
from patterning.core.modules import COMPILED, copy_module, eager, fresh_module, other_names, spread
from patterning.core.outside import check_copy
from patterning.core.rng import seeds_of
from patterning.core.rows import RowSource
from patterning.core.samples import Samples, draws_of, samples_of
from patterning.core.state import keep_attributes
from patterning.core.threads import undisturbed
from patterning.core.trial import FEW_ROWS, check_base_weights, check_still_the_same, tried_losses, try_task
from patterning.core.whole_data import read_rows

Call = Callable[..., Any]
"""The module at some parameters: call it as you would call the module."""


class Task:
    """Rows of `data` (a `Batch` of n rows), a copy of `module` and a `BatchLoss`.

    `base_weights` (n,) say how often each row occurs (default: all equally often); every sample of a row carries its
    row's. `self.base_weights` are the rows' shares of L, which sum to 1: with a mask, a row of many samples has more.

    A parameter row (P,) holds the parameters that require a gradient, in the order of `named_parameters`; frozen ones
    and buffers stay at the module's values (they are clamped). The module runs in evaluation mode, in float32, and as
    many replicas at a time as `torch.func.vmap` can take (`notes` says where one runs after the other). Data go to the
    module's device; `to` moves both. `samples_per_row` is t where `loss` returns (b, t): each token of a text, say.

    `make(seed)` returns a fresh module; without it, `init` calls what the module has to initialise itself. `bfloat16`
    computes matrix products in that type (weights, sums and losses stay float32): for GPUs and wide models.

    What later stages need is tried here: shapes, a finite loss, the same twice, alone and in company, and a gradient.
    Raises `PatterningError` for data, losses or modules that cannot serve, with the remedy.
    """

    @undisturbed()
    def __init__(
        self,
        module: nn.Module,
        loss_fn: BatchLoss,
        data: object,
        base_weights: object = None,
        *,
        make: Callable[[int], nn.Module] | None = None,
        bfloat16: bool = False,
    ) -> None:
        self._compiled, module = (COMPILED,) if eager(module) is not module else (), eager(module)
        self.bfloat16 = bfloat16
        self.module = copy_module(module)
        check_copy(module, self.module)
        self.loss_fn = loss_fn
        self.make = make
        self.shapes = {name: p.shape for name, p in self.module.named_parameters() if p.requires_grad}
        if not self.shapes:
            raise PatterningError("no parameter of the module requires a gradient: nothing can be trained or sampled")
        self._other_names = other_names(self.module)
        self.data = moved(as_batch(in_one_order(data, base_weights)), self.device)
        self._frequency = check_base_weights(base_weights, count_rows(self.data))
        self._try(module)
        remember_given(self, module)

    def _try(self, original: nn.Module) -> None:
        """Find out what the loss can do, and what follows from it: the shares of L."""
        n = count_rows(self.data)
        self.trial = Trial()
        self.trial = try_task(self, original)
        self.samples_per_row = self.trial.samples_per_row
        weights, more = read_rows(self)
        self.sample_weights = None if weights is None else weights.to(self.device)
        """(n, t) float32, the weight of each sample of a row, 0 where there is none; None: all alike."""
        text = self.data.left_out if isinstance(self.data, RowSource) else ()
        if text:
            more = (*more, f"{', '.join(text)} of the data set is text, which the loss is not given")
        self.trial = replace(self.trial, notes=(*self.trial.notes, *more))
        shares = self._frequency.double() * (1.0 if weights is None else weights.double().sum(1))
        if not bool(shares.any()):
            raise PatterningError("every sample is masked: the data holds no sample")
        self.base_weights = shares / shares.sum()
        self.ids = np.arange(n)
        self.draws = draws_of(self.base_weights)
        self._tried = tried_losses(self, spread(n, FEW_ROWS))
        give_back(self.num_parameters)

    @undisturbed()
    def to(self, device: DeviceLike) -> Self:
        """The same task on another device ("cuda"): module and data are moved there, and tried again.

        Raises `PatterningError` for a device that cannot be used, and where the loss holds tensors elsewhere.
        """
        where = find_device(device)
        if where == self.device:
            return self
        other = copy(self)
        other.module = copy_module(self.module, convert=False).to(where)
        other.data = moved(self.data, where)
        other._try(self.module)
        remember_given(other, given_module(self))
        return other

    @property
    def device(self) -> torch.device:
        """Where module and data are, and everything is computed."""
        return device_of(self.module)

    @property
    def num_parameters(self) -> int:
        """P."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the task runs, a sentence each."""
        return (*self._compiled, *self.trial.notes)

    def __repr__(self) -> str:
        """Model, parameters and data."""
        what = f"{type(self.module).__name__} of {self.num_parameters:,} parameters"
        return f"Task({what}, {len(self.base_weights):,} rows × {self.samples_per_row})"

    @property
    def fingerprint(self) -> str:
        """Changes with the weights, the module, the data, the base weights and the loss.

        It covers what these hold and reach (`core.identity`), and what they give: losses of a few rows at w* and at
        other parameters.
        """
        return digest(
            self.module, self.data, self.base_weights, self.sample_weights, list(self.shapes), self.loss_fn, self.make,
            self.bfloat16, key_losses(self),
        )  # fmt: skip

    @property
    def data_fingerprint(self) -> str:
        """Changes with the rows of the data and their order, and of a parquet file with any of its bytes."""
        return digest(self.data)

    def init(self, seeds: Sequence[int]) -> Tensor:
        """Fresh parameters (r, P) float32, one row a seed, from `make`, or as the module initialises itself.

        A function of the seed alone: the global random state is left as it was. Raises `PatterningError` where the
        module does not say how; other uses of the task do not need it.
        """
        fresh = [fresh_module(self.module, self.make, seed, list(self.shapes)) for seed in seeds_of(seeds)]
        return torch.stack([row_of(module, self.shapes) for module in fresh]).to(self.device)

    def flatten(self, module: nn.Module) -> Tensor:
        """The row (P,) float32 of a (trained) module of the same architecture: a checkpoint w*.

        Raises `PatterningError` where a row cannot hold what the module is: one with other buffers, frozen parameters
        or settings than the task's.
        """
        check_like(self, eager(module))
        return row_of(eager(module), self.shapes)

    def load(self, module: nn.Module, row: Tensor) -> nn.Module:
        """Write a row (P,) into a module of the same architecture, in place, and return it."""
        if row.shape != (self.num_parameters,):
            raise PatterningError(f"the row has shape {tuple(row.shape)}: it must be ({self.num_parameters},)")
        own = matching(eager(module), self.shapes)
        check_rest(self.module, eager(module), set(self.shapes))
        for p, value in zip(own, self.named(row.detach()[None]).values(), strict=True):
            p.detach().copy_(value[0])
        return module

    def samples(self, rows: Tensor) -> Samples:
        """The samples in rows `rows` (b,), in order; rows count alike where all have base weight 0 (held-out rows).

        Raises `PatterningError` when there is none.
        """
        return samples_of(rows, self.base_weights, self.sample_weights, self.samples_per_row)

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        """Loss in nats of rows `index` (r, b) under parameters `flat` (r, P): (r, b), the mean over a row's samples."""
        return self.row_means(self.sample_losses(flat, index), index)

    def row_means(self, losses: Tensor, index: Tensor) -> Tensor:
        """The weighted mean (r, b) of each row's samples, of `losses` (r, b·t) in rows `index` (r, b).

        A row whose samples are all masked has 0, and no weight.
        """
        if self.samples_per_row == 1:
            return losses
        cells = losses.unflatten(1, (index.shape[1], -1))
        if self.sample_weights is None:
            return cells.mean(2)
        own = self.sample_weights[index.to(self.sample_weights.device)].to(cells)
        return (cells * own).sum(2) / own.sum(2).clamp(min=torch.finfo(own.dtype).tiny)

    def sample_losses(self, flat: Tensor, index: Tensor) -> Tensor:
        """Loss of every sample in rows `index` (r, b) under parameters `flat` (r, P): (r, b·t), row by row.

        0 where there is no sample.
        """
        return self.run(self._checked(flat, index), self.data, index)

    def run(
        self,
        varied: Mapping[str, Tensor],
        data: Batch,
        index: Tensor,
        module: nn.Module | None = None,
        one_by_one: bool = False,
    ) -> Tensor:
        """Losses (r, b·t) of rows `index` of `data`: parameters `varied` (r, *shape) stand in for the module's own.

        `module` stands in for the task's, with its own names of parameters. `one_by_one`: replicas take turns,
        which is faster where one alone fills the device and they share no work.
        """
        called = self.module if module is None else module
        shared = len(index) == 1 or index.stride(0) == 0  # one minibatch for all replicas: computed unbatched
        rows = index[0] if shared else index
        names = [(name, self.all_names(name)) for name in varied]
        together = self.trial.vectorise == "rows" or (self.trial.vectorise == "parameters" and shared)
        with_loss, device = WithLoss(called, self.loss_fn), next(iter(varied.values())).device.type

        def one(parameters: dict[str, Tensor], own: Batch) -> Tensor:
            named = {other: parameters[name] for name, others in names for other in others}
            with (
                keep_attributes(called, self.trial.changing),
                rounded(device, self.bfloat16),
                differentiable(self.trial.differentiates),
            ):
                answer = with_loss.at(named, own)
            losses, mask = losses_and_mask(answer, index.shape[1], self.trial.samples_per_row)
            return (plain(losses) if mask is None else torch.where(mask > 0, plain(losses), 0.0)).flatten()

        # Fused attention, twice as fast on a CPU, has no rule for vmap and no second derivative.
        fused = one_by_one and not torch.is_grad_enabled()
        with no_inference_path(), nullcontext() if fused else sdpa_kernel(SDPBackend.MATH):
            if one_by_one or not together:
                count = len(next(iter(varied.values())))
                own = [{name: values[c] for name, values in varied.items()} for c in range(count)]
                # each its own copy of its rows: a call may write into its batch
                return torch.stack([one(own[c], take_rows(data, rows if shared else rows[c])) for c in range(count)])
            return vmap(one, in_dims=(0, None if shared else 0))(dict(varied), take_rows(data, rows))

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Named views (r, *shape) of rows (r, P)."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()], dim=1)
        return {
            name: part.reshape(len(flat), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def all_names(self, name: str) -> tuple[str, ...]:
        """A parameter's name, and those it has in other modules (tied weights)."""
        return (name, *self._other_names.get(name, ()))

    def own_row(self) -> Tensor:
        """The row (P,) of the task's own module: the checkpoint it was made with."""
        return self.flatten(self.module)

    def answer(
        self,
        rows: Tensor,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        module: nn.Module | None = None,
        batch: Batch = None,
        exact: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """What the loss returns for `rows` (b,) at the module's own (or these) parameters: losses and their mask.

        `module` stands in for the task's, `batch` for the rows' data; `exact` computes in float64.
        """
        called = self.module if module is None else module
        own = {} if parameters is None else parameters
        named = {other: own[name] for name in own for other in self.all_names(name)}
        batch = take_rows(self.data, rows) if batch is None else batch
        if exact:
            named, batch = in_float64(called, named, batch)
        with keep_attributes(called, self.trial.changing), no_inference_path(), sdpa_kernel(SDPBackend.MATH):
            with differentiable(self.trial.differentiates):
                answer = WithLoss(called, self.loss_fn).at(named, batch)
            losses, mask = losses_and_mask(answer, len(rows), self.trial.samples_per_row)
            return plain(losses), mask

    def check_still_the_same(self) -> None:
        """Raise `PatterningError` if the losses at w* are not what they were when the task was made.

        They are where the loss keeps a state that calls change (a counter, a cache, an average): what was computed in
        between is no result then. It takes one forward pass.
        """
        check_still_the_same(self, *self._tried)

    def _checked(self, flat: Tensor, index: Tensor) -> dict[str, Tensor]:
        if flat.ndim != 2 or flat.shape[1] != self.num_parameters or index.ndim != 2 or len(index) != len(flat):
            raise PatterningError(
                f"parameters {tuple(flat.shape)} and sample numbers {tuple(index.shape)} are not "
                f"(r, {self.num_parameters}) and (r, b)"
            )
        return self.named(flat)
