"""Weights of a corpus, written to a parquet file as its rows go by: a part at a time, and resumed after a kill.

The rule that gives a row its weight is fitted on the probed rows (`intervention.extend`). Each part of the corpus is
then evaluated and written to a folder beside the file; a part that is there is not computed again. In the end all are
joined, with ρ scaled to mean 1, and the folder goes. Memory: the model, the probed rows and one part.
"""

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patterning.core.arrays import Bools, Floats
from patterning.core.batch import Batch, as_batch, check_form, count_rows, take_rows
from patterning.core.code import code_version
from patterning.core.errors import PatterningError, check_whole
from patterning.core.identity import digest
from patterning.core.locks import hold
from patterning.core.plain import Plain
from patterning.core.progress import report_progress
from patterning.core.store import (
    cannot_write,
    part_of,
    read_arrays,
    remove_tree,
    strict_json,
    write_arrays,
    write_json,
    write_whole,
)
from patterning.core.task import Task
from patterning.core.threads import undisturbed
from patterning.core.workers import one_thread
from patterning.intervention.extend import BATCH, Pull, Rule, facts_of_all, fit_rule, losses_and_slopes, ready
from patterning.intervention.weights_file import FORMAT, refuse_other_table

if TYPE_CHECKING:
    import pyarrow

PARTS = "[0-9]*.parquet"
EVERY = 30.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class ExtendedFile:
    """The file with weights of `rows` rows; `pt.Weights.from_parquet(path)` reads it where it fits in memory.

    `held_out_r2`: share of the variance of scores that is predicted on probed rows left out. `effective_sample_size` as
    a share. `rows_per_second`: of the parts that this call computed (NaN where all were there).
    """

    path: Path
    rows: int
    held_out_r2: float
    effective_sample_size: float
    rows_per_second: float


@undisturbed()
def extend_to(
    weights: Any,
    out: Path,
    task: Task,
    data: object = None,
    at: Any = None,
    *,
    force: bool = False,
    rows_per_part: int = 8192,
    progress: bool = True,
) -> ExtendedFile:
    """ρ of all rows of `data` (None: of the task's), predicted at w* from `weights` of probed rows of `task`.

    `data`: rows in the form of the task's, in what a task takes as data; all of them are predicted. Of the task's own
    rows, those with weights keep them. `at`: w*, a module or a row of parameters (None: the task's module). A part, and
    a row group of the file, has `rows_per_part` rows. `force` takes a prediction that is worth nothing. `progress`
    prints rows a second. On one thread: the same bits whether it was killed or not. Raises `PatterningError` as
    `Weights.extend` does, and where the folder beside `out` holds parts of other weights.
    """
    check_whole("rows_per_part", rows_per_part, 1)
    refuse_other_table(out)
    anchor, known = ready(weights, task, at)
    source = task.data if data is None else as_batch(data)
    count_rows(source)
    first = torch.zeros(1, dtype=torch.int64)
    check_form("data", take_rows(source, first), take_rows(task.data, first))
    folder = out.with_name(f"{out.name}.parts")
    with one_thread(), hold(folder):
        key = digest(weights.rho, weights.base_weights, weights.free, task.fingerprint, anchor, source, rows_per_part,
                     code_version("intervention.extend_file"))  # fmt: skip
        _claim(folder, key)
        rho, q = weights.rho.ravel(), weights.base_weights.ravel()
        try:
            rule = _rule(folder / "rule.safetensors", lambda: fit_rule(rho, q, known, task, anchor, force=force))
            corpus = _Corpus(task, anchor, rule, source, weights if data is None else None)
            speed = _compute(corpus, folder, rows_per_part, progress)
        except PatterningError:
            if not any(folder.glob(PARTS)):  # nothing to go on from: the mended call must not be refused for it
                remove_tree(folder)
            raise
        share = float(q[known].sum() / q.sum())
        ess = _join(folder, out, digest(source), lambda sums: facts_of_all(weights.facts, share, rule, sums))
        remove_tree(folder)
    return ExtendedFile(out, corpus.rows, rule.held_out_r2, ess, speed)


