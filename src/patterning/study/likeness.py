"""How alike the directions of a study are: to each other, and to plain heuristics."""

from collections.abc import Mapping
from contextlib import suppress

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError
from patterning.core.plain import Document
from patterning.response.susceptibility import rank_correlation
from patterning.study.bench import Bench, Reading


def row_means(readings: Mapping[str, Reading], bench: Bench) -> dict[str, Floats]:
    """Row means (n,) of the signed scores of every direction that was not refused."""
    means = {}
    for name, reading in readings.items():
        with suppress(PatterningError):
            direction = reading.read(name, bench).direction  # a reading that was made is loaded, not made again
            if not direction.refused:
                means[name] = direction.s.reshape(bench.subject.base_weights.shape).mean(axis=1)
    return means


def likeness(directions: Mapping[str, Floats], heuristics: Mapping[str, Floats]) -> list[Document]:
    """Rank correlation over rows (n,) of each direction with the heuristics and with the other directions."""
    scales = {**heuristics, **{f"with {name}": s for name, s in directions.items()}}
    return [
        {"name": name} | {what: rank_correlation(s, scale) for what, scale in scales.items() if what != f"with {name}"}
        for name, s in directions.items()
    ]
