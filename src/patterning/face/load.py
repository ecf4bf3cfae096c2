"""`load`: χ that was stored, by this package or by devinterp 2 (`from_devinterp`)."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError, PatterningWarning, check_whole
from patterning.core.identity import digest
from patterning.core.task import Task
from patterning.face.examples import tokens_of
from patterning.face.response import Response
from patterning.face.rows import attributes_of_data
from patterning.models.components import find_component
from patterning.posterior.chains import ChainConfig
from patterning.response.components import ComponentResponse
from patterning.response.devinterp_store import (
    StoredDraws,
    check_alike,
    kind_of,
    open_tree,
    response_of_draws,
    stores_in,
    table_of,
)
from patterning.response.sample import SampledResponse
from patterning.response.store import open_response, to_tree

if TYPE_CHECKING:
    import xarray


def load(path: str | Path, task: Task | None = None) -> Response:
    """The response that `Response.save` wrote, or that devinterp 2 left; or the folder of `measure`, with its `out`.

    With its `task`, samples can be shown and weights can be made; raises `PatterningError` where it is another task's.
    What devinterp wrote is read by `from_devinterp`, whose other arguments it takes.
    """
    if not isinstance(path, str | Path):
        raise PatterningError(f"load reads a folder or file, and was given {type(path).__name__}: its path comes first")
    if task is not None and not isinstance(task, Task):
        raise PatterningError(f"task is {type(task).__name__}: it must be the Task that χ was measured on")
    path = Path(path)
    path = path / "chi.zarr" if (path / "chi.zarr").is_dir() else path
    if kind_of(path) is not None:
        return from_devinterp(path, task)
    tree = open_response(path)
    if task is not None:
        _check_task(path, {str(key): value for key, value in tree["susceptibility"].attrs.items()}, task)
    return Response(tree, task)


def _check_task(path: Path, stored: Mapping[str, Any], task: Task) -> None:
    """Raise `PatterningError` where the data are others; warn where only the model or the loss is another one."""
    if stored["task"] == task.fingerprint:
        return
    if stored.get("data_fingerprint") != digest(task.data_fingerprint, task.base_weights):
        raise PatterningError(
            f"{path} was measured on another task (fingerprint {stored['task']}, not {task.fingerprint}): the model, "
            "its weights, the loss or the data have changed"
        )
    warnings.warn(
        f"{path} was measured on the same data, with another model, other parameters in it or another loss: χ is that "
        "of then. (A module that is made anew has other random parameters, unless it is seeded.)",
        PatterningWarning,
        stacklevel=3,
    )


def from_devinterp(
    source: Any,
    task: Task | None = None,
    *,
    phi: str | None = None,
    probes: str | Sequence[str] | None = None,
    skip_draws: int = 0,
    n_beta: float | None = None,
) -> Response:
    """χ from devinterp 2 (written by 2.0.1): a store of `sample`, a folder or dict of these, or its table of χ.

    `source`: the path of a Zarr store, a folder that holds several (one for each weight restriction), a `DataTree`, or
    a dict name → path or `DataTree`. **Stores of draws** give χ = -Cov[φ, ℓ_j - L] of every probed token, with errors
    over chains, reliability and R-hat. φ is the mean loss of the set of probe rows `phi` (needed where a store holds
    several), columns are the tokens of the sets `probes` (default: all others). The first `skip_draws` draws of each
    chain are left out. **The table** that `susceptibilities` returned has no errors: they are NaN, printed as
    "(error unknown)", and so is nβ, unless `n_beta` says it.

    `task`: that of the same model and loss, whose rows hold the probed texts; they are found by their tokens. With it,
    samples can be shown and weights be made. Raises `PatterningError` for what devinterp did not write, or not finish.
    """
    check_whole("skip_draws", skip_draws, 0)
    trees = _trees(source)
    if len(trees) == 1 and "susceptibilities" in next(iter(trees.values())).children:
        if phi is not None or probes is not None or skip_draws:
            raise PatterningError("this is a table of χ, without draws: phi, probes and skip_draws choose among draws")
        return _of_table(next(iter(trees.values())), task, float("nan") if n_beta is None else float(n_beta))
    if n_beta is not None:
        raise PatterningError("n_beta is stored with the draws: leave it out")
    stores = [StoredDraws.of(name, tree) for name, tree in trees.items()]
    check_alike(stores)
    phi, sets = _choose(stores[0].sets, phi, [probes] if isinstance(probes, str) else probes)
    tokens = {name: stores[0].tokens(name) for name in sets}
    columns = _columns(tokens, task)
    found = {
        store.name: response_of_draws(store, phi, sets, columns.place, columns.weight, skip_draws) for store in stores
    }
    return _response(found, columns, task, stores[0].settings, {"phi_of": phi}, stores[0].counts, skip_draws)


def _trees(source: Any) -> dict[str, "xarray.DataTree"]:
    """Name → store, of whatever the user has."""
    from xarray import DataTree

    if isinstance(source, DataTree):
        return {str(source.name or "devinterp"): source}
    if isinstance(source, Mapping):
        opened = {str(name): list(_trees(part).values()) for name, part in source.items()}
        if not opened or any(len(trees) != 1 for trees in opened.values()):
            raise PatterningError("a dict of stores holds one store for each name, at least one")
        return {name: trees[0] for name, trees in opened.items()}
    path = Path(source)
    kind = kind_of(path)
    if kind is None:
        raise PatterningError(
            f"{path} is neither a store of devinterp's draws, nor a folder of these, nor its table of susceptibilities"
        )
    paths = stores_in(path) if kind == "folder of draws" else {path.name.removesuffix(".zarr"): path}
    return {name: open_tree(part) for name, part in paths.items()}


def _choose(sets: Sequence[str], phi: str | None, probes: Sequence[str] | None) -> tuple[str, list[str]]:
    """The set whose mean loss is φ, and those that χ has columns for."""
    if phi is None and len(sets) > 1:
        raise PatterningError(
            f"the draws hold the losses of {', '.join(sets)}: say whose mean loss φ is, phi={sets[0]!r} (devinterp "
            "calls it the sampling task)"
        )
    phi = sets[0] if phi is None else phi
    chosen = list(probes) if probes is not None else [name for name in sets if name != phi] or [phi]
    for name in (phi, *chosen):
        if name not in sets:
            raise PatterningError(f"the draws hold no losses of {name!r}: they have {', '.join(sets)}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise PatterningError("probes must name sets of rows once each, at least one")
    return phi, chosen


@dataclass(frozen=True)
class _Columns:
    """The samples that χ has columns for: `place` (n,) of each among all tokens of the probe rows, laid end to end."""

    place: NDArray[np.int64]
    row: NDArray[np.int64]
    position: NDArray[np.int64]
    weight: Floats
    sets: list[str]
    tokens: NDArray[np.int64] | None = None


def _columns(tokens: Mapping[str, NDArray[np.int64]], task: Task | None) -> _Columns:
    """Every token; of a `task`, those that are samples of it, in its rows."""
    together = np.concatenate(list(tokens.values()))
    of_row = np.repeat(list(tokens), [len(rows) for rows in tokens.values()])
    t = together.shape[1] - 1
    place = np.arange(len(together) * t)
    if task is None:
        row, position = place // t, place % t
        weight = np.full(len(place), 1 / len(place))
        return _Columns(place, row, position, weight, of_row[place // t].tolist(), together)
    import torch

    rows = _rows_of(task, together)
    samples = task.samples(torch.from_numpy(rows))
    place = samples.place
    return _Columns(place, samples.row, samples.position, samples.weight, of_row[place // t].tolist())


def _rows_of(task: Task, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of the task's data that holds each text; raises `PatterningError` where one is missing or there twice."""
    import torch

    if task.samples_per_row != tokens.shape[1] - 1:
        raise PatterningError(
            f"devinterp's texts have {tokens.shape[1] - 1} predicted tokens each, and the task {task.samples_per_row} "
            "samples a row: give the task of the same texts"
        )
    from patterning.core.batch import take_rows

    own = tokens_of(take_rows(task.data, torch.arange(len(task.base_weights)))).cpu().numpy()
    known: dict[bytes, int] = {}
    for number, text in enumerate(own.astype(np.int64)):
        known.setdefault(text.tobytes(), number)
    rows = [known.get(text.tobytes(), -1) for text in tokens.astype(np.int64)]
    if -1 in rows:
        raise PatterningError(f"row {rows.index(-1)} of devinterp's probe rows is no row of the task's data")
    if len(set(rows)) < len(rows):
        twice = next(row for row in rows if rows.count(row) > 1)
        raise PatterningError(f"row {twice} of the task's data was probed twice: χ has one column for each sample")
    return np.array(rows)