def _claim(folder: Path, key: str) -> None:
    """Note whose parts the folder holds; raises `PatterningError` where they are another's."""
    note = folder / "key.json"
    if note.exists() and json.loads(note.read_text())["key"] != key:
        raise PatterningError(
            f"{folder} holds parts of other weights, rows or settings: delete it, or name another file"
        )
    write_json(note, {"key": key})
    for left in folder.glob("*.part"):
        left.unlink()


def _rule(path: Path, fit: Any) -> Rule:
    """The rule that lies at `path`, or a new one, which is put there."""
    if not path.exists():
        rule: Rule = fit()
        numbers = np.array([rule.held_out_r2, rule.probed, rule.pull, rule.along])
        write_arrays(path, {"direction": rule.direction.cpu().numpy(), "coefficients": rule.coefficients,
                            "predicted": rule.predicted, "rho": rule.rho, "numbers": numbers})  # fmt: skip
    found = read_arrays(path)
    r2, probed, pull, along = found["numbers"].tolist()
    direction = torch.from_numpy(found["direction"])
    return Rule(direction, found["coefficients"], found["predicted"], found["rho"], r2, int(probed), pull, along)


@dataclass(frozen=True)
class _Corpus:
    """Rows to be weighted. `given`: weights of the same rows, of which the free ones are known already."""

    task: Task
    anchor: Tensor
    rule: Rule
    data: Batch
    given: Any

    @property
    def rows(self) -> int:
        return count_rows(self.data)

    def part(self, first: int, last: int) -> "pyarrow.Table":
        """Rows first to last - 1 as a table: id, rho, base_weight, free; lists where rows have several samples.

        Besides, `slope` and which samples are `known`, which the joined file does not keep.
        """
        import pyarrow

        found = [self._tried(torch.arange(a, min(a + BATCH, last))) for a in range(first, last, BATCH)]
        rho, q, slope, known = (np.concatenate(parts) for parts in zip(*found, strict=True))
        ids = np.arange(first, last) if self.given is None else self.given.ids[first:last]
        columns = {"id": ids, "rho": rho, "base_weight": q, "free": q > 0, "slope": slope, "known": known}
        return pyarrow.table({name: _column(value) for name, value in columns.items()})

    def _tried(self, rows: Tensor) -> tuple[Floats, Floats, Floats, Bools]:
        try:
            return self._batch(rows)
        except PatterningError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise PatterningError(
                f"the module or its loss cannot run on rows {int(rows[0])} to {int(rows[-1])} of data "
                f"({type(error).__name__}: {error})"
            ) from error

    def _batch(self, rows: Tensor) -> tuple[Floats, Floats, Floats, Bools]:
        """ρ, q, slope and which are known, (b,) or (b, t)."""
        batch = take_rows(self.data, rows)
        index = torch.arange(len(rows), device=self.anchor.device)
        losses, slopes = losses_and_slopes(
            lambda flat, part: self.task.run(self.task.named(flat), batch, part),
            self.anchor, self.rule.direction.to(self.anchor), index,
        )  # fmt: skip
        shape = (len(rows),) if self.task.samples_per_row == 1 else (len(rows), self.task.samples_per_row)
        rho = self.rule.weights(losses, slopes).reshape(shape)
        if self.given is None:
            q, own = self._present(index, batch).reshape(shape), np.zeros(shape, dtype=bool)
        else:
            q = self.given.base_weights[rows.numpy()].reshape(shape)
            own = self.given.free[rows.numpy()].reshape(shape) & (q > 0)
            rho = np.where(own, self.given.rho[rows.numpy()].reshape(shape), rho)
        undefined = ~np.isfinite(np.where(q > 0, losses.reshape(shape), 0.0)).reshape(len(rows), -1).all(axis=1)
        if undefined.any():
            bad = int(rows[int(np.argmax(undefined))])
            raise PatterningError(f"the loss of row {bad} is NaN or infinite at w*: leave it out, or mask it")
        return np.where(q > 0, rho, 1.0), q, np.where(q > 0, slopes.reshape(shape), 0.0), own

    def _present(self, index: Tensor, batch: Batch) -> Floats:
        """1 for each sample, 0 where there is none (or the weight that the loss gives it)."""
        if not self.task.trial.masked:
            return np.ones(len(index) * self.task.samples_per_row)
        with torch.no_grad():
            mask = self.task.answer(index, batch=batch)[1]
        assert mask is not None
        return mask.double().cpu().numpy()


