"""Does an estimate of the local learning coefficient hold? λ̂ over a sweep of γ and at half the step, with verdicts.

λ̂ = nβ (E[L] - L(w*)) in the localized posterior (Lau et al., arXiv 2308.12108) is a function of nβ, γ and, as sampled,
ε. It nears the learning coefficient λ as nβ grows and γ/nβ falls, if w* is a minimum and the chain stays near it. A
single number shows none of this.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from patterning.core.anchors import check_anchor
from patterning.core.arrays import check_level
from patterning.core.errors import PatterningError
from patterning.core.flat import FlatTask, evaluate
from patterning.core.task import Task
from patterning.models.components import ComponentLike
from patterning.models.restricted import Restricted
from patterning.posterior.chains import ChainConfig, Kernel, run_chains
from patterning.posterior.diagnostics import diagnose
from patterning.posterior.llc_verdicts import LLCRow, Verdict, verdicts
from patterning.posterior.minimum import Slope, is_minimum
from patterning.posterior.resolution import below_resolution, resolution
from patterning.posterior.sgld import SGLD
from patterning.posterior.two_state import two_state_chains

Floats = NDArray[np.float64]

WATCHED = 4
"""Samples whose losses are looked through for two states, besides L."""


@dataclass(frozen=True)
class LLCCheck:
    """`rows` by component: the given setting first, then the same at half the step, then the other γ, falling.

    `slopes` by component: what a slope of L at w* does to λ̂ at the given setting.
    """

    rows: tuple[LLCRow, ...]
    verdicts: tuple[Verdict, ...]
    slopes: dict[str, Slope]

    @property
    def warnings(self) -> list[str]:
        """Texts of the verdicts that are warnings."""
        return [f"{verdict.component}: {verdict.text}" for verdict in self.verdicts if verdict.warning]

    def __str__(self) -> str:
        head = (
            f"{'component':12} {'λ̂ ± se':>16} {'nβ':>9} {'γ':>9} {'ε':>9} {'steps':>8} {'rise':>9} {'R-hat':>6} "
            f"{'ESS':>6}"
        )
        lines = [
            f"{row.component:12} {f'{row.coefficient:.3g} ± {row.standard_error:.2g}':>16} {row.n_beta:9.3g} "
            f"{row.localization:9.3g} {row.step_size:9.2g} {row.chains.steps:8d} {row.rise:9.2g} {row.r_hat:6.3f} "
            f"{row.ess:6.0f}"
            for row in self.rows
        ]
        sentences = [f"{'! ' if v.warning else '  '}{v.component}: {v.name}: {v.text}" for v in self.verdicts]
        return "\n".join([head, *lines, *sentences])


def check_llc(
    task: FlatTask,
    anchor: Tensor,
    kernel: Kernel,
    chains: ChainConfig,
    *,
    components: Sequence[ComponentLike] | None = None,
    localizations: Sequence[float] | None = None,
    half_step: bool = True,
    most_pull: float = 0.1,
    longest: float = 10.0,
    rise_band: tuple[float, float] | None = None,
    loss_band: float = math.inf,
    probes: Tensor | None = None,
    level: float = 0.95,
) -> LLCCheck:
    """λ̂ around `anchor` w* (P,) at `kernel`'s setting, at half its step, and over `localizations` (default γ/10, 10 γ).

    Of the whole task, or of each of `components` of a `Task` with all else clamped at w*. L is the mean over all
    rows of the data at every draw, or over rows `probes`. At other γ the step is shortened where the pull of the
    localization in a step, γε/2, would pass `most_pull` (or what it is in `kernel`, if more). Burn-in and the steps
    between draws grow with the slowest relaxation time 2/γε, up to `longest` times: by 10 at γ/10 and by 2 at half the
    step, so that the check costs about 14 times the given run.

    Verdicts compare at confidence `level`. `rise_band` (nats) is where E[L] - L(w*) may be; without it 0 ≤ λ̂ ≤ P/2 is
    asked, which every learning coefficient satisfies. Raises `PatterningError` for settings that make no chain.
    """
    tasks = _tasks(task, check_anchor(task, anchor), components)
    if chains.chains < 2 or chains.draws < 8:
        raise PatterningError(f"{chains.chains} chains of {chains.draws} draws give no error: use at least 2 and 8")
    check_level(level)
    for gamma in localizations or ():
        if isinstance(gamma, bool | str) or not (math.isfinite(gamma) and gamma > 0):
            raise PatterningError(f"localizations holds {gamma!r}: every γ must be finite and > 0")
    if _pull(kernel) >= 2:
        raise PatterningError(
            f"γε/2 is {_pull(kernel):.3g}: from 2 on a step of the localization alone overshoots w* by more than the "
            "chain was away from it; lower step_size"
        )
    gamma = kernel.localization
    others = sorted({gamma / 10, 10 * gamma} if localizations is None else set(localizations) - {gamma}, reverse=True)
    kernels = [kernel, *([replace(kernel, step_size=kernel.step_size / 2)] if half_step else [])]
    kernels += [with_localization(kernel, other, most_pull) for other in others]
    z = float(ndtri((1 + level) / 2))
    rows: list[LLCRow] = []
    sentences: list[Verdict] = []
    slopes: dict[str, Slope] = {}
    for name, (part, start) in tasks.items():
        measured = [
            _measure(name, part, start, setting, _lengthened(chains, kernel, setting, longest), loss_band, probes)
            for setting in kernels
        ]
        slopes[name] = is_minimum(part, start, n_beta=kernel.n_beta, localization=gamma)
        sentences += verdicts(measured, slopes[name], len(start), half_step, rise_band, z)
        rows += measured
    return LLCCheck(tuple(rows), tuple(sentences), slopes)


def with_localization(kernel: Kernel, localization: float, most_pull: float) -> Kernel:
    """The kernel at another γ, its step shortened where γε/2 would pass `most_pull`, or the kernel's own if more."""
    longest = 2 * max(most_pull, _pull(kernel)) / localization * (kernel.step_size / _largest_step(kernel))
    return replace(kernel, localization=localization, step_size=min(kernel.step_size, longest))


