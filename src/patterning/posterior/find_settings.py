"""Sampler settings for any task and component, found by short pilot chains, with a named verdict.

What a chain shows of a component hangs on γ: too large, and the loss never answers; too small, and the chain leaves the
solution. γ is chosen for a stated rise of the mean loss, as a share of the way to a model that knows nothing; ε follows
from γ and the largest curvature that a pilot meets. nβ is n / ln n (Watanabe, JMLR 14, 2013), at most 300.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from patterning.core.anchors import check_anchor
from patterning.core.errors import PatterningError, check_whole
from patterning.core.task import Task
from patterning.models.components import ComponentLike
from patterning.models.restricted import Restricted
from patterning.posterior.band import find_band, steepest
from patterning.posterior.chains import ChainConfig, Kernel, run_chains
from patterning.posterior.diagnostics import MOST_R_HAT, split_r_hat
from patterning.posterior.sgld import SGLD
from patterning.posterior.short_chain import ShortChain, step_warnings, try_chain

MOST_N_BETA = 300.0
WANTED = 0.02
"""Rise of the mean loss that is aimed at, as a share of the way to a model that knows nothing."""
PULL = 0.2
"""ε (γ + nβ h), with h the largest curvature: the stationary variance is then off by at most 5 %."""
MOST_PULL = 0.3
"""What a short chain may find of it in the steepest direction; past that ε is made shorter, down to 0.2."""
RANGE = (1.0, 1e7)
"""Where γ is looked for, over the mean square of the parameters where that is above 1."""
NEARER = 0.1
"""By how much a pilot must come nearer, in powers of e: where γ no longer matters, the first that was tried is kept."""
PILOTS = 9
"""Most pilots of a component."""
TRIED = 3
"""Most components that pilots are run on."""


@dataclass(frozen=True)
class PilotRun:
    """One pilot: its component and settings, the rise of the loss (a share of the way), its error, R-hat, spikes."""

    component: str
    kernel: SGLD
    rise: float
    error: float
    r_hat: float
    spike: float
    diverged: bool


@dataclass(frozen=True)
class Found:
    """The kernel that was chosen, what there is to say of it, and the pilots that led there."""

    kernel: Kernel
    text: str
    pilots: tuple[PilotRun, ...]
    verdict: str = "as given"


def find_settings(
    task: Task,
    anchor: Tensor,
    components: Sequence[ComponentLike],
    *,
    n_beta: float | None = None,
    wanted: float = WANTED,
    steps: int = 80,
    batch_size: int = 32,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> Found:
    """γ and ε at which the loss of the component that moves most rises by `wanted` of the way, by bisection in log γ.

    Pilots (2 chains of `steps` steps) are run on at most three of the components, evenly spread; the largest γ that any
    of them needs is taken, with the ε that is short enough for all. The verdict is the first that applies: steps too
    long, chains disagree, spikes, too noisy, too little signal, minibatches too small, healthy. Raises
    `PatterningError` where every γ makes the chains leave the solution. `tell` hears how far it is.
    """
    anchor = check_anchor(task, anchor)
    if not components:
        raise PatterningError("there is no component to calibrate on: name at least one, 'full' say")
    if not 0 < wanted < 1:
        raise PatterningError(f"wanted is {wanted}: it is a share of the way to a model that knows nothing, in (0, 1)")
    if n_beta is not None and not (math.isfinite(n_beta) and n_beta > 0):
        raise PatterningError(f"n_beta is {n_beta}: it must be finite and > 0 for a loss to answer")
    check_whole("steps", steps, 16)
    n = float((task.base_weights > 0).sum()) * task.samples_per_row
    beta = min(MOST_N_BETA, n / math.log(max(n, 3.0))) if n_beta is None else n_beta
    picked = [components[i] for i in sorted({round(x) for x in np.linspace(0, len(components) - 1, TRIED)})]
    found = find_band(task, anchor, batch_size, beta)
    band = found.loss
    chosen, begun = [], time.monotonic()
    tell(f"calibrating on {len(picked)} of {len(components)} components, at most {PILOTS} short pilots each")
    for number, what in enumerate(picked):
        free, first = Restricted(task, anchor, what), number * PILOTS

        def told(pilot: int, free: Restricted = free, first: int = first) -> None:
            gone = time.monotonic() - begun
            left = gone / (first + pilot) * (PILOTS * len(picked) - first - pilot)
            tell(f"calibrating {free.component.name}: {pilot} of at most {PILOTS} pilots, at most {left:.0f} s left")

        chosen.append(_search(free, beta, wanted, band, steps, batch_size, seed, told))
    place = max(range(len(chosen)), key=lambda i: chosen[i][-1].kernel.localization)
    tightest = chosen[place][-1]
    epsilon = min(runs[-1].kernel.step_size for runs in chosen)
    kernel = replace(tightest.kernel, step_size=epsilon)
    verdict, advice = _verdict(tightest, wanted)
    if verdict == "healthy":
        chains = ChainConfig(1, 1, 40, 1, batch_size, seed)
        frees = (Restricted(task, anchor, what) for what in picked)
        short = [try_chain(free, free.anchor, kernel, chains) for free in frees]
        kernel = _shorter(kernel, short)
        nats = tightest.rise * (band - float(_mean_loss(Restricted(task, anchor, picked[place]))))
        verdict, advice = _of_minibatches(short[place], nats, kernel, chains)
    text = (
        f"calibrated: nβ {beta:.3g}, γ {kernel.localization:.3g}, ε {kernel.step_size:.2g}; the loss of "
        f"{tightest.component} rises by {tightest.rise:.1%} of the way to a model that knows nothing "
        f"(wanted {wanted:.0%}); verdict: {verdict}"
        + (f" ({advice})" if advice else "")
        + (f"; {found.note}" if found.note else "")
    )
    return Found(kernel, text, tuple(run for runs in chosen for run in runs), verdict)


def _search(
    free: Restricted,
    n_beta: float,
    wanted: float,
    band: float,
    steps: int,
    batch_size: int,
    seed: int,
    told: Callable[[int], None],
) -> list[PilotRun]:
    """Pilots of one component; the last is the chosen one."""
    config = ChainConfig(2, max(4, steps // 8), steps // 2, 4, batch_size, seed)
    scale = max(1.0, float(free.anchor.double().square().mean()))  # of large parameters, small changes are larger
    low, high = math.log(RANGE[0] / scale), math.log(RANGE[1])
    log_gamma, runs, best = math.log(1e3), list[PilotRun](), None
    for _ in range(PILOTS):
        run = _pilot(free, n_beta, math.exp(log_gamma), band, config)
        runs.append(run)
        told(len(runs))
        if not run.diverged and (best is None or _miss(run, wanted) < _miss(best, wanted) - NEARER):
            best = run
        if not run.diverged and 0.5 * wanted <= run.rise <= 2 * wanted:
            break
        if run.diverged or run.rise > wanted:
            low = log_gamma
        else:
            high = log_gamma
        log_gamma = (low + high) / 2
    if best is None:
        raise PatterningError(
            f"component {free.component.name!r}: at every localization from {RANGE[0]:g} to {RANGE[1]:g} the chains "
            "leave the solution; is w* a trained model, and is its loss finite and smooth there?"
        )
    return [*runs, best]


def _pilot(free: Restricted, n_beta: float, gamma: float, band: float, config: ChainConfig) -> PilotRun:
    guess = SGLD(n_beta, gamma, PULL / gamma / 100)
    curvature = steepest(free, free.anchor, guess, config, band)
    kernel = SGLD(n_beta, gamma, PULL / (gamma + n_beta * curvature))
    start = float(_mean_loss(free))
    trace = run_chains(free, free.anchor, kernel, config, lambda *_: None, loss_band=band)
    late = trace.losses[config.burn_in :].double().cpu().numpy()
    room = band - start
    finite = bool(np.isfinite(late).all()) and not trace.diverged
    by_chain = late.mean(0) if finite else np.full(late.shape[1], np.nan)
    steps = np.abs(np.diff(late, axis=0))
    spike = float(steps.max() / max(np.median(steps), 1e-12)) if finite else math.inf
    return PilotRun(
        free.component.name,
        kernel,
        float((by_chain.mean() - start) / room),
        float(by_chain.std(ddof=1) / math.sqrt(len(by_chain)) / room) if finite else math.inf,
        split_r_hat(late) if finite else math.inf,
        spike,
        not finite,
    )


def _mean_loss(free: Restricted) -> Tensor:
    q = free.base_weights
    with torch.no_grad():
        parts = [
            free.losses(free.anchor[None], rows[None].to(free.anchor.device))[0].double().cpu() @ q[rows]
            for rows in torch.arange(len(q)).split(256)
        ]
    return torch.stack(parts).sum()


def _miss(run: PilotRun, wanted: float) -> float:
    """How far the rise is from what was wanted, in powers of e."""
    return abs(math.log(max(run.rise, 1e-6) / wanted))


def _verdict(run: PilotRun, wanted: float) -> tuple[str, str]:
    """The first thing that is wrong, and what to do."""
    if run.rise > 4 * wanted:
        return "steps too long", "even a strong localization does not hold the chain; lower n_beta or the step size"
    if run.r_hat > MOST_R_HAT:
        return "chains disagree", "raise burn_in"
    if run.spike > 100:
        return "spikes", "single minibatches dominate: raise batch_size"
    by_data = PULL / run.kernel.step_size - run.kernel.localization  # nβ h in the steepest direction
    if run.rise < wanted / 10 and by_data < run.kernel.localization:
        return (
            "too little signal",
            "the loss hardly answers to this component: lower n_beta, or measure another observable",
        )
    if run.error > run.rise:
        return "too noisy", "raise batch_size, chains or draws"
    return "healthy", ""


def _shorter(kernel: SGLD, short: Sequence[ShortChain | None]) -> SGLD:
    """The kernel with steps that are short in the steepest direction that a short chain of any component met.

    The pilots' own steps may have seen less of it.
    """
    enough = [one.short_enough for one in short if one is not None and one.length > MOST_PULL]
    return replace(kernel, step_size=min([kernel.step_size, *enough]))


def _of_minibatches(short: ShortChain | None, rise: float, kernel: SGLD, chains: ChainConfig) -> tuple[str, str]:
    """Whether minibatches are large enough for the kernel that was found, which raises the loss by `rise` nats."""
    lines = step_warnings(short and short.measured(rise).at(kernel.step_size), rise, chains)
    small = [line.partition(": ")[2] for line in lines if line.startswith("minibatches")]
    return ("minibatches too small", small[0]) if small else ("healthy", "")
