"""Token-weighted training of a language model, with structure measures on the way.

A sample is one next-token prediction: the minibatch loss is the mean of ρ ℓ over its predictions, ρ scaled to mean 1
over the whole training set. Initial weights and minibatches depend on the seed alone: one seed in two arms is a pair.
One model at a time: on a CPU a single one fills a core; runs of several seeds go to several workers.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save
from torch import Tensor

from patterning.core.devices import find_device
from patterning.core.errors import PatterningError
from patterning.core.rng import Stream, generator
from patterning.core.store import fingerprint, write_whole
from patterning.models.language import LanguageConfig, LanguageModel
from patterning.training.language_loss import weighted_loss
from patterning.training.weighted import FUSED, EpochRows, normalise_weights

Measure = Callable[[LanguageModel], Mapping[str, NDArray[Any]]]
"""Arrays by name, the same at every checkpoint; it must not change the model or draw from the global generator."""

MOMENTS = ("exp_avg", "exp_avg_sq")
SAVE_EVERY = 20.0
"""Seconds between saved states of a run with a `scratch` file."""


@dataclass(frozen=True)
class LanguageTraining:
    """AdamW (decoupled weight decay, matrices only), linear warm-up to a constant rate, gradient norm clipped."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    clip: float = 1.0
    bfloat16: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        for name, floor in (("steps", 1), ("batch_size", 1), ("warmup", 0), ("weight_decay", 0)):
            if getattr(self, name) < floor:
                raise PatterningError(f"{name} is {getattr(self, name)}: it must be at least {floor}")
        for name in ("learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise PatterningError(f"{name} is {getattr(self, name)}: it must be above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise PatterningError(f"betas are {self.betas}: each must be at least 0 and below 1")

    def rate(self, step: int) -> float:
        """Learning rate of the step after `step` finished ones."""
        return self.learning_rate * min(1.0, (step + 1) / (self.warmup + 1))


@dataclass(frozen=True)
class LanguageRun:
    """`steps` (c,) at which `measures` (c, …) were taken; `kept` parameter rows (P,) by step; `final` (P,) float32."""

    steps: NDArray[np.int64]
    measures: dict[str, NDArray[Any]]
    kept: dict[int, Tensor]
    final: Tensor


@dataclass
class _Progress:
    """Where a run stands: everything that its continuation needs."""

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    measured: list[int] = field(default_factory=list)
    measures: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    kept: dict[int, Tensor] = field(default_factory=dict)


def multiplies_bfloat16() -> bool:
    """Whether this machine has units for bfloat16 products: a GPU, or a CPU with AVX512-BF16 or AMX."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.cuda.is_available() or any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def log_spaced(steps: int, count: int, first: int = 1) -> list[int]:
    """0, `first`, `steps` and whole numbers between, even in the logarithm: at most `count`, fewer where they coincide.

    Raises `PatterningError` for fewer than 2 checkpoints, or a first one that is not from 1 to `steps`.
    """
    if count < 2 or not 1 <= first <= steps:
        raise PatterningError(
            f"{count} checkpoints from {first} to {steps} steps: at least 2 are needed, the first from 1 to the last"
        )
    return [0, *sorted({round(float(step)) for step in np.geomspace(first, steps, count - 1)} | {steps})]


def init_language(config: LanguageConfig, seed: int) -> LanguageModel:
    """A fresh model: a function of the seed alone, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(generator(seed, Stream.INIT).integers(2**63)))
        return LanguageModel(config)


def flatten_language(model: LanguageModel) -> Tensor:
    """The row (P,) float32 on the CPU, in the order of `named_parameters` (that of `Task.flatten`)."""
    return torch.cat([p.detach().float().cpu().reshape(-1) for p in model.parameters()])


