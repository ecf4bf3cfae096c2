"""What a component's loss can do, tried in seconds before anything is sampled.

A chain needs the gradient of the loss in the component's coordinates; the pathwise estimator needs its curvature and
forward derivatives as well, and losses that these describe.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.modules import spread
from patterning.core.rng import Stream, generator
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior.chains import loss_and_gradient
from patterning.posterior.sgld import SGLD
from patterning.response.adjoint import ModelObservable, ModelReading, curvature

ROWS, ROWS_ON_THE_WAY, CELLS = 128, 32, 512
"""Most rows, at w* and on the way, and about how many samples, that curvature is tried on."""
FEW = 8
"""Rows that a gradient or a forward derivative is tried on."""
NODES, NODES_OF_CURVATURE = 3, 4
"""Of the quadrature along a line: exact for polynomials of degree 5 and 7."""
MANY_NODES = 16
"""Of a finer one, for functions whose slope has jumps (ReLU networks)."""
ROUNDING = 1e-5
"""Share of φ by which its differences may be off in float32."""
ALIKE = 0.3
"""Two quadratures whose remainders differ by less than this share have found kinks."""
UNEXPLAINED = 0.02
"""Share of the changes of an observable that its gradient may miss: of smooth ones, and in ReLU networks, it misses a
hundredth of that."""
SMALL, LARGE = 0.1, 0.5
"""Shares of χ that may be missed: past the first, `auto` takes the covariance; past the other, pathwise is refused."""


class KinkedError(PatterningError):
    """Curvature does not say how the gradient changes where chains go."""


def try_gradient(free: Restricted) -> None:
    """Raise `PatterningError` where the loss has no gradient in the component, as nothing in it depends on it.

    A gradient that is 0 (a dead layer) is let pass: χ then says so, by a row without spread.
    """
    rows, depends = few_rows(free, FEW), False
    for flat in (free.anchor[None], _moved(free, float(free.anchor.abs().mean()) + 0.1)):
        try:
            losses = free.losses(flat.detach().requires_grad_(), rows[None])
            if not losses.requires_grad:
                continue
            first, depends = not depends, True
            _, gradient = loss_and_gradient(free, flat, rows[None])
        except PatterningError:
            raise
        except Exception as error:
            raise PatterningError(
                f"component {free.component.name!r}: the loss has no gradient in it ({_reason(error)})"
            ) from error
        if first and not bool(gradient.isfinite().all()):
            raise PatterningError(
                f"component {free.component.name!r}: the gradient of the loss is NaN or infinite at w*"
            )
    if not depends:
        raise PatterningError(f"component {free.component.name!r}: nothing in the loss depends on it; leave it out")


def try_pathwise(
    free: Restricted, kernel: SGLD, observables: Mapping[str, ModelObservable], *, by_name: bool
) -> tuple[tuple[str, ...], str | None]:
    """Warnings, and why the pathwise estimator cannot serve this component, as a clause; None where it can.

    Its curvature must exist, and what of the change of the gradient it does not explain (kinks of a piecewise linear
    loss, a function that hides its second derivative) must be a small part of all that holds a chain,
    γ + nβ h: about that share would χ be wrong by. Forward derivatives must agree with the gradient. The gradient of
    an observable must add up to its changes (`missed_slope`). Where the estimator is asked for `by_name`, and there is
    no other to take, more is let pass with a warning.
    """
    try:
        missed = missed_curvature(free, kernel)
    except PatterningError as error:
        return (), str(error)
    warnings, why = what_is_missed(missed, by_name=by_name)
    if why is not None:
        return (), why
    try:
        warnings += try_slopes(free, kernel.localization, observables, LARGE if by_name else UNEXPLAINED)
    except PatterningError as error:
        return (), str(error)
    return tuple(warnings), _why_no_forward_derivative(free, few_rows(free, FEW))


def what_is_missed(missed: float, *, by_name: bool) -> tuple[list[str], str | None]:
    """Warnings, and why pathwise χ is no result, where curvature misses such a share of what holds a chain."""
    if missed > (LARGE if by_name else SMALL):
        return [], (
            f"the second derivative of the loss does not say how its gradient changes: χ would be wrong by about "
            f"{missed:.0%} (the loss is piecewise linear, or hides a derivative)"
        )
    if missed > SMALL:
        return [f"kinks of the loss are not in its curvature: pathwise χ may be wrong by about {missed:.0%}"], None
    return [], None


def try_slopes(
    free: Restricted, localization: float, observables: Mapping[str, ModelObservable], most_missed: float = LARGE
) -> list[str]:
    """Warnings of observables whose gradient says too little; raises `PatterningError` past `most_missed`."""
    warnings = []
    for name, function in observables.items():
        missed = missed_slope(ModelReading(name, free, function), free, localization)
        what = (
            f"the gradient of observable {name!r} misses {missed:.0%} of how it changes: a part of it is detached, "
            "rounded, under no_grad, written in place, or a count such as accuracy"
        )
        if missed > most_missed:
            raise PatterningError(what)
        if missed > UNEXPLAINED:
            warnings.append(f"{what}; χ leaves that part out, and estimator='covariance' does not")
    return warnings


def missed_slope(reading: ModelReading, free: Restricted, localization: float) -> float:
    """The share of the changes of φ along lines through w* that its gradient does not add up to.

    By the fundamental theorem of calculus they are the integral of the gradient along the line (here by Gauss-Legendre
    quadrature, with more nodes where few leave something over), however much φ bends. Two lines, as long as chains
    reach: 1/√γ, or a twentieth of the parameters' size.
    """
    missed = _missed_by_nodes(reading, free, localization, NODES)
    return missed if missed <= UNEXPLAINED else min(missed, _missed_by_nodes(reading, free, localization, MANY_NODES))


def _missed_by_nodes(reading: ModelReading, free: Restricted, localization: float, count: int) -> float:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    anchor, missed, moved = free.anchor[None], 0.0, 0.0
    for number in (1, 2):
        vector = _noise(free, number) * _longest(free, localization)
        ends = [float(reading(anchor + sign * vector)[1]) for sign in (1, -1)]
        slopes = [float((reading(anchor + x * vector)[2].double() * vector.double()).sum()) for x in nodes]
        change, added = ends[0] - ends[1], float(np.dot(weights, slopes))
        if not math.isfinite(change + added):
            continue  # φ is defined near w* alone; where chains meet that, they are left out by name
        missed += max(0.0, abs(change - added) - ROUNDING * (abs(ends[0]) + abs(ends[1])))
        moved += (abs(change) + abs(added)) / 2
    return missed / moved if moved > 0 else 0.0


def missed_curvature(free: Restricted, kernel: SGLD) -> float:
    """The part of the change of the gradient that the curvature misses, as a share of γ + nβ h.

    Means over two random directions, on steps of at most 1/√γ and of a twentieth of the parameters' size; a smooth
    loss misses much less on a quarter of the step, so that the smaller of the two is taken. Raises `PatterningError`
    where the loss has no finite second derivative.
    """
    rows, anchor = few_rows(free, ROWS)[None], free.anchor[None]
    missed: dict[float, list[float]] = {1.0: [], 0.25: []}
    longest = _longest(free, kernel.localization)
    for number in (1, 2):
        vector = _noise(free, number)
        try:
            gradient, bend = curvature(free, anchor, rows, vector)
        except Exception as error:
            raise PatterningError(f"the loss has no second derivative ({_reason(error)})") from None
        if not bool(bend.isfinite().all()):
            raise PatterningError("the second derivative of the loss is NaN or infinite at w*")
        steps = [share * longest for share in missed]
        ends = torch.cat([sign * step * vector for step in steps for sign in (1, -1)])
        slopes = loss_and_gradient(free, anchor + ends, rows.expand(len(ends), -1))[1]
        for step, values, ahead, behind in zip(steps, missed.values(), slopes[::2], slopes[1::2], strict=True):
            change = (ahead - behind) / (2 * step)
            rounding = 1e-4 * float(gradient.norm()) / step  # float32 tells no smaller change of the gradient
            unexplained = max(float((change - bend).norm()) - rounding, 0.0)
            holds = kernel.localization * float(vector.norm()) + kernel.n_beta * float(change.norm())
            values.append(kernel.n_beta * unexplained / holds)
    return min(sum(values) / len(values) for values in missed.values())


def missed_on_the_way(free: Restricted, kernel: SGLD, reached: Tensor) -> float:
    """`missed_curvature` on the lines from w* to positions `reached` (k, P_C), in the mean: kinks that lie far from w*.

    By the fundamental theorem of calculus the gradient changes by the integral of the curvature along the line (here by
    Gauss-Legendre quadrature), and by what its kinks add. Where that seems much, the quadrature is made finer: kinks
    then add the same again, and what a smooth loss adds by its bending does not. A loss that is too rough to tell is
    let pass here: steps do not contract there, which the way back through the chain shows.
    """
    coarse = _missed_on_lines(free, kernel, reached, panels=1)
    if coarse <= SMALL:
        return coarse
    fine = _missed_on_lines(free, kernel, reached, panels=4)
    return fine if abs(fine - coarse) <= ALIKE * fine else 0.0


def _missed_on_lines(free: Restricted, kernel: SGLD, reached: Tensor, panels: int) -> float:
    rows, anchor = few_rows(free, ROWS_ON_THE_WAY)[None], free.anchor[None]
    nodes, weights = np.polynomial.legendre.leggauss(NODES_OF_CURVATURE)
    shares, weights = (torch.from_numpy(part / 2 / panels)[:, None].to(anchor) for part in (1 + nodes, weights))
    start, missed = loss_and_gradient(free, anchor, rows)[1], list[float]()
    for position in reached:
        way = position[None] - anchor
        change = loss_and_gradient(free, position[None], rows)[1] - start
        added = torch.zeros_like(change)
        for panel in range(panels):  # no more places at once, as each takes the memory of a chain
            places = anchor + (panel / panels + shares) * way
            bends = curvature(free, places, rows.expand(len(places), -1), way.expand(len(places), -1))[1]
            added += (weights * bends).sum(0, keepdim=True)
        unexplained = max(float((change - added).norm()) - 1e-4 * float(start.norm()), 0.0)
        holds = kernel.localization * float(way.norm()) + kernel.n_beta * float(change.norm())
        missed.append(kernel.n_beta * unexplained / holds if math.isfinite(unexplained) else 1.0)
    return sum(missed) / len(missed)


def _why_no_forward_derivative(free: Restricted, rows: Tensor) -> str | None:
    vector = _noise(free, 1)
    try:
        probe = Probe(free, rows)
        tangent = probe.along(free.anchor[None], vector)[1].double()
        weights = torch.from_numpy(probe.samples.weight).to(free.anchor.device)
        expected = float((probe.slope(free.anchor[None], weights)[2].double() * vector.double()).sum())
    except Exception as error:
        return f"the loss has no forward derivative ({_reason(error)})"
    value = float((tangent[0] * weights).sum())
    size = float((tangent[0].abs() * weights).sum())
    if abs(value - expected) > 1e-2 * size + 1e-6:
        return f"the forward derivative of the loss ({value:.3g}) and its gradient ({expected:.3g}) do not agree"
    return None


def _longest(free: Restricted, localization: float) -> float:
    """A step of each coordinate that chains reach, and that is small beside the parameters."""
    return min(localization**-0.5, 0.05 * (float(free.anchor.square().mean().sqrt()) + 0.02))


def _noise(free: Restricted, number: int) -> Tensor:
    """A random direction (1, P_C), the same each time."""
    return torch.from_numpy(generator(0, Stream.TRIAL, number).standard_normal(free.num_parameters)).to(free.anchor)[
        None
    ]


def few_rows(free: Restricted, most: int) -> Tensor:
    """At most `most` rows that hold samples, evenly spread, and no more than some 500 samples."""
    weighted = (free.base_weights > 0).nonzero()[:, 0]
    count = min(most, max(4, CELLS // free.samples_per_row))
    return weighted[spread(len(weighted), count)].to(free.anchor.device)


def _moved(free: Restricted, size: float) -> Tensor:
    noise = torch.from_numpy(generator(0, Stream.TRIAL).standard_normal(free.num_parameters))
    return free.anchor[None] + size * noise.to(free.anchor)


def _reason(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]
