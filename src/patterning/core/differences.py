"""Whether the gradient of a loss is that of its values: along itself, and in every parameter tensor.

It is not where a part of the model is computed again in the backward pass (gradient checkpointing), by then with other
parameters; where a function has a wrong derivative, or one of its own (straight-through rounding); and where rows of an
embedding are kept still (`padding_idx`).

Derivatives on both sides are compared with the gradient, as it lies between them also at a kink. Where the model and
the loss can run in float64 they do, at steps so small that neither curvature nor rounding matters; else in float32.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patterning.core.answers import Triable, kept, run_plain
from patterning.core.errors import PatterningError
from patterning.core.rng import Stream, generator

TOO_FAR = 0.02
"""Share by which differences of the loss may miss its gradient."""
STEPS = (3e-3, 1e-3)
"""Of differences in float32, as shares of the parameters' size."""
FINER_STEPS = (3e-4, 1e-4, 3e-5, 1e-5)
"""Tried where the others say that the gradient is wrong: the loss of a large model may bend within these."""
EXACT_STEPS = (1e-6, 1e-8)
"""In float64."""
LEAST = 1e-4
"""Share of the slope along the gradient below which a miss does not count."""
SECONDS = 0.12
"""For the parameter tensors of one place: those of larger models are tried several at a time."""
FEW = 256
"""Entries of a tensor that are moved at a time: of few, none is likely to cross a step of a rounding function."""
MOST_EXACT = 20_000_000
"""Parameters up to which a model is run in float64."""

Parameters = dict[str, Tensor]
Gradient = Callable[..., tuple[Parameters, Any]]

REASONS = (
    "Gradient checkpointing, rounding (straight-through), detached parts, rows of an embedding kept still by "
    "padding_idx, and a backward of your own do that"
)
REMEDY = (
    "switch checkpointing off, mask such rows, make such parts smooth, or freeze their parameters with "
    "requires_grad_(False)"
)


def check_differences(task: Triable, rows: Tensor, parameters: Parameters, gradient: Gradient) -> None:
    """Compare the gradient (`gradient(task, rows, parameters, exact=)`) at these parameters with differences."""
    exact, at = _exact(task, rows, parameters), parameters
    try:
        at = {name: value.double() for name, value in parameters.items()} if exact else parameters
        slopes = gradient(task, rows, at, exact=exact)[0]
    except PatterningError:  # what is computed again in the backward pass is so with the module's own float32
        exact, at = False, parameters
        slopes = gradient(task, rows, at)[0]
    if not slopes or not all(bool(slope.isfinite().all()) for slope in slopes.values()):
        return
    differences = _Differences(task, rows, at, exact)
    size = _norm(at) + 1e-3
    if (length := _norm(slopes)) > 0:
        along = {name: slope * (size / length) for name, slope in slopes.items()}
        if (found := differences.missed(along, size * length, size * length)) is not None:
            raise PatterningError(
                "the gradient of the loss is not that of its values: along the gradient the loss changes "
                f"{found / (size * length):.3g} times as much as it says. {REASONS}: {REMEDY}"
            )
    rng = generator(7, Stream.TRIAL)
    groups = _groups([name for name in at if name in slopes], differences.seconds)
    for dense in (True, False) if len(groups) > 1 or len(at) == 1 else (True,):
        for names in groups:
            direction = {name: _noise(at[name], rng, dense) for name in names}
            slope = sum(float((slopes[name] * step).double().sum()) for name, step in direction.items())
            squares = sum(float((slopes[name] * step).double().square().sum()) for name, step in direction.items())
            typical = max(math.sqrt(squares), LEAST * size * length)
            if (found := differences.missed(direction, slope, typical)) is not None:
                raise PatterningError(
                    f"the gradient of the loss is not that of its values: with {', '.join(names[:3])} the loss changes "
                    f"by {found:.3g} along a direction where its gradient says {slope:.3g}. {REASONS}: {REMEDY}"
                )


