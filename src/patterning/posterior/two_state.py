"""Chains that hold two solutions: they switched between them, or sit in another one than the rest.

A covariance over two states is mostly the square of the difference between them, p (1 - p) d², and a property of
neither. Two signs of it are looked for in traces, against stationary first-order autoregressions (`level_shift.py`):

* `switch`: some of a chain's draws are at another level;
* `apart`: of the chains that do not switch, this one is of a few whose mean is another than that of the rest.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from patterning.core.errors import PatterningError
from patterning.posterior.level_shift import apart, reductions, switch, tame

Floats = NDArray[np.float64]

FEWEST_DRAWS = 16
"""Shorter traces are not tested."""

LEAST_SWITCH, LEAST_APART = 2.0, 3.0
"""Least distance of two levels, in standard deviations within a level. A smaller switch makes the variance no more than
twice as large, and is left to R-hat."""


@dataclass(frozen=True)
class TwoStates:
    """Evidence that a chain holds two states, or another one than the rest.

    `levels` mean of `trace` in the lower and in the higher state; `share` of the chain's draws in the higher one;
    `separation` of the two in standard deviations within a state; `p_value` before correction for the number of traces.
    """

    chain: int
    trace: str
    sign: str
    levels: tuple[float, float]
    share: float
    separation: float
    p_value: float

    @property
    def inflation(self) -> float:
        """Variance of the trace in this chain over that within a state, 1 + p (1 - p) d²."""
        return 1 + self.share * (1 - self.share) * self.separation**2

    def __str__(self) -> str:
        low, high = self.levels
        how = "switches between two levels" if self.sign == "switch" else "sits at another level than other chains"
        text = (
            f"chain {self.chain} {how}: {self.trace} is {low:.4g} and {high:.4g}, {self.separation:.1f} standard "
            f"deviations within a level apart (p = {self.p_value:.1g})"
        )
        if self.sign == "switch":
            text += (
                f"; {self.share:.0%} of its draws are at the higher one, and its variance is {self.inflation:.3g} "
                "times that of one state"
            )
        return text


def two_state_chains(
    traces: Mapping[str, Floats], *, false_alarm: float = 0.01, numbers: Sequence[int] | None = None
) -> dict[int, TwoStates]:
    """Chains with two states, by number, each with its strongest evidence.

    `traces` name → values (draws, chains): L and the losses of a few samples, say, since solutions that fit equally
    well differ in single samples. Over all chains and traces of a call, stationary AR(1) traces raise an alarm with
    probability `false_alarm` at most. `numbers`: what the chains are called, 0, 1, … unless stated. Traces of fewer
    than `FEWEST_DRAWS` draws are not tested. Raises `PatterningError` for traces that are not finite or of different
    shapes.
    """
    if not 0 < false_alarm < 1:
        raise PatterningError(f"false_alarm is {false_alarm}: it is a probability, between 0 and 1")
    shapes = {values.shape for values in traces.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise PatterningError(f"traces must all be (draws, chains) of one size (got {sorted(shapes)})")
    draws, chains = next(iter(shapes))
    names = list(range(chains) if numbers is None else numbers)
    if draws < FEWEST_DRAWS:
        return {}
    for name, values in traces.items():
        if not np.isfinite(values).all():
            raise PatterningError(f"the trace of {name} is not finite: leave out chains that diverged first")
    level = false_alarm / ((2 * chains + 1) * len(traces))  # two tests of every chain and one of all
    flagged = _strongest([sign for name, values in traces.items() for sign in _switching(name, values, level)])
    rest = [c for c in range(chains) if c not in flagged]
    if len(rest) > 1:
        flagged |= _strongest(
            [sign for name, values in traces.items() for sign in _elsewhere(name, values, rest, level)]
        )
    return {names[c]: replace(flagged[c], chain=names[c]) for c in sorted(flagged)}


def _strongest(evidence: Sequence[TwoStates]) -> dict[int, TwoStates]:
    """Of each chain the evidence of least p-value."""
    return {sign.chain: sign for sign in sorted(evidence, key=lambda sign: -sign.p_value)}


def _switching(name: str, values: Floats, level: float) -> Iterator[TwoStates]:
    """Chains of a trace (draws, chains) that switch, with p-values of `level` or less."""
    reduced = reductions(tame(values))
    for c in range(values.shape[1]):
        for short, block in reduced:
            p, second = switch(short[:, c])
            if p > level:
                continue
            inside = np.repeat(second, block)
            chain = values[: len(inside), c]
            evidence = _compare(c, name, "switch", (chain[~inside], chain[inside]), float(inside.mean()), p)
            if evidence.separation >= LEAST_SWITCH:
                yield evidence


def _elsewhere(name: str, values: Floats, chains: Sequence[int], level: float) -> Iterator[TwoStates]:
    """Those of the `chains` of a trace (draws, all chains) that sit at another level than the rest of them."""
    values = values[:, list(chains)]
    p, minority = apart(reductions(tame(values))[0][0])
    if p > level:
        return
    states = values[:, ~minority], values[:, minority]
    equal = 2 * minority.sum() == len(minority)  # then nothing says which ones are where they should be
    for c in np.flatnonzero(minority | equal).tolist():
        evidence = _compare(chains[c], name, "apart", states, float(minority[c]), p)
        if evidence.separation >= LEAST_APART:
            yield evidence


def _compare(
    chain: int, name: str, sign: str, states: tuple[Floats, Floats], share: float, p_value: float
) -> TwoStates:
    """Two states by their draws (draws, …) each; `share` of the chain's draws that are in the second."""
    levels = [float(state.mean()) for state in states]
    squares = sum(float(((state - state.mean(0)) ** 2).sum()) for state in states)
    spread = math.sqrt(squares / (sum(state.size for state in states) - 2))
    separation = abs(levels[1] - levels[0]) / max(spread, 1e-300)
    low, high = sorted(levels)
    return TwoStates(chain, name, sign, (low, high), share if high == levels[1] else 1 - share, separation, p_value)