def _response(
    found: Mapping[str, SampledResponse], columns: _Columns, task: Task | None, settings: Mapping[str, Any],
    more: Mapping[str, str], counts: tuple[int, int], skipped: int,
) -> Response:  # fmt: skip
    """As the labelled arrays of a response of our own."""
    estimator = next(iter(found.values())).estimator
    chains = ChainConfig(
        counts[0], counts[1] - skipped, int(settings.get("num_burnin_steps") or 0),
        int(settings.get("num_steps_bw_draws") or 1), int(settings.get("batch_size") or 1),
        max(0, int(settings.get("init_seed") or 0)),
    )  # fmt: skip
    nan = float("nan")
    kernel = _Settings(
        next(iter(found.values())).susceptibility.n_beta, float(settings.get("localization", nan)),
        float(settings.get("lr", nan)),
    )  # fmt: skip
    response = ComponentResponse(
        by_component=found, rows=columns.row, positions=columns.position,
        n_free={name: _count(task, name) for name in found}, estimator=estimator,
        kernel=kernel,  # pyright: ignore[reportArgumentType]
        chains=chains, fingerprint="devinterp" if task is None else task.fingerprint,
    )  # fmt: skip
    tree = to_tree(response)
    data = tree["susceptibility"].to_dataset().assign_coords(set=("sample", columns.sets))
    if columns.tokens is not None:
        data["tokens"] = (("text", "token"), columns.tokens)
    sampler = f"devinterp {settings.get('sampling_method', '')}".strip()
    data.attrs.update({"sampler": sampler, "source": "devinterp", **more})
    if task is not None:
        data.attrs.update(attributes_of_data(task, columns.row))
    tree["susceptibility"] = type(tree)(data)
    return Response(tree, task)