def _column(values: np.ndarray) -> Any:
    return list(values) if values.ndim == 2 else values


def _compute(corpus: _Corpus, folder: Path, rows_per_part: int, progress: bool) -> float:
    """Write the parts that are not there; returns rows a second."""
    import pyarrow.parquet

    done, begun, due, rows = 0, time.monotonic(), time.monotonic() + EVERY, corpus.rows
    for number, first in enumerate(range(0, rows, rows_per_part)):
        path, last = folder / f"{number:08d}.parquet", min(first + rows_per_part, rows)
        if path.exists():
            continue
        whole = io.BytesIO()
        pyarrow.parquet.write_table(corpus.part(first, last), whole)
        write_whole(path, whole.getvalue())
        done += last - first
        report_progress(last / rows)
        if progress and (time.monotonic() >= due or last == rows):
            due, speed = time.monotonic() + EVERY, done / max(time.monotonic() - begun, 1e-9)
            left = "" if last == rows else f", {(rows - last) / speed:,.0f} s left"
            print(f"weights: {last:,} of {rows:,} rows, {speed:,.0f} rows/s{left}", file=sys.stderr, flush=True)
    return done / max(time.monotonic() - begun, 1e-9) if done else float("nan")


def _join(folder: Path, out: Path, data: str, facts_of: Callable[[Pull], dict[str, Plain]]) -> float:
    """All parts as one file, with ρ scaled to mean 1 and q to sum 1; returns the effective sample size."""
    import pyarrow
    import pyarrow.parquet

    total = mean = square = 0.0
    sums = Pull()
    for table in _parts(folder):
        rho, q, slope, known = (_flat(table[name]) for name in ("rho", "base_weight", "slope", "known"))
        sums.add(rho, q, slope, known > 0)
        total, mean, square = total + float(q.sum()), mean + float(q @ rho), square + float(q @ rho**2)
    if not mean > 0:
        raise PatterningError("the weights are all zero, or every sample is masked: there is nothing to train on")
    scale, ess = total / mean, mean**2 / (total * square)
    facts = strict_json(facts_of(sums) | {"effective_sample_size": ess})
    meta = {"patterning": json.dumps({"format": FORMAT, "data": data, "facts": facts})}
    part, writer = part_of(out), None
    try:
        for table in _parts(folder):
            table = table.drop_columns(["slope", "known"])  # noqa: PLW2901
            for name, factor in (("rho", scale), ("base_weight", 1 / total)):
                place, flat = table.schema.get_field_index(name), _flat(table[name]) * factor
                shape = (len(table), -1) if pyarrow.types.is_list(table.schema.field(name).type) else (-1,)
                table = table.set_column(place, name, pyarrow.array(_column(flat.reshape(shape))))  # noqa: PLW2901
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(part, table.schema.with_metadata(meta))
            writer.write_table(table)
        assert writer is not None
        writer.close()
        part.replace(out)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise cannot_write(out, error) from None
    return ess


def _parts(folder: Path) -> "Iterator[pyarrow.Table]":
    """Their tables, one in memory at a time."""
    import pyarrow.parquet

    for path in sorted(folder.glob(PARTS)):
        yield pyarrow.parquet.read_table(path, memory_map=False)


def _flat(column: Any) -> Floats:
    """A column of numbers, or of lists of them, as float64 one after the other."""
    values = column.combine_chunks()
    values = values.flatten() if hasattr(values, "flatten") and str(values.type).startswith("list") else values
    return values.to_numpy(zero_copy_only=False).astype(np.float64)
