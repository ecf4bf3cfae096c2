"""Any `torch.nn.Module` with any per-sample loss as a `Task`: the way in for a user's own model and checkpoint."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from patterning.errors import PatterningError
from patterning.rng import Stream, generator
from patterning.store import fingerprint
from patterning.tasks.base import LossesFn

Batch = Any
"""A tensor (b, ...), or a tuple, list or dict of them (nested as you like) with one leading axis."""
Call = Callable[..., Any]
"""The module at some parameters: call it as you would call the module."""
BatchLoss = Callable[[Call, Batch], Tensor]
"""(call, batch) → losses in nats: (b,), one a row, or (b, t), one for each of the t samples that a row holds."""
LossFn = Callable[[Tensor, Tensor], Tensor]
"""(outputs (b, ...), targets (b, ...)) → losses (b,) in nats, e.g. `cross_entropy` with `reduction="none"`."""

DRAWS_PER_SAMPLE = 16
"""Most draws for each sample in an epoch, on average: how finely `draws` follows uneven base weights."""


class LossTask:
    """Rows of `data` (a `Batch` of n rows), a copy of `module` and a `BatchLoss`; `base_weights` (n,) default to 1/n.

    A parameter row (P,) holds the parameters that require a gradient, in the order of `named_parameters`; frozen ones
    and buffers stay at the module's values (the clamped coordinates of SPEC §2). The module runs in evaluation mode, in
    float32, under `torch.func.vmap` over replicas; what is the same for all of them (`index` expanded from one row,
    layers below the parameters that differ) is computed once. `samples_per_row` is t where `loss_fn` returns (b, t):
    each token of a text, say. `bfloat16` computes matrix products in that type (weights, sums and losses stay float32):
    for GPUs and wide models. A NaN loss is refused here, at the module's own parameters; later it is passed on, so
    that a diverged chain can be named. Raises `PatterningError` for data, losses or modules of the wrong kind.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: BatchLoss,
        data: Batch,
        base_weights: Tensor | None = None,
        *,
        bfloat16: bool = False,
    ) -> None:
        self.bfloat16 = bfloat16
        self.module = deepcopy(module).float().eval()
        self.loss_fn = loss_fn
        free = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self.shapes = {name: p.shape for name, p in free.items()}
        names = [len(list(self.module.named_parameters(remove_duplicate=once))) for once in (True, False)]
        self._tied = names[0] < names[1]
        if not free:
            raise PatterningError("no parameter of the module requires a gradient: nothing can be trained or sampled")
        self.data = _as_float(data)
        n = count_rows(self.data)
        weights = torch.ones(n) if base_weights is None else base_weights.detach().cpu()
        if weights.shape != (n,) or not bool(torch.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
            raise PatterningError(f"base_weights must be {n} finite numbers >= 0, not all 0 (got {_shape(weights)})")
        self.base_weights = weights.double() / weights.double().sum()
        self.draws = _draws(self.base_weights)
        self.samples_per_row = self._try(min(n, 64))

    @property
    def num_parameters(self) -> int:
        """P."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def fingerprint(self) -> str:
        """Changes with the weights, buffers, data, base weights, the module's structure and the loss function."""
        state = {name: value.detach().cpu().numpy() for name, value in self.module.state_dict().items()}
        data = [leaf.cpu().numpy() for leaf in _leaves(self.data)]
        structure = [repr(self.module), sorted({describe_code(type(part)) for part in self.module.modules()})]
        return fingerprint(
            state, *data, self.base_weights.numpy(), list(self.shapes), structure, describe_code(self.loss_fn),
            self.bfloat16,
        )  # fmt: skip

    def init(self, seeds: Sequence[int]) -> Tensor:
        """Fresh parameters (r, P) float32 from each module's `reset_parameters`, children before their parents.

        A function of the seed alone: the global random state is left as it was. Raises `PatterningError` when some
        parameter is set by no `reset_parameters`; other uses of the task do not need one.
        """
        rows = []
        for seed in seeds:
            fresh = deepcopy(self.module).cpu()
            for p in fresh.parameters():
                p.detach().fill_(torch.nan)  # what no one resets is found by its NaN
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(int(generator(seed, Stream.INIT).integers(2**63)))
                for part in reversed(list(fresh.modules())):
                    for name in ("_reset_parameters", "reset_parameters"):  # the first is MultiheadAttention's
                        getattr(part, name, lambda: None)()
            values = dict(fresh.named_parameters())
            if unset := [name for name in self.shapes if bool(values[name].isnan().any())]:
                raise PatterningError(
                    f"{', '.join(unset[:5])}: no reset_parameters() sets these parameters, so a seed cannot; give the "
                    "module that owns them one (called without arguments)"
                )
            rows.append(self.flatten(fresh))
        return torch.stack(rows).to(next(self.module.parameters()).device)

    def flatten(self, module: nn.Module) -> Tensor:
        """The row (P,) float32 of a (trained) module of the same architecture: a checkpoint w*."""
        return torch.cat([p.detach().float().reshape(-1) for p in self._matching(module)])

    def load(self, module: nn.Module, row: Tensor) -> nn.Module:
        """Write a row (P,) into a module of the same architecture, in place, and return it."""
        if row.shape != (self.num_parameters,):
            raise PatterningError(f"the row has shape {_shape(row)}: it must be ({self.num_parameters},)")
        for p, value in zip(self._matching(module), self.named(row.detach()[None]).values(), strict=True):
            p.detach().copy_(value[0])
        return module

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        """Loss in nats of rows `index` (r, b) under parameters `flat` (r, P): (r, b), the mean where a row holds t."""
        found = self.sample_losses(flat, index)
        return found if self.samples_per_row == 1 else found.unflatten(1, (index.shape[1], -1)).mean(2)

    def sample_losses(self, flat: Tensor, index: Tensor) -> Tensor:
        """Loss of every sample in rows `index` (r, b) under parameters `flat` (r, P): (r, b·t), row by row."""
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
        batch = take_rows(data, rows)

        def one(parameters: dict[str, Tensor], own: Batch) -> Tensor:
            def call(*args: Any, **kwargs: Any) -> Any:
                return functional_call(called, parameters, args, kwargs, tie_weights=self._tied)

            with torch.autocast(index.device.type, torch.bfloat16, enabled=self.bfloat16, cache_enabled=False):
                loss = self.loss_fn(call, own)
            if loss.ndim not in (1, 2) or len(loss) != index.shape[1] or loss.numel() == 0:
                raise PatterningError(
                    f"loss_fn gave shape {_shape(loss)} for {index.shape[1]} samples: it must return one loss a "
                    "sample, shape (b,), or one for each of the t samples a row holds, shape (b, t) (reduction='none')"
                )
            return loss.flatten()

        # Fused attention, twice as fast on a CPU, has no rule for vmap and no second derivative.
        fused = one_by_one and not torch.is_grad_enabled()
        with _no_inference_path(), nullcontext() if fused else sdpa_kernel(SDPBackend.MATH):
            if one_by_one:
                count = len(next(iter(varied.values())))
                own = [{name: values[c] for name, values in varied.items()} for c in range(count)]
                return torch.stack([one(own[c], batch if shared else take_rows(data, rows[c])) for c in range(count)])
            return vmap(one, in_dims=(0, None if shared else 0))(dict(varied), batch)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Named views (r, *shape) of rows (r, P)."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()], dim=1)
        return {name: part.view(-1, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def _checked(self, flat: Tensor, index: Tensor) -> dict[str, Tensor]:
        if flat.ndim != 2 or flat.shape[1] != self.num_parameters or index.ndim != 2 or len(index) != len(flat):
            raise PatterningError(
                f"parameters {_shape(flat)} and sample numbers {_shape(index)} are not "
                f"(r, {self.num_parameters}) and (r, b)"
            )
        return self.named(flat)

    def _try(self, count: int) -> int:
        """Run two replicas on the first rows, to find a wrong shape or a NaN now; returns the samples in a row."""
        flat, index = self.flatten(self.module).expand(2, -1), torch.arange(count).expand(2, -1).contiguous()
        try:
            with torch.no_grad():
                found = self.sample_losses(flat, index)[0]
        except PatterningError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            raise PatterningError(f"the module or loss_fn cannot run on the data under vmap: {reason}") from error
        samples = len(found) // count
        if bool((bad := ~found.isfinite()).any()):
            first = int(bad.nonzero()[0])
            where = f"sample {first}" if samples == 1 else f"row {first // samples}, position {first % samples},"
            raise PatterningError(f"the loss of {where} is NaN or infinite at these parameters")
        return samples

    def _matching(self, module: nn.Module) -> list[nn.Parameter]:
        found = dict(module.named_parameters())
        for name, shape in self.shapes.items():
            if name not in found or found[name].shape != shape:
                there = _shape(found[name]) if name in found else "missing"
                raise PatterningError(f"parameter {name} is {there} where this task's module has {tuple(shape)}")
        return [found[name] for name in self.shapes]


class ModuleTask(LossTask):
    """A `LossTask` of samples (inputs[j], targets[j]) and a loss of outputs and targets: supervised learning."""

    def __init__(
        self, module: nn.Module, loss_fn: LossFn, inputs: Tensor, targets: Tensor, base_weights: Tensor | None = None
    ) -> None:
        _check_pairs(inputs, targets)
        super().__init__(module, lambda call, batch: loss_fn(call(batch[0]), batch[1]), (inputs, targets), base_weights)
        if self.samples_per_row != 1:
            raise PatterningError(
                f"loss_fn gave {self.samples_per_row} losses for a sample: it must return one loss a sample, shape "
                "(b,) (reduction='none', then a mean over what a sample holds)"
            )

    def losses_on(self, inputs: Tensor, targets: Tensor) -> LossesFn:
        """Per-sample losses `(flat (r, P), index (r, b)) → (r, b)` on any data: `losses` of a probe set."""
        _check_pairs(inputs, targets)
        data = _as_float((inputs, targets))
        return lambda flat, index: self.run(self._checked(flat, index), data, index)


@lru_cache(maxsize=1024)
def _source(what: Any) -> str:
    """Finding a class in its file takes Python tens of milliseconds."""
    return inspect.getsource(what)


def describe_code(what: Any) -> str:
    """Source text of a function or class with what a closure or `partial` holds, as far as Python can tell."""
    if isinstance(what, partial):
        return describe_code(what.func) + repr((what.args, sorted(what.keywords.items())))
    try:
        text = _source(what)
    except (OSError, TypeError):  # built in, or typed into a prompt
        code = getattr(what, "__code__", None)
        text = f"{getattr(what, '__qualname__', type(what))} {code.co_code.hex() if code else ''}"
    held = [cell.cell_contents for cell in getattr(what, "__closure__", None) or ()]
    return text + "".join(describe_code(value) if callable(value) else repr(value) for value in held)


def count_rows(data: Batch) -> int:
    """Length of the leading axis, the same in every tensor; raises `PatterningError` where it is not, or is 0."""
    sizes = {len(values) if values.ndim else 0 for values in _leaves(data)}
    if len(sizes) != 1 or not min(sizes):
        raise PatterningError(f"the data must be tensors with one leading axis of n > 0 rows (found {sorted(sizes)})")
    return sizes.pop()


def take_rows(data: Batch, rows: Tensor) -> Batch:
    """Rows of every tensor in `data`: each (n, ...) becomes (*rows.shape, ...)."""
    return _map(lambda values: values[rows.to(values.device)], data)


def _leaves(data: Batch) -> list[Tensor]:
    if isinstance(data, Tensor):
        return [data]
    if not isinstance(data, Mapping | tuple | list):
        raise PatterningError(f"data must be tensors, or tuples, lists and dicts of them (found {type(data).__name__})")
    parts = data.values() if isinstance(data, Mapping) else data
    return [leaf for part in parts for leaf in _leaves(part)]


def _map(function: Callable[[Tensor], Tensor], data: Batch) -> Batch:
    if isinstance(data, Tensor):
        return function(data)
    if isinstance(data, Mapping):
        return {key: _map(function, part) for key, part in data.items()}
    return tuple(_map(function, part) for part in data)


def _as_float(data: Batch) -> Batch:
    _leaves(data)
    return _map(lambda x: x.detach().float() if x.is_floating_point() else x.detach(), data)


def _check_pairs(inputs: Tensor, targets: Tensor) -> None:
    if inputs.ndim == 0 or targets.ndim == 0 or not 0 < len(inputs) == len(targets):
        raise PatterningError(f"inputs {_shape(inputs)} and targets {_shape(targets)} are not n > 0 samples each")


@contextmanager
def _no_inference_path() -> Iterator[None]:
    """PyTorch's inference path of whole attention layers has no rule for vmap, and is left where a module has hooks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _draws(q: Tensor) -> Tensor:
    """Sample numbers int64 (N,), j about N q_j times: exactly, where q is in the ratio of small whole numbers."""
    ratios = (q / q[q > 0].min()).numpy()
    whole = np.allclose(ratios, ratios.round(), rtol=0, atol=1e-4) and ratios.sum() <= DRAWS_PER_SAMPLE * len(q)
    count = round(ratios.sum()) if whole else DRAWS_PER_SAMPLE * len(q)
    points = (np.arange(count) + 0.5) / count
    return torch.from_numpy(np.minimum(np.searchsorted(np.cumsum(q.numpy()), points), len(q) - 1))


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
