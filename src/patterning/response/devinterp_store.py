"""What devinterp 2 leaves on disk, read as χ: the draws that `sample` stored, and the table of `susceptibilities`.

**A store of draws**, one for each weight restriction, holds the loss of every token of some sets of probe rows at every
draw: `loss_<set>` (chain, draw, row, token), with `input_ids_<set>`. From these χ = -Cov[φ, ℓ_j - L] is computed as
from chains of our own (`response.susceptibility`), φ being the mean loss of one set: errors, reliability and R-hat are
known. Not stored are the losses of these rows at w* (so the rise of the loss and λ̂ are unknown), which rows of the
data they are, and which parameters were free.

**A table of susceptibilities** holds devinterp's own numbers (Baker et al., arXiv 2504.18274, appendix C.4) and neither
errors nor settings: what is unknown is NaN.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError
from patterning.response.moments import Moments
from patterning.response.sample import Draws, SampledResponse, summarise
from patterning.response.susceptibility import Susceptibility

if TYPE_CHECKING:
    import xarray

Kind = Literal["draws", "folder of draws", "table"]
BATCHES = 4
"""Parts that a chain's draws are cut into for the standard errors, as in chains of our own."""
AT_ONCE = 64
"""Draws that are read at a time."""


def kind_of(path: Path) -> Kind | None:
    """What of devinterp's lies at `path`; None: nothing."""
    if (path / "sampling_loss").is_dir():
        return "draws"
    if (path / "susceptibilities").is_dir():
        return "table"
    return "folder of draws" if path.is_dir() and stores_in(path) else None


def stores_in(folder: Path) -> dict[str, Path]:
    """Stores of draws in a folder, by weight restriction: what comes after the name that all files begin with."""
    paths = sorted(path for path in folder.iterdir() if (path / "sampling_loss").is_dir())
    stems = [path.name.removesuffix(".zarr") for path in paths]
    start = 0
    if len(stems) > 1:  # samples_full, samples_l0h1: what susceptibilities(output_path="samples.zarr") writes
        same = next(i for i in range(max(map(len, stems)) + 1) if len({stem[: i + 1] for stem in stems}) > 1)
        start = stems[0].rfind("_", 0, same) + 1
    return {stem[start:]: path for stem, path in zip(stems, paths, strict=True)}


def open_tree(path: Path) -> "xarray.DataTree":
    """The store at `path`, lazily; raises `PatterningError` where it cannot be opened."""
    import xarray

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strings, whose form in Zarr 3 is not settled
            whole = None if (path / ".zmetadata").exists() else False
            return xarray.open_datatree(path, engine="zarr", consolidated=whole)
    except Exception as error:  # damaged metadata raise whatever the code that meets them raises
        raise PatterningError(f"{path} cannot be opened as devinterp's: {str(error).splitlines()[:1]}") from None


@dataclass(frozen=True)
class StoredDraws:
    """A store of draws of the weight restriction `name`: its sampler's `settings` and its `sets` of probe rows."""

    name: str
    data: "xarray.Dataset"
    settings: Mapping[str, Any]
    sets: tuple[str, ...]

    @classmethod
    def of(cls, name: str, tree: "xarray.DataTree") -> "StoredDraws":
        """Raises `PatterningError` for a store that is not devinterp's, or that was not finished."""
        try:
            config = tree.attrs["metadata"]["config"]
            settings, sets = dict(config["sampler"]), tuple(str(row["obs_id"]) for row in config["observables"])
            settings |= {key: float(settings[key]) for key in ("lr", "n_beta", "localization")}
            missing = [what for s in sets for what in (f"loss_{s}", f"input_ids_{s}") if what not in tree.data_vars]
        except (KeyError, TypeError, ValueError) as error:
            raise PatterningError(f"{name!r} is no store of draws as devinterp 2 writes them ({error!r})") from None
        if missing or not sets:
            raise PatterningError(f"the draws of {name!r} lack {', '.join(missing) or 'every set of probe rows'}")
        if tree.attrs.get("completed") != 1:
            raise PatterningError(
                f"the draws of {name!r} are not complete: their sampling was interrupted; run it again"
            )
        return cls(name, tree.to_dataset(), settings, sets)

    @property
    def counts(self) -> tuple[int, int]:
        """Chains and draws of each."""
        sizes = self.data[f"loss_{self.sets[0]}"].sizes
        return sizes["chain"], sizes["draw"]

    def tokens(self, name: str) -> NDArray[np.int64]:
        """Token numbers (rows, t + 1) of a set."""
        return self.data[f"input_ids_{name}"].transpose(..., "token").values

    def losses(self, name: str, draws: slice) -> Floats:
        """Losses in nats (chains, draws, rows, t) of a set."""
        rows = f"batch_{name}"
        return self.data[f"loss_{name}"].transpose("chain", "draw", rows, "token_pos")[:, draws].values.astype(float)

    def warnings(self, skipped: int) -> tuple[str, ...]:
        """What a reader of χ should know of how these chains were run."""
        at, lines = self.settings, []
        if not at.get("num_burnin_steps") and not skipped:
            lines.append(
                "chains had no burn-in, and every draw counts: the way from w*, which all chains share, passes for "
                "covariance; leave the first draws out with skip_draws="
            )
        for key, plain, what in (
            ("noise_level", 1.0, "the noise is not that of the posterior at n_beta"),
            ("llc_weight_decay", 0.0, "the posterior has a second prior, around 0"),
            ("bounding_box_size", None, "weights are kept in a box"),
        ):
            if at.get(key, plain) != plain:
                lines.append(f"{key} is {at[key]}: {what}")
        return tuple(lines)


