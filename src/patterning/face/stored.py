"""Inversion of a stored χ that does not fit in memory: read from its Zarr folder in chunks, written as parquet."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError, check_whole
from patterning.core.store import cannot_write, part_of
from patterning.face.rows import ChiRow, share_of_data, shown_rows
from patterning.intervention.change import Change
from patterning.intervention.chunked import Chunk, ChunkedSolution, invert_chunks
from patterning.intervention.rows_of_chi import MIN_RELIABILITY, untrusted
from patterning.intervention.weights_file import refuse_other_table
from patterning.intervention.wishes import not_held, plan_in_words, unconfirmed, wished
from patterning.response.store import open_response, r_hat_apart

if TYPE_CHECKING:
    import xarray

SAMPLES = 65_536
"""Of a chunk."""


@dataclass(frozen=True)
class StoredDirection:
    """A direction whose n scores are on no machine at once: `write` goes through the store again.

    `wanted` and `predicted` by row, `refused`, as of a `Direction`, with `singular_values`, `noise_floor` and `rank`.
    """

    wanted: Mapping[str, float]
    predicted: Mapping[str, Change]
    refused: str | None
    solution: ChunkedSolution
    chunks: "StoredChunks"

    @property
    def singular_values(self) -> tuple[float, ...]:
        """Of the standardised rows."""
        return tuple(self.solution.inverse.singular_values.tolist())

    @property
    def noise_floor(self) -> float:
        """The largest singular value of the noise."""
        return self.solution.inverse.noise_floor

    @property
    def rank(self) -> int:
        """Directions that are kept."""
        return self.solution.inverse.rank

    def __str__(self) -> str:
        """In words."""
        return plan_in_words(self.wanted, self.predicted, self.refused)

    def write(
        self, path: str | Path, strength: float, policy: Literal["clip", "tilt"] = "clip", *, force: bool = False
    ) -> Path:
        """A parquet file with a row for each sample: `row`, `position`, `s` and `rho`; returns its path.

        s has root mean square 1. ρ is that of `Direction.weights` with this strength and policy: mean 1 under the base
        weights, and 1 on samples that are not free. Row groups are the chunks. The store is gone through twice more.
        Raises `PatterningError` for a refused direction, unless `force`.
        """
        if self.refused and not force:
            raise PatterningError(f"this direction was refused ({self.refused}); force=True takes it all the same")
        if isinstance(strength, bool) or not (isinstance(strength, int | float) and 0 < strength < math.inf):
            raise PatterningError(f"strength is {strength!r}: it must be a number > 0; for the other way ask for it")
        if policy not in ("clip", "tilt"):
            raise PatterningError(f"policy {policy!r} is not one of clip, tilt: the others need all samples at once")
        refuse_other_table(path)
        top, total, mass = -math.inf, 0.0, 0.0
        for s, q in self._free():
            z = strength * s
            before, top = top, max(top, float(z.max(initial=-math.inf))) if policy == "tilt" else 0.0
            total = total * math.exp(before - top) if policy == "tilt" and total else total
            total += float(q @ _pulled(z, policy, top))
            mass += float(q.sum())
        if not total > 0:
            raise PatterningError(f"policy {policy} at strength {strength} leaves no weight on the free samples")
        return self._write(Path(path), strength, policy, top, mass / total)

    def _free(self) -> Iterator[tuple[Floats, Floats]]:
        """s and q of the free samples, chunk by chunk."""
        for s, chunk in zip(self.solution.scores(self.chunks), self.chunks.weights(), strict=True):
            free = chunk.free if chunk.free is not None else np.ones(len(s), dtype=bool)
            yield s[free], chunk.q[free]

    def _write(self, path: Path, strength: float, policy: str, top: float, scale: float) -> Path:
        import pyarrow
        import pyarrow.parquet

        schema = pyarrow.schema(
            [("row", pyarrow.int64()), ("position", pyarrow.int64()), ("s", pyarrow.float64()),
             ("rho", pyarrow.float64())],
            {"patterning.direction": "s and rho of each sample"},
        )  # fmt: skip
        part = part_of(path)
        try:
            with pyarrow.parquet.ParquetWriter(part, schema) as writer:
                scores, weights = self.solution.scores(self.chunks), self.chunks.weights()
                for s, chunk, (row, position) in zip(scores, weights, self.chunks.places(), strict=True):
                    rho = scale * _pulled(strength * s, policy, top)
                    rho = rho if chunk.free is None else np.where(chunk.free, rho, 1.0)
                    writer.write_table(pyarrow.table([row, position, s, rho], schema))
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise cannot_write(path, error) from None
        return path


def _pulled(z: Floats, policy: str, top: float) -> Floats:
    """ρ before it is scaled to mean 1."""
    return np.exp(z - top) if policy == "tilt" else np.maximum(0.0, 1 + z)


class StoredChunks:
    """Some rows of the χ in a Zarr folder of `Response.save`, some samples at a time."""

    def __init__(self, data: "xarray.Dataset", rows: Sequence[ChiRow], free: Any, samples: int) -> None:
        self.data, self.rows, self.samples = data, rows, samples
        count = data.sizes["sample"]
        self.free = None if free is None else np.asarray(free)
        if self.free is not None and (self.free.dtype != np.bool_ or self.free.shape != (count,)):
            raise PatterningError(f"free must be a mask, True at samples that may move, of shape ({count},)")
        known = self._read("chi_of_chain", slice(0, 1), "chain")
        self.chains = np.flatnonzero(np.isfinite(known).all((1, 2)))
        self.slices = [slice(first, first + samples) for first in range(0, count, samples)]

    def __call__(self) -> Iterator[Chunk]:
        """χ, its noise, q, what is free, and χ by chain."""
        for place, known in zip(self.slices, self.weights(), strict=True):
            halves = self._read("halves", place, "half")
            chunk = Chunk(
                self._read("chi", place), (halves[0] - halves[1]) / 2, known.q, known.free, self._chains(place)
            )
            del halves
            yield chunk
            del chunk  # the reader may have let go of it by now

    def weights(self) -> Iterator[Chunk]:
        """q and what is free alone."""
        for place in self.slices:
            q = self.data["base_weight"][place].values
            yield Chunk(None, None, q, None if self.free is None else self.free[place])

    def places(self) -> Iterator[tuple[Any, Any]]:
        """Row of the data and position in it."""
        for place in self.slices:
            yield self.data["row"][place].values, self.data["position"][place].values

    def _read(self, field: str, place: slice, *first: str) -> Floats:
        parts = [
            self.data[field].isel(component=row.c, observable=row.o, sample=place).transpose(*first, "sample").values
            for row in self.rows
        ]
        return np.stack(parts, axis=-2)

    def _chains(self, place: slice) -> Floats | None:
        """Of the chains that are known of every row: one that a component left out holds NaN."""
        return self._read("chi_of_chain", place, "chain")[self.chains] if len(self.chains) > 1 else None


def invert_store(
    path: str | Path,
    wanted: Mapping[str, float],
    hold: str | Sequence[str] = (),
    *,
    free: Any = None,
    min_reliability: float = MIN_RELIABILITY,
    samples: int = SAMPLES,
) -> StoredDirection:
    """`Response.invert` of a stored χ that does not fit in memory, `samples` of it at a time.

    `path`: the Zarr folder that `Response.save` or `patterning measure` wrote. `wanted` and `hold` as for `invert`;
    `free` (n,) bool: samples that may gain or lose weight. The result holds k numbers for k rows; its `write` gives the
    weights of all samples as parquet. `predicted` covers the rows that were asked for or held.
    """
    check_whole("samples", samples, 1)
    data = open_response(Path(path))["susceptibility"].to_dataset()
    rows = {row.name: row for row in shown_rows(data)}
    target = wished(tuple(rows), wanted, [hold] if isinstance(hold, str) else hold)
    chosen = [rows[name] for name in target]
    asked = [row for row in chosen if target[row.name]]
    reliability, r_hat = (
        {row.name: float(values.isel(component=row.c, observable=row.o)) for row in of}
        for values, of in ((data["reliability"], asked), (r_hat_apart(data), chosen))  # held rows as well, as `invert`
    )
    chunks = StoredChunks(data, chosen, free, samples)
    solution = invert_chunks(chunks, list(target.values()), float(data.attrs["n_beta"]))
    share = share_of_data(data)
    expected = dict(zip(target, (one.times(share) for one in solution.changes or ()), strict=False))
    inverse = solution.inverse
    refused = untrusted(reliability, r_hat, min_reliability) or not_held(target, inverse.predicted, inverse.spread)
    if refused is None and not expected:
        refused = "fewer than 2 chains are known of every row: no chain is left to confirm it"
    if refused is None and (wrong := unconfirmed(target, expected)):
        refused = f"chains that did not choose it do not confirm it: {wrong}; more chains or a larger budget may"
    return StoredDirection(target, expected, refused, solution, chunks)
