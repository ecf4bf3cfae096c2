"""Changes that evidence in absolute units does not show: in percent of the same seed's run, and by more of a group."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from patterning.core.arrays import Floats
from patterning.core.plain import Document
from patterning.study.subject import Runs
from patterning.verification.effects import paired_effect


def change_of(mine: Floats, other: Floats) -> Document:
    """Mean paired difference over the seeds that both have, with an interval from 3 seeds on."""
    pairs = min(len(mine), len(other))
    a, b = mine[:pairs], other[:pairs]
    if pairs < 3:
        return {"difference": float((a - b).mean()), "low": None, "high": None, "pairs": pairs}
    return asdict(paired_effect(a, b))


def change_in_words(change: Document | None, form: str) -> str:
    """Of `change_of`: the difference with its interval, or with how many seeds it has; `form` as in `format`."""
    if change is None:
        return "not defined"
    if change["low"] is None:
        return f"{change['difference']:{form}} ({change['pairs']} seed{'s' * (change['pairs'] > 1)})"
    return f"{change['difference']:{form}} [{change['low']:{form}}, {change['high']:{form}}]"


def in_percent(runs: Mapping[str, Runs], measures: Sequence[str], baselines: Mapping[str, str]) -> list[Document]:
    """By arm: change of each measure in percent of the same seed's run of its baseline (arm → arm).

    None where a baseline is not positive.
    """
    rows = []
    for arm, other in baselines.items():
        row: Document = {"arm": arm, "against": other}
        for measure in measures:
            mine, base = runs[arm].measures[measure], runs[other].measures[measure]
            base = base[: len(mine)]
            row[measure] = change_of(100 * (mine / base), np.full_like(base, 100.0)) if (base > 0).all() else None
        rows.append(row)
    return rows


def by_more_of(runs: Mapping[str, Runs], groups: Sequence[str], measure: str, base: str) -> list[Document]:
    """What more of each group does to a measure: by doubling it, by removing it ("double x" and "remove x" are arms).

    `more`: minus the change by removing it, or half the difference of both.
    """
    rows = []
    for group in groups:
        found = {change: runs[f"{change} {group}"] for change in ("double", "remove") if f"{change} {group}" in runs}
        if not found:
            continue
        up, down = (found.get(change, runs[base]).measures[measure] for change in ("double", "remove"))
        half = 1 / len(found)
        row: Document = {"group": group, "more": change_of(half * up, half * down)}
        rows.append(row | {change: change_of(own.measures[measure], runs[base].measures[measure])
                           for change, own in found.items()})  # fmt: skip
    return rows
