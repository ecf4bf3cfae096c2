"""Find sampler settings by short pilot chains, for a stated rise of the mean loss.

Settings decide everything: too loose and the chain leaves the solution, too tight and only single hard samples are
seen. The user states nβ and how far up the loss may go, as a fraction of the range between L(w*) and the loss of a
constant predictor; `calibrate` finds the localization γ (a bracketed search in log γ) and a step size ε that is stable.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from patterning.core.anchors import check_anchor
from patterning.core.errors import PatterningError, check_whole
from patterning.core.flat import FlatTask, evaluate
from patterning.posterior.chains import ChainConfig, run_chains
from patterning.posterior.curvature import NOTE, Curvature, lanczos
from patterning.posterior.diagnostics import split_r_hat
from patterning.posterior.sgld import SGLD


@dataclass(frozen=True)
class Pilot:
    """One pilot: its settings, the rise of the mean loss as a fraction of the range, R-hat of the loss, divergence."""

    localization: float
    step_size: float
    rise: float
    r_hat: float
    diverged: bool


@dataclass(frozen=True)
class Calibration:
    """What was chosen, and every pilot that led there (the sensitivity). `note`: how the curvature was made."""

    kernel: SGLD
    wanted_rise: float
    rise: float
    pilots: tuple[Pilot, ...]
    note: str = ""


def calibrate(
    task: FlatTask,
    anchor: Tensor,
    *,
    n_beta: float,
    rise: float,
    constant_loss: float,
    steps: int = 200,
    chains: int = 2,
    batch_size: int = 128,
    seed: int = 0,
    step_fraction: float = 0.1,
    tolerance: float = 1.5,
    localization: tuple[float, float] = (1e2, 1e7),
) -> Calibration:
    """Settings at which E[L] - L(w*) is `rise` · (constant_loss - L(w*)), within a factor `tolerance`.

    The step size is `step_fraction / (γ + nβ h)` with h the largest curvature of L at w* (Lanczos): the
    discretisation error of the stationary variance is then at most `step_fraction / 4`. A pilot that diverges (NaN, or
    a loss past the constant predictor's) halves the step. Raises `PatterningError` when no γ in the range will do.
    """
    if not 0 < rise < 1:
        raise PatterningError(f"rise is {rise}: it is a fraction of the way to the constant predictor, between 0 and 1")
    anchor = check_anchor(task, anchor)
    _check_search(steps, tolerance, step_fraction, localization)
    q = task.base_weights
    start = float((evaluate(task.losses, anchor[None], len(q))[0].double() * q).sum())
    span = constant_loss - start
    if not math.isfinite(span):
        raise PatterningError(f"L(w*) is {start:.4g} and constant_loss {constant_loss}: both must be finite")
    if span <= 0:
        raise PatterningError(f"L(w*) is {start:.4g}, no better than the constant predictor's {constant_loss:.4g}")
    top, note = top_curvature_of(task, anchor, seed=seed)
    curvature = max(top, 0.0)  # negative: a maximum in every direction
    tried: list[Pilot] = []
    low, high = (math.log(bound) for bound in localization)
    log_gamma, fraction = (low + high) / 2, step_fraction
    for _ in range(20):
        gamma = math.exp(log_gamma)
        kernel = SGLD(n_beta, gamma, fraction / (gamma + n_beta * curvature))
        pilot = _pilot(task, anchor, kernel, steps, chains, batch_size, seed, start, span)
        tried.append(pilot)
        if pilot.diverged and not pilot.rise <= 4 * rise and fraction > step_fraction / 64:
            fraction /= 2
            continue
        if not pilot.diverged and rise / tolerance <= pilot.rise <= rise * tolerance:
            return Calibration(kernel, rise, pilot.rise, tuple(tried), note)
        too_loose = pilot.diverged or pilot.rise > rise
        low, high = (log_gamma, high) if too_loose else (low, log_gamma)
        if pilot.diverged:
            log_gamma = (low + high) / 2
        else:  # in flat directions the rise goes as 1/γ: jump there, but stay well inside the bracket
            margin = 0.1 * (high - low)
            jump = math.log(min(max(pilot.rise / rise, 1e-2), 1e2))
            log_gamma = min(max(log_gamma + jump, low + margin), high - margin)
    raise PatterningError(
        f"no localization from {localization[0]:g} to {localization[1]:g} raises the loss by {rise:g} of its range at "
        f"n_beta {n_beta:g}: the last pilot had γ {tried[-1].localization:.3g}, rise {tried[-1].rise:.3g}"
    )


def _check_search(steps: int, tolerance: float, step_fraction: float, localization: tuple[float, float]) -> None:
    check_whole("steps", steps, 16)
    if not tolerance > 1:
        raise PatterningError(f"tolerance is {tolerance}: it is a factor, above 1")
    if not 0 < step_fraction < 2:
        raise PatterningError(f"step_fraction is {step_fraction}: it must be above 0, and below 2 for a stable chain")
    low, high = localization
    if not 0 < low < high < math.inf:
        raise PatterningError(f"localization is {localization}: it is a range of γ, (low, high) with 0 < low < high")


def top_curvature(task: FlatTask, anchor: Tensor, *, iterations: int = 10, samples: int = 512, seed: int = 0) -> float:
    """Largest curvature of the mean loss at w*, by Lanczos steps with Hessian-vector products of a fixed minibatch.

    Where the loss has no usable second derivative, products are differences of gradients (`posterior.curvature`).
    Raises `PatterningError` where it has no finite gradient.
    """
    return top_curvature_of(task, anchor, iterations=iterations, samples=samples, seed=seed)[0]


def top_curvature_of(
    task: FlatTask, anchor: Tensor, *, iterations: int = 10, samples: int = 512, seed: int = 0
) -> tuple[float, str]:
    """`top_curvature`, and a note on how it was made where the loss has no usable second derivative."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.multinomial(task.base_weights, samples, replacement=True, generator=generator)[None].to(anchor.device)
    flat = anchor[None].detach()
    start = torch.randn(flat.shape, generator=generator).to(flat)
    most = getattr(task, "at_once", lambda *shape: shape)(1, samples)[1]
    parts = [lambda at, part=part: task.losses(at, part).sum() / samples for part in index.split(most, dim=1)]
    hessian = Curvature.of(parts, flat, start / start.norm())
    value = float(lanczos(hessian.times, start / start.norm(), iterations)[0].max())
    return value, NOTE if hessian.by_differences else ""


def _pilot(
    task: FlatTask, anchor: Tensor, kernel: SGLD, steps: int, chains: int, batch_size: int, seed: int, start: float,
    span: float,
) -> Pilot:  # fmt: skip
    config = ChainConfig(
        chains=chains,
        draws=8,
        burn_in=steps // 2,
        steps_between_draws=max(1, steps // 16),
        batch_size=batch_size,
        seed=seed,
    )
    trace = run_chains(task, anchor, kernel, config, lambda _draw, _flat: None, loss_band=start + span)
    late = trace.losses[steps // 2 :].double()
    return Pilot(
        localization=kernel.localization,
        step_size=kernel.step_size,
        rise=(float(late.mean()) - start) / span,
        r_hat=split_r_hat(late.cpu().numpy()),
        diverged=bool(trace.diverged) or not bool(torch.isfinite(late).all()),
    )