def _tasks(
    task: FlatTask, anchor: Tensor, components: Sequence[ComponentLike] | None
) -> dict[str, tuple[FlatTask, Tensor]]:
    if components is None:
        return {task.component.name if isinstance(task, Restricted) else "full": (task, anchor)}
    if not isinstance(task, Task):
        raise PatterningError(f"components are parts of a module: a {type(task).__name__} has none, leave them out")
    free = [Restricted(task, anchor, what) for what in components]
    if len({part.component.name for part in free}) < len(components) or not free:
        raise PatterningError("components must be named once each, and at least one")
    return {part.component.name: (part, part.anchor) for part in free}


def _largest_step(kernel: Kernel) -> float:
    """What a coordinate's step is at most."""
    return kernel.step_size if isinstance(kernel, SGLD) else kernel.step_size / kernel.damping


def _pull(kernel: Kernel) -> float:
    return kernel.localization * _largest_step(kernel) / 2


def _lengthened(chains: ChainConfig, given: Kernel, kernel: Kernel, longest: float) -> ChainConfig:
    """As many relaxation times 2/γε as the given chains have, but not more than `longest` times as many steps."""
    factor = min(max(1.0, _pull(given) / _pull(kernel)), longest)
    return replace(
        chains,
        burn_in=math.ceil(chains.burn_in * factor - 1e-9),
        steps_between_draws=math.ceil(chains.steps_between_draws * factor - 1e-9),
    )


def _measure(
    name: str,
    task: FlatTask,
    anchor: Tensor,
    kernel: Kernel,
    chains: ChainConfig,
    loss_band: float,
    probes: Tensor | None,
) -> LLCRow:
    rows = torch.arange(len(task.base_weights)) if probes is None else probes.cpu()
    q = task.base_weights.cpu()[rows].double()
    q = (q / q.sum()).numpy()
    on_device = rows.to(anchor.device)
    few = np.unique(np.linspace(0, len(q) - 1, min(WATCHED, len(q))).astype(int))

    def losses_at(flat: Tensor) -> Tensor:
        return evaluate(lambda at, index: task.losses(at, on_device[index]), flat, len(q))

    at_anchor = losses_at(anchor[None])[0]
    origin = at_anchor.double().cpu().numpy()
    start = float(origin @ q)
    if not math.isfinite(start):
        raise PatterningError(f"{name}: L(w*) is {start}: it is no checkpoint to sample around")

    def read(flat: Tensor) -> tuple[Floats, Floats]:
        losses = losses_at(flat).double().cpu().numpy()
        return (losses - origin) @ q, losses[:, few]

    means, watched = np.empty((chains.draws, chains.chains)), np.empty((chains.draws, chains.chains, len(few)))

    def on_draw(draw: int, flat: Tensor) -> None:
        means[draw], watched[draw] = read(flat)

    trace = run_chains(task, anchor, kernel, chains, on_draw, loss_band=loss_band)
    excluded = dict(trace.diverged)
    for c in np.flatnonzero(~(np.isfinite(means).all(0) & np.isfinite(watched).all((0, 2)))).tolist():
        excluded.setdefault(c, f"chain {c}: the loss is NaN or infinite at a draw")
    kept = [c for c in range(chains.chains) if c not in excluded]
    settings = (name, kernel.n_beta, kernel.localization, kernel.step_size, chains)
    if len(kept) < 2:
        nan = math.nan
        return LLCRow(*settings, nan, nan, nan, nan, nan, (nan, nan), excluded, {})
    phi = kernel.n_beta * means[:, kept]
    mean = diagnose(phi)
    rounding = below_resolution(float(means[:, kept].mean()), resolution(origin, q, at_anchor.dtype), at_anchor.dtype)
    traces = {"L": start + means[:, kept]} | {
        f"the loss of sample {rows[j]}": watched[:, kept, i] for i, j in enumerate(few.tolist())
    }
    flagged = {chain: str(why) for chain, why in two_state_chains(traces, numbers=kept).items()}
    return LLCRow(
        *settings, mean.mean, mean.standard_error, mean.r_hat, mean.ess, mean.mean / kernel.n_beta, _drift(phi),
        excluded, flagged, rounding or "",
    )  # fmt: skip


def _drift(phi: Floats) -> tuple[float, float]:
    """Mean of the later half of the draws (draws, chains) less that of the earlier one, and its error."""
    half = len(phi) // 2
    early, late = diagnose(phi[:half]), diagnose(phi[-half:])
    return late.mean - early.mean, math.hypot(late.standard_error, early.standard_error)