def check_alike(stores: Sequence[StoredDraws]) -> None:
    """Raise `PatterningError` where stores are of other settings or probe rows, so that their χ is no one table."""
    first = stores[0]
    for store in stores[1:]:
        for key in ("n_beta", "localization", "lr", "sampling_method", "noise_level"):
            if store.settings.get(key) != first.settings.get(key):
                raise PatterningError(
                    f"{key} is {first.settings.get(key)} for {first.name!r} and {store.settings.get(key)} for "
                    f"{store.name!r}: rows of χ of one table have the same settings"
                )
        if store.sets != first.sets or any(
            not np.array_equal(store.tokens(name), first.tokens(name)) for name in first.sets
        ):
            raise PatterningError(f"{first.name!r} and {store.name!r} hold other probe rows: χ has one column a token")


def response_of_draws(
    store: StoredDraws, phi: str, probes: Sequence[str], place: NDArray[np.int64], weights: Floats, skipped: int
) -> SampledResponse:
    """χ of φ, the mean loss of the set `phi`, for the tokens `place` (n,) among those of the sets `probes`, row by row.

    `weights` q (n,); the first `skipped` draws are left out. Chains with a loss that is not finite are left out by
    name. Raises `PatterningError` for draws that leave no error bar.
    """
    chains, stored = store.counts
    draws, observable = stored - skipped, f"loss of {phi}"
    if draws < max(4, BATCHES):
        raise PatterningError(
            f"{stored} draws a chain, of which {skipped} are skipped, give no standard error: keep at least {BATCHES}"
        )
    moments: Moments | None = None
    trace, undefined = np.empty((draws, chains, 1)), dict[int, str]()
    for first in range(skipped, stored, AT_ONCE):
        part = slice(first, min(first + AT_ONCE, stored))
        means = store.losses(phi, part).mean((2, 3))  # (chains, draws)
        losses = np.concatenate([store.losses(name, part).reshape(*means.shape, -1) for name in probes], axis=2)[
            ..., place
        ]
        for c, d in np.argwhere(~(np.isfinite(means) & np.isfinite(losses).all(2))).tolist():
            undefined.setdefault(c, f"chain {c}: a loss is NaN or infinite at draw {first + d}")
        losses, means = np.nan_to_num(losses), np.nan_to_num(means)  # of chains that are left out below
        if moments is None:
            moments = Moments.empty(chains, BATCHES, losses[0, 0], means[0, :1])
        for d in range(means.shape[1]):
            number = first - skipped + d
            trace[number, :, 0] = means[:, d]
            moments.add(number * BATCHES // draws, means[:, d, None], losses[:, d])
    assert moments is not None
    kept = [c for c in range(chains) if c not in undefined]
    found = summarise(
        Draws(
            moments.select(kept), trace[:, kept], np.zeros((draws, len(kept), 0)), np.zeros(0, np.int64),
            np.zeros((0, len(kept)), np.float32), undefined,
        ),
        (observable,), weights, float(store.settings["n_beta"]),
    )  # fmt: skip
    note = "read from devinterp's draws; losses at w* are not among them"
    return replace(found, rise=float("nan"), note=note, moments=None, warnings=store.warnings(skipped))


@dataclass(frozen=True)
class PeerTable:
    """devinterp's table: χ by weight restriction; of each column its row, its position and the set of probe rows.

    Rows of several sets are numbered one set after the other.
    """

    by_restriction: Mapping[str, SampledResponse]
    row: NDArray[np.int64]
    position: NDArray[np.int64]
    sets: list[str]


def table_of(tree: "xarray.DataTree", n_beta: float) -> PeerTable:
    """The table in `tree`, made at `n_beta` (NaN: unknown); raises `PatterningError` where it is none."""
    try:
        data = tree["susceptibilities"].to_dataset().load()
        chi = data["sus"].transpose("wr", "sus_flat").values.astype(float)
        which, batch = data["dataset_id"].values.astype(int), data["batch"].values.astype(int)
        position = data["target_position"].values.astype(int) - 1  # sample i predicts token i + 1
        names = [str(name) for name in np.atleast_1d(data.attrs["dataset_id_to_name"])]
        restrictions = [str(name) for name in data["wr"].values]
    except (KeyError, ValueError, TypeError) as error:
        raise PatterningError(f"this is no table of susceptibilities as devinterp 2 makes it ({error!r})") from None
    sizes = [batch[which == i].max(initial=-1) + 1 for i in range(len(names))]
    row = batch + np.concatenate([[0], np.cumsum(sizes)])[which]
    weights = np.full(len(row), 1 / len(row))
    found = {name: _without_errors(values, weights, n_beta) for name, values in zip(restrictions, chi, strict=True)}
    return PeerTable(found, row, position, [names[i] for i in which])


def _without_errors(chi: Floats, weights: Floats, n_beta: float) -> SampledResponse:
    nothing = np.full((1, len(chi)), np.nan)
    return SampledResponse(
        susceptibility=Susceptibility(
            observables=("loss of the sampling task",), n_beta=n_beta, base_weights=weights, chi=chi[None],
            standard_error=nothing, degrees_of_freedom=float("nan"), halves=np.stack([nothing, nothing]),
            mean_losses=nothing[0], mean_losses_error=nothing[0],
        ),
        traces={"loss of the sampling task": np.zeros((0, 0))}, diagnostics={}, sample_diagnostics={},
        watched_traces=np.zeros((0, 0, 0)), excluded={}, rise=float("nan"), estimator="devinterp2",
        note="devinterp's table, which holds no errors",
        warnings=(
            "errors and reliability are unknown: devinterp's table holds χ alone, with a baseline that all components "
            "share (docs/interpretation.md); the stores of its draws have errors: pt.from_devinterp(their folder)",
        ),
    )  # fmt: skip
