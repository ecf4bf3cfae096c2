"""Outcomes that cannot be those of independent runs: a `train` that does not use its seed, or not its weights.

Runs that differ in their seed differ in their last bits, if in nothing else. Where they do not, differences over seeds
have no spread, and an interval without width would pass for certainty. Measures that are yes or no, or that lie at an
end of their stated range, may well agree over seeds: they are noted, and not refused.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from patterning.core.arrays import Floats, are_shares
from patterning.core.errors import PatterningError
from patterning.core.store import Arrays

STATE = "state_of_result"
"""Name under which a run stores the digest of the parameters that `train` returned, where it returned a module."""

JUMP, MANY_PAIRS = 15.0, 32
"""A pair is far from the rest at so many times their median distance from the median; looked for below so many."""
Outcomes = Mapping[str, Mapping[str, Floats]]
"""Arm → measure → values (seeds,)."""


def refuse_equal_states(outcomes: Mapping[str, Sequence[Arrays]], seeds: Sequence[int], base: str) -> None:
    """Raise `PatterningError` where trained modules are the same bits for two seeds, or for all arms of a seed."""
    for arm, runs in outcomes.items():
        seen: dict[bytes, int] = {}
        for seed, run in zip(seeds, runs, strict=False):
            if STATE not in run:
                continue
            state = run[STATE].tobytes()
            if state in seen:
                raise PatterningError(
                    f"train returned the same parameters, to the last bit, for seeds {seen[state]} and {seed} (arm "
                    f"{arm!r}): it does not use its seed, so that there is one run and no pairs; let the seed decide "
                    "the initial weights and the order of the data"
                )
            seen[state] = seed
    if len(outcomes) < 2:
        return
    for place, run in enumerate(outcomes[base]):
        others = [runs[place] for runs in outcomes.values() if len(runs) > place]
        if STATE in run and len(others) > 1 and all(_same(run, other) for other in others):
            raise PatterningError(
                f"train returned the same parameters, to the last bit, under every set of weights (seed "
                f"{seeds[place]}): it does not use its weights; multiply each loss by them (weights.loss), or draw "
                "rows by them (weights.sampler)"
            )


def _twins(rows: Sequence[Floats]) -> list[tuple[int, int]]:
    """Places of seeds whose outcomes, (seeds,) in each row, are all those of an earlier seed: (earlier, place)."""
    seen: dict[tuple[float, ...], int] = {}
    found = list[tuple[int, int]]()
    for place in range(min((len(row) for row in rows), default=0)):
        key = tuple(float(row[place]) for row in rows)
        if key in seen:
            found.append((seen[key], place))
        seen.setdefault(key, place)
    return found


def _same(run: Arrays, other: Arrays) -> bool:
    return STATE in other and run[STATE].tobytes() == other[STATE].tobytes()


def refuse_equal_outcomes(
    values: Outcomes,
    seeds: Sequence[int],
    base: str,
    constant_arms: Sequence[str],
    unclear: Mapping[str, bool],
    yes_or_no: Mapping[str, bool],
) -> tuple[str, ...]:
    """Notes on outcomes without spread; raises `PatterningError` where all numbers show that no run was independent.

    `constant_arms`: those with the same weights for every seed, as permuted controls have not. `unclear`: measures
    that are yes or no, or always at an end of their range; equal outcomes prove nothing there.
    """
    clear = [name for name, doubtful in unclear.items() if not doubtful]
    constant = {name for name in unclear if len({float(v) for arm in values.values() for v in arm[name]}) == 1}
    over_seeds = {name for name in unclear if all(np.ptp(values[arm][name]) == 0 for arm in constant_arms)}
    over_arms = {
        name for name in unclear if all(np.array_equal(arm[name], values[base][name]) for arm in values.values())
    }
    if clear and constant >= set(clear):
        name = clear[0]
        raise PatterningError(
            f"measure {name!r} is {float(values[base][name][0]):.6g} after every run, to the last bit: it does not "
            "read what train returned, or train uses neither its weights nor its seed"
        )
    if clear and over_seeds >= set(clear):
        name = clear[0]
        raise PatterningError(
            f"every outcome is the same for all {len(seeds)} seeds, to the last bit (unweighted, {name!r} is "
            f"{float(values[base][name][0]):.6g}): train does not use its seed, so that there is one run and no pairs; "
            "let the seed decide the initial weights and the order of the data"
        )
    fine = [name for name in clear if not are_shares(np.concatenate([values[arm][name] for arm in constant_arms]))]
    twins = _twins([values[arm][name] for name in fine for arm in constant_arms])
    if twins and 3 * len(twins) >= len(seeds):
        one, other = (seeds[place] for place in twins[0])
        raise PatterningError(
            f"{len(twins)} of {len(seeds)} seeds give the outcomes of another one, in every arm and to the last bit "
            f"({other} those of {one}): runs that are the same are no pairs; let every seed decide the initial weights "
            "and the order of the data"
        )
    if clear and over_arms >= set(clear):
        raise PatterningError(
            "every arm ends as the unweighted one does, with each seed and to the last bit: train does not use its "
            "weights; multiply each loss by them (weights.loss), or draw rows by them (weights.sampler)"
        )
    notes = [
        f"{name!r} is {float(values[base][name][0]):.6g} after every run: it tells no arms apart"
        for name in unclear
        if name in constant
    ]
    notes += [
        f"{name!r} is the same for all seeds of an arm, to the last bit: does train use its seed?"
        for name in unclear
        if name in over_seeds - constant and not yes_or_no[name]
    ]
    for arm, own in values.items():
        if arm != base and clear and all(np.array_equal(own[name], values[base][name]) for name in clear):
            notes.append(f"{arm}: every run ended as the unweighted one of its seed, to the last bit")
    return tuple(notes)


def notes_on_jumps(values: Mapping[str, Mapping[str, Floats]], base: str, names: Sequence[str]) -> tuple[str, ...]:
    """A sentence for each arm and measure of which a pair in four or fewer is far from the rest.

    How often runs jump is then a guess, and an interval over so few pairs may miss it. Arms of `MANY_PAIRS` pairs and
    more are let be.
    """
    notes = []
    for arm, own in values.items():
        for name in names if arm != base else ():
            change = own[name] - values[base][name]
            apart = np.abs(change - np.median(change))
            rest = float(np.median(apart))
            jumped = int((apart > JUMP * rest).sum())
            if rest > 0 and 0 < jumped <= len(change) / 4 and len(change) < MANY_PAIRS:
                notes.append(
                    f"{name!r} under {arm}: {jumped} of {len(change)} pairs lies far from the others. Where runs jump "
                    f"now and then, an interval over so few pairs is often too narrow; use {MANY_PAIRS} seeds or more"
                )
    return tuple(notes)