def load_language(config: LanguageConfig, row: Tensor) -> LanguageModel:
    """The model whose parameters are `row` (P,); raises `PatterningError` for a row of another length."""
    model = init_language(config, 0)
    sizes = [p.numel() for p in model.parameters()]
    if row.shape != (sum(sizes),):
        raise PatterningError(f"the row has shape {tuple(row.shape)}: this model has {sum(sizes)} parameters")
    for p, values in zip(model.parameters(), row.split(sizes), strict=True):
        p.detach().copy_(values.view_as(p))
    return model


def train_language(
    config: LanguageConfig,
    rows: Tensor,
    weights: Tensor | None,
    training: LanguageTraining,
    *,
    seed: int,
    checkpoints: Sequence[int],
    measure: Measure,
    keep: Sequence[int] = (),
    scratch: Path | None = None,
    device: str | torch.device = "cpu",
) -> LanguageRun:
    """Train on `rows` (n, t) of token numbers under relative weights ρ (n, t - 1) ≥ 0 of their predictions (None: 1).

    `measure` sees the model at each of `checkpoints` (finished steps; 0 is before the first); at the steps `keep` the
    parameters are kept. Minibatches are the same on every `device`, where all rows and weights lie. With `scratch`, a
    file, a killed run goes on from its last saved state to the same bits; a file of other data or settings is ignored
    and overwritten. Raises `PatterningError` for data that does not fit the
    model, for steps outside of the run, and when the parameters stop being finite.
    """
    rho, where = _check(config, rows, weights, training, checkpoints, keep), find_device(device)
    place = () if where.type == "cpu" else (where.type,)  # a device's numbers are its own
    key = _key(config, training, seed, rows, rho, checkpoints, keep, *place) if scratch else ""
    run = _resume(config, training, seed, where, scratch, key)
    batch_rows = EpochRows(torch.arange(len(rows)), [seed], training.batch_size, where)
    rows, rho = rows.to(where), rho.to(where)  # all at once: no step waits for its rows
    saved = time.monotonic()
    for step in range(run.step, training.steps + 1):
        if step > run.step:
            index = batch_rows(step - 1)[0]
            _advance(run, training, rows[index].long(), rho[index])
        if step in checkpoints and step not in run.measured:
            _require_finite(run)
            with torch.no_grad():
                run.measures.append({name: np.asarray(value) for name, value in measure(run.model).items()})
            run.measured.append(step)
        if step in keep:
            run.kept[step] = flatten_language(run.model)
        if scratch and time.monotonic() - saved > SAVE_EVERY:
            _save(run, scratch, key)
            saved = time.monotonic()
    _require_finite(run)
    names = run.measures[0] if run.measures else {}
    measures = {name: np.stack([found[name] for found in run.measures]) for name in names}
    return LanguageRun(np.array(run.measured, np.int64), measures, run.kept, flatten_language(run.model))


def _advance(run: _Progress, training: LanguageTraining, tokens: Tensor, rho: Tensor) -> None:
    """One step of AdamW on the rows `tokens` (b, t)."""
    loss = weighted_loss(run.model, tokens, rho, training.bfloat16)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), training.clip)
    for group in run.optimizer.param_groups:
        group["lr"] = training.rate(run.step)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1


def _start(config: LanguageConfig, training: LanguageTraining, seed: int, device: torch.device) -> _Progress:
    """Step 0 of a run."""
    model = init_language(config, seed).to(device)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = device.type in FUSED
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, fused=fused)
    for p in model.parameters():  # as the first step would, so that a state can be saved before it
        moments = {name: torch.zeros_like(p, requires_grad=False) for name in MOMENTS}
        optimizer.state[p] = {"step": torch.zeros((), device=device if fused else "cpu"), **moments}
    return _Progress(model, optimizer)


