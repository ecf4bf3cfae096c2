"""χ by component as labelled arrays on disk: xarray on Zarr, in groups that ArviZ opens.

Group `susceptibility`: chi, standard_error (component, observable, sample), halves (half, component, observable,
sample), chi_of_chain (chain, component, observable, sample; NaN where a chain was excluded), reliability, r_hat, ess,
autocorrelation_time (component, observable), mean_loss (component, sample), rise, degrees_of_freedom of the standard
errors (component); coordinates row and position say where a sample lies in the data.
Group `posterior`: phi (chain, draw, component, observable), NaN where a chain was excluded or not run. Attributes carry
sign, units and settings.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from patterning.core.checksums import SUMS, check, seal
from patterning.core.code import code_version
from patterning.core.errors import PatterningError
from patterning.core.plain import Document
from patterning.core.store import cannot_write, part_of, remove_tree
from patterning.posterior.diagnostics import MOST_R_HAT, Diagnostics

if TYPE_CHECKING:
    import xarray

    from patterning.response.components import ComponentResponse

REMEDY = "delete it and give the command that made it again (what is finished is found again), or restore a copy"
SIGN = "chi = -Cov[phi, loss_j - L]: chi_j > 0 means that weight moved onto sample j raises <phi>"


def to_tree(response: "ComponentResponse") -> "xarray.DataTree":
    """Labelled arrays of a `ComponentResponse`, with the observables that all its components have."""
    import xarray

    found = response.by_component
    names, observables = list(found), _shared_observables(response)
    chains, draws = _chains_and_draws(response)

    def stack(field: str) -> np.ndarray:
        return np.stack([getattr(item.susceptibility, field) for item in found.values()])

    def of_rows(field: str, axis: int = 0) -> np.ndarray:
        parts = []
        for item in found.values():
            own = item.susceptibility
            picks = [own.observables.index(name) for name in observables]
            parts.append(np.take(getattr(own, field), picks, axis=axis))
        return np.stack(parts)

    def diagnostic(field: str) -> np.ndarray:
        nothing = Diagnostics(*[float("nan")] * 5)
        return np.array(
            [[getattr(item.diagnostics.get(name, nothing), field) for name in observables] for item in found.values()]
        )

    phi = np.full((chains, draws, len(names), len(observables)), np.nan)
    by_chain = np.full((chains, len(names), len(observables), len(response.rows)), np.nan)
    for c, item in enumerate(found.values()):
        own, some = item.susceptibility, item.traces[observables[0]]
        count = some.shape[1] if own.by_chain is None else len(own.by_chain)
        kept = [chain for chain in range(chains) if chain not in item.excluded][:count]
        for o, name in enumerate(observables):
            if item.traces[name].size:
                phi[kept, :, c, o] = item.traces[name].T
            if own.by_chain is not None:
                by_chain[kept, c, o] = own.by_chain[:, own.observables.index(name)]
    both = ("component", "observable")
    values = [item.susceptibility.reliability() for item in found.values()]
    reliability = [[own[name] for name in observables] for own in values]
    coordinates = {
        "component": names,
        "observable": observables,
        "row": ("sample", response.rows),
        "position": ("sample", response.positions),
    }
    susceptibility = xarray.Dataset(
        {
            "chi": ((*both, "sample"), of_rows("chi")),
            "standard_error": ((*both, "sample"), of_rows("standard_error")),
            "halves": (("component", "half", "observable", "sample"), of_rows("halves", axis=1)),
            "chi_of_chain": (("chain", *both, "sample"), by_chain),
            "mean_loss": (("component", "sample"), stack("mean_losses")),
            "base_weight": ("sample", next(iter(found.values())).susceptibility.base_weights),
            "degrees_of_freedom": (
                "component",
                np.array([item.susceptibility.degrees_of_freedom for item in found.values()]),
            ),
            "reliability": (both, np.array(reliability)),
            "r_hat": (both, diagnostic("r_hat")),
            "r_hat_limit": (both, diagnostic("r_hat_limit")),
            "ess": (both, diagnostic("ess")),
            "autocorrelation_time": (both, diagnostic("autocorrelation_time")),
            "rise": ("component", np.array([item.rise for item in found.values()])),
            "estimator": ("component", [item.estimator for item in found.values()]),
            "note": ("component", [item.note for item in found.values()]),
            "free_coordinates": ("component", np.array([response.n_free[name] for name in names])),
        },
        coordinates,
        attributes(response),
    )
    posterior = xarray.Dataset(
        {"phi": (("chain", "draw", *both), phi)},
        {"component": names, "observable": observables, "chain": np.arange(chains), "draw": np.arange(draws)},
    )
    return xarray.DataTree.from_dict({"/susceptibility": susceptibility, "/posterior": posterior})


def r_hat_apart(data: "xarray.Dataset") -> "xarray.DataArray":
    """R-hat (component, observable) where it says that chains have not settled; NaN elsewhere, or where none is known.

    `data`: the susceptibility of a tree; one of an earlier version has no limit of its own.
    """
    r_hat = data["r_hat"]
    return r_hat.where(r_hat > data.get("r_hat_limit", MOST_R_HAT))


def _shared_observables(response: "ComponentResponse") -> list[str]:
    """Those that every component has: one that fell back to the covariance has its component loss besides."""
    first, *others = (item.susceptibility.observables for item in response.by_component.values())
    return [name for name in first if all(name in names for names in others)]


def _chains_and_draws(response: "ComponentResponse") -> tuple[int, int]:
    """The most chains of any component, excluded ones included, and the draws of each."""
    counts = []
    for item in response.by_component.values():
        own = item.susceptibility.by_chain
        traces = next(iter(item.traces.values()))
        counts.append((traces.shape[1] if own is None else len(own)) + len(item.excluded))
    return max(counts), response.chains.draws


def attributes(response: "ComponentResponse") -> Document:
    """Sign, units, settings and versions, as plain values."""
    import torch

    excluded = {name: list(item.excluded.values()) for name, item in response.by_component.items() if item.excluded}
    return {
        "sign": SIGN,
        "units": "units of phi times nats; the response is d<phi>/dalpha = n_beta * sum_j q_j s_j chi_j",
        "estimator": response.estimator,
        "phi_of": response.phi,  # whose mean loss, less its value at w*, the component loss is
        "sampler": type(response.kernel).__name__,
        **asdict(response.kernel),
        **{f"chains_{key}": int(value) for key, value in asdict(response.chains).items()},
        "excluded_chains": json.dumps(excluded),
        "refused": json.dumps(dict(response.refused)),
        "warnings": json.dumps({name: list(item.warnings) for name, item in response.by_component.items()}),
        "task": response.fingerprint,
        "code": code_version("response.one_component"),
        "torch": str(torch.__version__),
    }


def save_response(
    response: "ComponentResponse", path: str | Path, more: Mapping[str, str | int | float] | None = None
) -> None:
    """Write a Zarr folder, whole and with checksums: a folder of another name is filled and then renamed.

    `more` attributes go beside those of `attributes`. Raises `PatterningError` when `path` exists or cannot be written.
    """
    tree = to_tree(response)
    tree["susceptibility"].attrs.update(more or {})
    save_tree(tree, path)


def save_tree(tree: "xarray.DataTree", path: str | Path, *, kept: bool = False) -> None:
    """Write labelled arrays as a Zarr folder, whole and with checksums; raises as `save_response` does.

    `kept`: by the package itself (`measure(out=...)`), so that a later call, or the user's own `save`, may replace it.
    """
    path = Path(path)
    if path.exists():
        if not is_kept(path):
            raise PatterningError(f"{path} exists: name another folder")
        remove_tree(path)
    tree["susceptibility"].attrs.update({"checksums": SUMS, "kept": int(kept)})
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tree.to_zarr(part, mode="w", zarr_format=2)  # version 3 has no settled form for strings
        seal(part)
        part.rename(path)
    except OSError as error:
        remove_tree(part)
        if path.exists():
            raise PatterningError(f"{path} appeared while it was written: name another folder") from None
        raise cannot_write(path, error) from None


def is_kept(path: str | Path) -> bool:
    """Whether a stored χ is the package's own copy, which may be replaced."""
    try:
        return bool(open_response(path)["susceptibility"].attrs.get("kept", 0))
    except PatterningError:
        return False


