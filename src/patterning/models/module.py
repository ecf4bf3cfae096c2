"""Any `torch.nn.Module` with any per-sample loss as a `Task`: the way in for a user's own model and checkpoint."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from patterning.errors import PatterningError
from patterning.rng import Stream, generator
from patterning.tasks.base import LossesFn

LossFn = Callable[[Tensor, Tensor], Tensor]
"""(outputs (b, ...), targets (b, ...)) → losses (b,) in nats, e.g. `cross_entropy` with `reduction="none"`."""

DRAWS_PER_SAMPLE = 16
"""Most draws for each sample in an epoch, on average: how finely `draws` follows uneven base weights."""


class ModuleTask:
    """Samples (inputs[j], targets[j]), j < n, a copy of `module` and `loss_fn`; `base_weights` (n,) default to 1/n.

    A row (P,) holds the parameters that require a gradient, in the order of `named_parameters`; frozen parameters and
    buffers stay at the module's values (the clamped coordinates of SPEC §2). The module runs in evaluation mode, in
    float32, under `torch.func.vmap` over replicas. A NaN loss is refused here, at the module's own parameters; later it
    is passed on, so that a diverged chain can be named. Raises `PatterningError` for data, losses or modules of the
    wrong kind, before anything is trained.
    """

    def __init__(
        self, module: nn.Module, loss_fn: LossFn, inputs: Tensor, targets: Tensor, base_weights: Tensor | None = None
    ) -> None:
        self.module = deepcopy(module).float().eval()
        self.loss_fn = loss_fn
        free = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self.shapes = {name: p.shape for name, p in free.items()}
        if not free:
            raise PatterningError("no parameter of the module requires a gradient: nothing can be trained or sampled")
        self._losses = self.losses_on(inputs, targets)
        n = len(inputs)
        weights = torch.ones(n) if base_weights is None else base_weights.detach().cpu()
        if weights.shape != (n,) or not bool(torch.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
            raise PatterningError(f"base_weights must be {n} finite numbers >= 0, not all 0 (got {_shape(weights)})")
        self.base_weights = weights.double() / weights.double().sum()
        self.draws = _draws(self.base_weights)
        self._try(min(n, 64))

    @property
    def num_parameters(self) -> int:
        """P."""
        return sum(shape.numel() for shape in self.shapes.values())

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
        for p, value in zip(self._matching(module), self._named(row.detach()).values(), strict=True):
            p.detach().copy_(value)
        return module

    def losses(self, flat: Tensor, index: Tensor) -> Tensor:
        """Loss in nats of samples `index` (r, b) under parameters `flat` (r, P): (r, b)."""
        return self._losses(flat, index)

    def losses_on(self, inputs: Tensor, targets: Tensor) -> LossesFn:
        """Per-sample losses `(flat (r, P), index (r, b)) → (r, b)` on any data: `losses` of a probe set."""
        if inputs.ndim == 0 or targets.ndim == 0 or not 0 < len(inputs) == len(targets):
            raise PatterningError(f"inputs {_shape(inputs)} and targets {_shape(targets)} are not n > 0 samples each")
        x = inputs.detach().float() if inputs.is_floating_point() else inputs
        y = targets.detach().float() if targets.is_floating_point() else targets

        def losses(flat: Tensor, index: Tensor) -> Tensor:
            if flat.ndim != 2 or flat.shape[1] != self.num_parameters or index.ndim != 2 or len(index) != len(flat):
                raise PatterningError(
                    f"parameters {_shape(flat)} and sample numbers {_shape(index)} are not "
                    f"(r, {self.num_parameters}) and (r, b)"
                )
            with _plain_attention(), sdpa_kernel(SDPBackend.MATH):
                return vmap(self._one)(flat, x[index], y[index])

        return losses

    def _one(self, row: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """One replica: (P,), (b, ...), (b, ...) → (b,)."""
        loss = self.loss_fn(functional_call(self.module, self._named(row), (x,)), y)
        if loss.shape != (len(x),):
            raise PatterningError(
                f"loss_fn gave shape {_shape(loss)} for {len(x)} samples: it must return one loss a sample, "
                "shape (b,) (reduction='none', then a mean over what a sample holds)"
            )
        return loss

    def _named(self, row: Tensor) -> dict[str, Tensor]:
        parts = row.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def _try(self, count: int) -> None:
        """Run two replicas on the first samples, so that a wrong shape or a NaN is found now."""
        flat, index = self.flatten(self.module).expand(2, -1), torch.arange(count).expand(2, -1)
        try:
            with torch.no_grad():
                bad = ~self.losses(flat, index)[0].isfinite()
        except PatterningError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            raise PatterningError(f"the module or loss_fn cannot run on the data under vmap: {reason}") from error
        if bool(bad.any()):
            raise PatterningError(f"the loss of sample {int(bad.nonzero()[0])} is NaN or infinite at these parameters")

    def _matching(self, module: nn.Module) -> list[nn.Parameter]:
        found = dict(module.named_parameters())
        for name, shape in self.shapes.items():
            if name not in found or found[name].shape != shape:
                there = _shape(found[name]) if name in found else "missing"
                raise PatterningError(f"parameter {name} is {there} where this task's module has {tuple(shape)}")
        return [found[name] for name in self.shapes]


@contextmanager
def _plain_attention() -> Iterator[None]:
    """PyTorch's fused inference path for attention has no rule for vmap: step around it (as for its fused kernels)."""
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