def _check(
    config: LanguageConfig,
    rows: Tensor,
    weights: Tensor | None,
    training: LanguageTraining,
    checkpoints: Sequence[int],
    keep: Sequence[int],
) -> Tensor:
    """ρ float32 (n, t - 1), scaled to mean 1; refuses what does not fit together."""
    if rows.ndim != 2 or not 2 <= rows.shape[1] <= config.context or rows.is_floating_point():
        raise PatterningError(
            f"rows have shape {tuple(rows.shape)} and type {rows.dtype}: they must be whole numbers (n, t), "
            f"t from 2 to the model's context of {config.context}"
        )
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= config.vocabulary:
        raise PatterningError(f"rows hold tokens {low} to {high}: the model's vocabulary is {config.vocabulary}")
    if outside := [step for step in (*checkpoints, *keep) if not 0 <= step <= training.steps]:
        raise PatterningError(f"checkpoints {outside} are outside of the run's {training.steps} steps")
    shape = (len(rows), rows.shape[1] - 1)
    if weights is None:
        return torch.ones(1).expand(shape)
    if weights.shape != shape:
        raise PatterningError(f"weights have shape {tuple(weights.shape)}: one for each prediction is {shape}")
    if bool((weights < 0).any()):
        raise PatterningError(f"{int((weights < 0).sum())} weights are negative: choose a policy that makes them ≥ 0")
    flat = weights.flatten()
    return (
        normalise_weights(flat, torch.ones((), dtype=torch.float64).expand(len(flat)) / len(flat)).float().view(shape)
    )


def _require_finite(run: _Progress) -> None:
    if not all(bool(p.isfinite().all()) for p in run.model.parameters()):
        raise PatterningError(
            f"training diverged before step {run.step}: lower learning_rate or clip, or lengthen warmup"
        )


def _key(config: LanguageConfig, training: LanguageTraining, seed: int, rows: Tensor, rho: Tensor, *steps: Any) -> str:
    weights = rho.contiguous().numpy()
    return fingerprint(asdict(config), asdict(training), seed, rows.numpy(), weights, [list(s) for s in steps])


def _save(run: _Progress, scratch: Path, key: str) -> None:
    """Write the state whole: parameters, both moments, measures and kept rows."""
    arrays: dict[str, NDArray[Any]] = {f"kept/{step}": row.numpy() for step, row in run.kept.items()}
    for name, p in run.model.named_parameters():
        arrays[f"parameter/{name}"] = p.detach().cpu().numpy()
        for moment in MOMENTS:
            arrays[f"{moment}/{name}"] = run.optimizer.state[p][moment].cpu().numpy()
    for step, found in zip(run.measured, run.measures, strict=True):
        arrays |= {f"measure/{step}/{name}": np.asarray(value, order="C") for name, value in found.items()}
    write_whole(scratch, save(arrays, {"key": key, "step": str(run.step)}))


def _resume(
    config: LanguageConfig, training: LanguageTraining, seed: int, device: torch.device, scratch: Path | None, key: str
) -> _Progress:
    """Where `scratch` stands if it belongs to this run, else step 0."""
    run = _start(config, training, seed, device)
    if scratch is None or not scratch.exists():
        return run
    with safe_open(scratch, "numpy") as file:
        facts = file.metadata() or {}
        if facts.get("key") != key:
            return run
        run.step = int(facts["step"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    for name, p in run.model.named_parameters():
        p.detach().copy_(torch.from_numpy(arrays[f"parameter/{name}"]))
        counted = run.optimizer.state[p]["step"]
        run.optimizer.state[p] = {"step": torch.full_like(counted, float(run.step))} | {
            moment: torch.from_numpy(arrays[f"{moment}/{name}"]).to(p.device) for moment in MOMENTS
        }
    by_step: dict[int, dict[str, NDArray[Any]]] = {}
    for label, value in arrays.items():
        kind, _, rest = label.partition("/")
        if kind == "kept":
            run.kept[int(rest)] = torch.from_numpy(value)
        elif kind == "measure":
            step, _, name = rest.partition("/")
            by_step.setdefault(int(step), {})[name] = value
    run.measured = sorted(by_step)
    run.measures = [by_step[step] for step in run.measured]
    return run
