"""What a check of the local learning coefficient found, as sentences: each has a name, a component, and says why."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from patterning.posterior.chains import ChainConfig
from patterning.posterior.minimum import Slope

MOST_R_HAT = 1.1
"""Chains that disagree more are said to."""


@dataclass(frozen=True)
class LLCRow:
    """λ̂ at one setting: `coefficient` ± `standard_error`, NaN where fewer than 2 chains are left.

    `n_beta` nβ, `localization` γ, `step_size` ε, and the `chains` that were run with them. `rise` E[L] - L(w*) in nats;
    `drift`: λ̂ in the second half of the draws less that in the first, with its error. `excluded` and `two_state`: chain
    number → why it was left out, or must not be trusted. `rounding`: why λ̂ is rounding noise, where it is.
    """

    component: str
    n_beta: float
    localization: float
    step_size: float
    chains: ChainConfig
    coefficient: float
    standard_error: float
    r_hat: float
    ess: float
    rise: float
    drift: tuple[float, float]
    excluded: dict[int, str]
    two_state: dict[int, str]
    rounding: str = ""


@dataclass(frozen=True)
class Verdict:
    """A finding by its name: `text` in plain English, and whether it is a `warning`."""

    name: str
    component: str
    text: str
    warning: bool


def verdicts(
    rows: Sequence[LLCRow],
    slope: Slope,
    parameters: int,
    half_step: bool,
    rise_band: tuple[float, float] | None,
    z: float,
) -> Iterator[Verdict]:
    """Of one component: `rows` as `LLCCheck` orders them, `parameters` P free coordinates, intervals of ± z errors."""
    name, given = rows[0].component, rows[0]
    sweep = sorted((row for i, row in enumerate(rows) if not (half_step and i == 1)), key=lambda row: -row.localization)
    yield from _chains_verdicts(rows, z)
    if half_step:
        yield _step_verdict(given, rows[1], z)
    if len(sweep) > 1:
        yield _localization_verdict(sweep, given, z)
    yield Verdict("slope", name, _slope_text(slope, given), bool(slope.most_drop > _noise(given)))
    negative = [row for row in rows if row.coefficient + z * row.standard_error < 0]
    if negative:
        row = negative[-1]
        yield Verdict(
            "negative",
            name,
            f"λ̂ is {_number(row)} at γ {row.localization:g}: L falls below L(w*) around w*, which is no minimum of it, "
            f"and λ̂ is no learning coefficient ({slope})",
            True,
        )
    for row in rows:
        if (text := _rise_text(row, parameters, rise_band, z)) is not None:
            yield Verdict("rise out of band", name, text, True)


def _chains_verdicts(rows: Sequence[LLCRow], z: float) -> Iterator[Verdict]:
    for row in rows:
        at = f"at γ {row.localization:g}, ε {row.step_size:.2g}"
        left = (
            f"{at} {len(row.excluded)} of {row.chains.chains} chains were left out: {'; '.join(row.excluded.values())}"
        )
        if row.rounding:
            yield Verdict("rounding", row.component, f"{at} {row.rounding}", True)
        if row.excluded:
            yield Verdict("diverged", row.component, left, True)
        for why in row.two_state.values():
            yield Verdict("two states", row.component, f"{at} {why}", True)
        if row.r_hat > MOST_R_HAT:
            text = f"{at} R-hat is {row.r_hat:.3g}: chains disagree; lengthen burn_in or steps_between_draws"
            yield Verdict("chains disagree", row.component, text, True)
        drift, error = row.drift
        # five rows of a check are compared with 0, and would now and then seem to drift at level z
        if abs(drift) > (z + 1) * error:
            text = f"{at} λ̂ moves by {drift:+.2g} ± {error:.1g} between the halves of the draws: lengthen burn_in"
            yield Verdict("not settled", row.component, text, True)


def _step_verdict(whole: LLCRow, half: LLCRow, z: float) -> Verdict:
    difference = whole.coefficient - half.coefficient
    error = math.hypot(whole.standard_error, half.standard_error)
    both = f"λ̂ is {_number(whole)} at ε {whole.step_size:.2g} and {_number(half)} at half of it"
    if not _equal(whole, half, z):
        limit = half.coefficient - difference  # the bias is of first order in ε
        limit_error = math.hypot(2 * half.standard_error, whole.standard_error)
        text = (
            f"the step size biases λ̂: {both}, more than their joint error apart; for ε → 0 that says {limit:.3g} ± "
            f"{limit_error:.1g}"
        )
        return Verdict("step size bias", whole.component, text, True)
    text = f"no bias of the step size is seen: {both}; one of less than {2 * z * error:.2g} at ε would not be"
    return Verdict("step size", whole.component, text, False)


def _localization_verdict(sweep: Sequence[LLCRow], given: LLCRow, z: float) -> Verdict:
    """Over rows in order of falling γ. No warning where it has levelled off, and the given setting with it."""
    tight, loose = sweep[0], sweep[-1]
    ends = f"λ̂ is {_number(tight)} at γ {tight.localization:g} and {_number(loose)} at γ {loose.localization:g}"
    if _equal(tight, loose, z):
        return Verdict("localization", loose.component, f"{ends}: no dependence on γ is seen", False)
    times = f", {loose.coefficient / tight.coefficient:.3g} times as much" if tight.coefficient > 0 else ""
    last = sweep[-2]
    level = len(sweep) > 2 and _equal(last, loose, z)
    rest = (
        f"; between γ {last.localization:g} and {loose.localization:g} no change is seen"
        if level
        else "; it has not levelled off: quote λ̂ with its γ, or lower γ further"
    )
    settled = level and _equal(given, loose, z)
    return Verdict("depends on localization", loose.component, f"{ends}{times}{rest}", not settled)


def _equal(a: LLCRow, b: LLCRow, z: float) -> bool:
    """Whether two estimates differ by no more than their joint error; no NaN does."""
    return abs(a.coefficient - b.coefficient) <= z * math.hypot(a.standard_error, b.standard_error)


def _slope_text(slope: Slope, row: LLCRow) -> str:
    if not slope.most_drop > _noise(row):
        return f"{slope}, which does not matter"
    known = slope.least_drop > _noise(row)
    return f"{slope}: {'w* is no minimum of L' if known else 'w* may be no minimum of L'}"


def _noise(row: LLCRow) -> float:
    """What cannot be told from 0 in λ̂: its standard error, or a hundredth of it."""
    return max(row.standard_error, 0.01 * abs(row.coefficient))


def _rise_text(row: LLCRow, parameters: int, band: tuple[float, float] | None, z: float) -> str | None:
    at = f"at γ {row.localization:g}, ε {row.step_size:.2g}"
    if band is not None:
        if band[0] <= row.rise <= band[1]:
            return None
        return f"{at} E[L] - L(w*) is {row.rise:.3g} nats, outside of {band[0]:.3g} to {band[1]:.3g}"
    if not row.coefficient - z * row.standard_error > parameters / 2:
        return None
    return (
        f"{at} λ̂ is {_number(row)}, above P/2 = {parameters / 2:g}, as no learning coefficient is: the chain has left "
        "the neighbourhood of w*, or ε is too large"
    )


def _number(row: LLCRow) -> str:
    return f"{row.coefficient:.3g} ± {row.standard_error:.1g}"