def open_response(path: str | Path) -> "xarray.DataTree":
    """The labelled arrays that `save_response` wrote.

    Every file is checked against the checksum that was written with it (a folder of an older version has none).
    Raises `PatterningError` when `path` holds no susceptibilities, or when a file is missing or has changed.
    """
    import xarray

    path = Path(path)
    if (path / SUMS).exists():
        check(path, REMEDY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the many ways not to be a Zarr folder, which the error below names
            tree = xarray.open_datatree(path, engine="zarr")
        tree["susceptibility"]["chi"]
        attributes = tree["susceptibility"].attrs
    except Exception as error:  # damaged metadata raise whatever the code that meets them raises
        raise PatterningError(f"{path} holds no susceptibilities: {_first_line(error)}") from None
    if attributes.get("checksums") == SUMS and not (path / SUMS).exists():
        raise PatterningError(f"{path} is damaged: {SUMS} is missing: {REMEDY}")
    return tree


def excluded_chains(tree: "xarray.DataTree") -> dict[str, list[str]]:
    """Why chains were left out, by component."""
    found: dict[str, list[str]] = json.loads(tree["susceptibility"].attrs["excluded_chains"])
    return found


def refused_components(tree: "xarray.DataTree") -> dict[str, str]:
    """Components whose chains gave no result, with why and what to change."""
    found: dict[str, str] = json.loads(tree["susceptibility"].attrs.get("refused", "{}"))
    return found


def component_warnings(tree: "xarray.DataTree") -> dict[str, list[str]]:
    """What a reader of χ should know, by component."""
    found: dict[str, list[str]] = json.loads(tree["susceptibility"].attrs.get("warnings", "{}"))
    return found


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