def _of_table(tree: "xarray.DataTree", task: Task | None, n_beta: float) -> Response:
    table = table_of(tree, n_beta)
    place, weight = np.arange(len(table.row)), next(iter(table.by_restriction.values())).susceptibility.base_weights
    tokens = _tokens_of_table(tree, table.row)
    row = table.row if task is None or tokens is None else _rows_of(task, tokens)[table.row]
    columns = _Columns(place, row, table.position, weight, table.sets, tokens if task is None else None)
    return _response(table.by_restriction, columns, task, {}, {"phi_of": "sampling task"}, (1, 1), 0)


def _tokens_of_table(tree: "xarray.DataTree", row: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Token numbers (rows, t + 1), where the table was stored with its context."""
    if "context" not in tree.children:
        return None
    ids = tree["context"].to_dataset()["input_ids"].values
    count = int(row.max()) + 1
    return ids.reshape(count, -1) if ids.size % count == 0 else None


@dataclass(frozen=True)
class _Settings:
    """Of chains that another library ran."""

    n_beta: float
    localization: float
    step_size: float


def _count(task: Task | None, name: str) -> int:
    """Free coordinates of a component, 0 where they are not known."""
    try:
        return 0 if task is None else find_component(task.module, name).count(task.module)
    except PatterningError:
        return 0