class _Differences:
    """Differences of the summed loss around one place."""

    def __init__(self, task: Triable, rows: Tensor, at: Parameters, exact: bool) -> None:
        self._task, self._rows, self._at, self._exact = task, rows, at, exact
        begun = time.perf_counter()
        losses, mask = run_plain(task, rows, at, exact=exact)
        self.seconds = time.perf_counter() - begun
        self._kept = kept(losses, mask)
        self._middle = losses[self._kept].double()
        rounding = 1e-15 if exact else 3e-7
        self._noise = rounding * float(self._middle.norm())
        if not exact:
            self._noise = max(self._noise, 2 * task.trial.rounding * math.sqrt(len(self._middle)))

    def missed(self, direction: Parameters, slope: float, typical: float) -> float | None:
        """What the loss changes by along `direction`, where that is surely not `slope`; None where it may be.

        `typical`: how large a slope along such a direction is. A step counts if rounding leaves something to be seen at
        it, and all must say so; in float32, finer ones as well, as the loss of a large model bends within the others.
        """
        steps, finer = EXACT_STEPS, ()
        if not self._exact:  # a loss cannot follow its slope further than to 0
            most = float(self._middle.abs().sum())
            within = [step for step in (*STEPS, *FINER_STEPS) if abs(slope) * step <= most]
            steps, finer = tuple(within[: len(STEPS)]), tuple(within[len(STEPS) :])
        verdicts = self._verdicts(direction, slope, typical, steps)
        sure = len(verdicts) >= len(STEPS) and all(bad for bad, _ in verdicts)
        sure = sure and all(bad for bad, _ in self._verdicts(direction, slope, typical, finer))
        return verdicts[-1][1] if sure else None

    def _verdicts(
        self, direction: Parameters, slope: float, typical: float, steps: tuple[float, ...]
    ) -> list[tuple[bool, float]]:
        """Of each step that counts: whether the loss changes otherwise than `slope` says, and by how much."""
        sides = [(self._losses(direction, step), self._losses(direction, -step)) for step in steps]
        noise = self._noise if not self._exact else max([self._noise, *(self._bend(up, down) for up, down in sides)])
        verdicts = []
        for step, (up, down) in zip(steps, sides, strict=True):
            ahead, behind = float((up - self._middle).sum()) / step, float((self._middle - down).sum()) / step
            if not (math.isfinite(ahead) and math.isfinite(behind)):
                continue
            gap = max(min(ahead, behind) - slope, slope - max(ahead, behind), 0.0)
            scale = max(abs(slope), abs(ahead), abs(behind), typical)
            rounding = 4 * noise / step
            if rounding < TOO_FAR / 4 * scale:
                verdicts.append((gap > TOO_FAR * scale + rounding, (ahead + behind) / 2))
        return verdicts

    def _bend(self, up: Tensor, down: Tensor) -> float:
        """What lies between the two sides: in float64, where curvature is small, the rounding of a part in float32."""
        return float((up - 2 * self._middle + down).norm())

    def _losses(self, direction: Parameters, step: float) -> Tensor:
        moved = {**self._at, **{name: self._at[name] + step * part for name, part in direction.items()}}
        return run_plain(self._task, self._rows, moved, exact=self._exact)[0][self._kept].double()


def _exact(task: Triable, rows: Tensor, parameters: Parameters) -> bool:
    """Whether the losses come out in float64, and the same."""
    if sum(value.numel() for value in parameters.values()) > MOST_EXACT:
        return False
    plain, mask = run_plain(task, rows, parameters)
    try:
        exact, _ = run_plain(task, rows, parameters, exact=True)
    except PatterningError:
        return False
    real = kept(plain, mask)
    return exact.dtype == torch.float64 and torch.allclose(
        exact[real].float(), plain[real].float(), rtol=0.02, atol=0.02 * float(plain[real].abs().mean())
    )


def _groups(names: list[str], seconds: float) -> list[list[str]]:
    """One tensor each, or as many together as the time leaves."""
    count = max(1, min(len(names), int(SECONDS / (seconds * 4 * len(STEPS)))))
    return [names[first::count] for first in range(count)]


def _noise(value: Tensor, rng: np.random.Generator, dense: bool) -> Tensor:
    """A direction for a tensor, of the size of its entries: in all of them, or in a few."""
    size = float(value.double().square().mean().sqrt()) + 1e-2
    if dense:
        noise = torch.from_numpy(rng.standard_normal(tuple(value.shape), dtype=np.float32))
        return size * noise.to(value)
    step = torch.zeros(value.numel(), dtype=value.dtype)
    some = torch.from_numpy(rng.integers(value.numel(), size=min(FEW, value.numel())))
    step[some] = size * torch.from_numpy(rng.standard_normal(len(some))).to(step)
    return step.view(value.shape).to(value)


def _norm(values: Parameters) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in values.values()))
