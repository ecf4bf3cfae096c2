"""`Response`: the susceptibility matrix χ as one object, with its errors, its samples and what can be done with it.

A row of χ is a component with an observable; a column is a sample.

**Which sign strengthens this head?** χ_j > 0 means that weight moved onto sample j raises ⟨φ⟩. What that says depends
on φ. For a *component loss* φ_C = L(w) - L(w*) around component C, a lower ⟨φ⟩ means that shaking the component costs
less: ask for less of it, ``invert({"l1h3": -1})``, to weight the samples that the component serves (χ_j < 0 there:
their loss rises and falls with the component's). For a *loss* on a set, less of it is better performance there. For a
*score* (an attention score, a probe's output, a logit gap), more of it is more of the structure. A sign of χ is that of
the posterior around w*; whether training follows it is for retraining to decide (`verify`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from patterning.core.arrays import Floats, check_level
from patterning.core.errors import PatterningError, check_whole
from patterning.core.samples import Samples
from patterning.core.task import Task
from patterning.face.examples import Decode, Example, as_text
from patterning.intervention.direction import MIN_RELIABILITY, Data, Direction, Rows, find_direction
from patterning.response.moderated import moderate
from patterning.response.modes import Modes, find_modes
from patterning.response.sample import COMPONENT_LOSS
from patterning.response.store import (
    component_warnings,
    excluded_chains,
    open_response,
    refused_components,
    save_tree,
)

if TYPE_CHECKING:
    import xarray

WEAK = 0.5
"""Reliability under which a row of χ is called mostly noise."""


@dataclass(frozen=True)
class RowMeans:
    """χ averaged over the samples of each row of the data: `chi`, `standard_error` (k, m) of rows `row` (m,)."""

    names: tuple[str, ...]
    row: NDArray[np.int64]
    chi: Floats
    standard_error: Floats
    degrees_of_freedom: float

    def half_width(self, level: float = 0.95) -> Floats:
        """χ ± this (k, m) is an interval for each entry."""
        check_level(level)
        return float(stdtrit(self.degrees_of_freedom, (1 + level) / 2)) * self.standard_error


class Response:
    """χ (k rows, n samples) in units of [φ] · nats; `tree` holds everything as labelled arrays (xarray).

    `names` (k,): an observable where one component was measured, a component where one observable was, else
    "component: observable". The component loss is a row only where no other observable was asked for.
    """

    def __init__(self, tree: "xarray.DataTree", task: Task | None = None) -> None:
        self.tree, self.task = tree, task
        data = tree["susceptibility"].to_dataset().load()
        self.data = data
        components = [str(name) for name in data["component"].values]
        observables = [str(name) for name in data["observable"].values]
        shown = [name for name in observables if name != COMPONENT_LOSS] or observables
        self._places = [(components.index(c), observables.index(o)) for c in components for o in shown]
        self.names = tuple(_name(c, o, len(components), len(shown)) for c in components for o in shown)
        self.rows_of = tuple((c, o) for c in components for o in shown)

    @property
    def estimator(self) -> dict[str, str]:
        """How each component's χ was estimated: covariance, pathwise or first-order (a first look)."""
        names, estimators = self.data["component"].values, self.data["estimator"].values
        return dict(zip(map(str, names), map(str, estimators), strict=True))

    @property
    def n_beta(self) -> float:
        """nβ of the chains."""
        return float(self.data.attrs["n_beta"])

    @property
    def chi(self) -> Floats:
        """χ (k, n)."""
        return self._pick("chi")

    @property
    def standard_error(self) -> Floats:
        """Monte Carlo standard errors (k, n)."""
        return self._pick("standard_error")

    @property
    def reliability(self) -> dict[str, float]:
        """Split-half reliability of each row, stepped up to all chains."""
        return dict(zip(self.names, self._pick("reliability").tolist(), strict=True))

    @property
    def r_hat(self) -> dict[str, float]:
        """Split R-hat of each observable over the draws; NaN for a first look."""
        return dict(zip(self.names, self._pick("r_hat").tolist(), strict=True))

    @property
    def row(self) -> NDArray[np.int64]:
        """Row of the data that each sample lies in (n,)."""
        return self.data["row"].values

    @property
    def position(self) -> NDArray[np.int64]:
        """Place of each sample in its row (n,)."""
        return self.data["position"].values

    @property
    def base_weights(self) -> Floats:
        """q (n,) of the samples, summing to 1."""
        return self.data["base_weight"].values

    @property
    def refused(self) -> dict[str, str]:
        """Components whose chains gave no result, with why and what to change."""
        return refused_components(self.tree)

    @property
    def warnings(self) -> list[str]:
        """What a reader should know, worst first."""
        lines = [f"{name} has no result: {why}" for name, why in self.refused.items()]
        lines += [f"{name}: {why}" for name, reasons in component_warnings(self.tree).items() for why in reasons]
        if weak := [name for name, value in self.reliability.items() if value < WEAK]:
            lines.append(f"reliability under {WEAK}, mostly noise: {', '.join(weak)}")
        for name, reasons in excluded_chains(self.tree).items():
            lines += [f"left out, diverged: {name}, {why}" for why in reasons]
        return lines

    def half_width(self, level: float = 0.95) -> Floats:
        """χ ± this (k, n) is an interval for each entry."""
        check_level(level)
        freedom = np.array([float(self.data["degrees_of_freedom"][c]) for c, _ in self._places])
        return stdtrit(freedom, (1 + level) / 2)[:, None] * self.standard_error

    def index(self, name: str | tuple[str, str]) -> int:
        """Where a row is; raises `PatterningError` for a name that is none."""
        if name in self.names:
            return self.names.index(str(name))
        if name in self.rows_of:
            return self.rows_of.index(name)  # type: ignore[arg-type]
        raise PatterningError(f"χ has no row {name!r}: it has {', '.join(self.names)}")

    def top(
        self, count: int = 5, name: str | tuple[str, str] | None = None, *, decode: Decode | None = None
    ) -> list[Example]:
        """The `count` samples that raise ⟨φ⟩ of row `name` most when they gain weight, then the `count` that lower it.

        `decode`: a tokenizer, or a function of (row of the data, position) → text. Without a name, of the first row.
        """
        check_whole("count", count, 1)
        k = 0 if name is None else self.index(name)
        chi, width = self.chi[k], self.half_width()[k]
        order = np.argsort(-chi, kind="stable")
        places = [*order[:count], *order[::-1][:count][::-1]] if len(order) > 2 * count else [*order]
        ids = self.row if self.task is None else self.task.ids[self.row]
        return [
            Example(
                id=ids[j].item() if hasattr(ids[j], "item") else ids[j],
                row=int(self.row[j]),
                position=int(self.position[j]),
                chi=float(chi[j]),
                half_width=float(width[j]),
                text=self._text(decode, int(self.row[j]), int(self.position[j])),
            )
            for j in places
        ]

    def rows(self) -> RowMeans:
        """χ of each row of the data: the mean over its samples under q, with errors; masked tokens are none of them."""
        members, place = np.unique(self.row, return_inverse=True)
        q = self.base_weights
        mass = np.bincount(place, q)
        chains = self.by_chain()

        def mean(values: Floats) -> Floats:
            return np.bincount(place, q * values) / np.where(mass > 0, mass, 1.0)

        by_chain = np.stack([[mean(row) for row in chain] for chain in chains])  # (c, k, m)
        chi, count = by_chain.mean(0), len(by_chain)
        moderated = [moderate(by_chain[:, i].var(0, ddof=1), count - 1, np.abs(chi[i])) for i in range(len(chi))]
        error = np.sqrt(np.stack([variance for variance, _ in moderated]) / count)
        return RowMeans(self.names, members, chi, error, min(freedom for _, freedom in moderated))

    def modes(self, **settings: Any) -> Modes:
        """Modes of χ over its rows (`response.modes.find_modes`), with their noise floor and stability."""
        halves = np.stack([self._pick_half(half) for half in (0, 1)])
        return find_modes(self.chi, halves, self.names, **settings)

    def by_chain(self) -> Floats:
        """χ of each chain alone (c, k, n), the independent units; chains that some component excluded are left out."""
        chains = np.stack([self.data["chi_of_chain"].values[:, c, o] for c, o in self._places], axis=1)
        kept = np.isfinite(chains).all((1, 2))
        if kept.sum() < 2:
            raise PatterningError("fewer than 2 chains are known of every row: errors over chains cannot be given")
        return chains[kept]

    def invert(
        self,
        wanted: Mapping[str | tuple[str, str], float],
        hold: Sequence[str | tuple[str, str]] = (),
        *,
        free: Any = None,
        min_reliability: float = MIN_RELIABILITY,
    ) -> Direction:
        """The smallest change of the data's weights for a wanted change: ``invert({"8s": -1}, hold=["rest"])``.

        Signs and ratios alone count (for the top of this file, which sign to ask for): the size of the change is set by
        the strength of the weights. Rows in `hold` are asked not to move; the others are left free. `free` (n,) bool:
        samples that may gain or lose weight. A direction that cannot be trusted says why in `refused`.
        """
        names = {self.names[self.index(name)]: value for name, value in wanted.items()}
        held = [self.names[self.index(name)] for name in hold]
        halves = [self._pick_half(half) for half in (0, 1)]
        rows = Rows(
            self.names, self.chi, self.by_chain(), (halves[0] - halves[1]) / 2, tuple(self.reliability.values())
        )
        samples = Samples(self.row, self.position, self.base_weights, np.arange(len(self.row)))
        return find_direction(
            rows, samples, self._data(), self.n_beta, names, held, free=free, min_reliability=min_reliability
        )

    def save(self, path: str | Path) -> None:
        """Write a Zarr folder (whole, with checksums) that xarray and ArviZ open, and `load` gives back."""
        save_tree(self.tree, Path(path))

    def page(self, path: str | Path, title: str = "Susceptibilities", *, decode: Decode | None = None) -> None:
        """Write one self-contained HTML page."""
        from patterning.core.store import write_whole
        from patterning.face.response_page import response_page

        del decode
        write_whole(Path(path), response_page(self.tree, title).encode())

    def __str__(self) -> str:
        """Every row with its reliability and half-widths, then the warnings."""
        width = np.median(self.half_width(), axis=1)
        size = np.median(np.abs(self.chi), axis=1)
        head = f"{'row':24} {'estimator':12} {'reliability':>11} {'R-hat':>7} {'median |χ|':>11} {'± (95 %)':>9}"
        lines = [
            f"{name[:24]:24} {self.estimator[c]:12} {self.reliability[name]:11.2f} {self.r_hat[name]:7.3f} "
            f"{size[i]:11.3g} {width[i]:9.2g}"
            for i, (name, (c, _)) in enumerate(zip(self.names, self.rows_of, strict=True))
        ]
        first = f"χ: {len(self.names)} rows, {len(self.row):,} samples, {self._settings()}"
        return "\n".join([first, head, *lines, *(f"! {line}" for line in self.warnings)])

    __repr__ = __str__

    def _settings(self) -> str:
        at = self.data.attrs
        signs = (("nβ", "n_beta"), ("γ", "localization"), ("ε", "step_size"))
        return ", ".join(f"{sign} {at[key]:g}" for sign, key in signs if key in at)

    def _pick(self, field: str) -> Floats:
        return np.stack([self.data[field].values[c, o] for c, o in self._places])

    def _pick_half(self, half: int) -> Floats:
        values = self.data["halves"].transpose("half", "component", "observable", "sample").values[half]
        return np.stack([values[c, o] for c, o in self._places])

    def _text(self, decode: Decode | None, row: int, position: int) -> str:
        return "" if decode is None else as_text(decode, self._attached(), row, position)

    def _attached(self) -> Task:
        if self.task is None:
            raise PatterningError("the data is not known here: load the response with its task, load(path, task)")
        return self.task

    def _data(self) -> Data | None:
        if self.task is None:
            return None
        task = self.task
        own = task.sample_weights
        cells = np.ones((len(task.base_weights), task.samples_per_row)) if own is None else own.double().numpy()
        share = task.base_weights.numpy()[:, None] * cells / np.maximum(cells.sum(1, keepdims=True), 1e-300)
        return Data(len(task.base_weights), task.samples_per_row, task.ids, task.data_fingerprint, share)


def load(path: str | Path, task: Task | None = None) -> Response:
    """The response that `Response.save` wrote (or `patterning response`: its chi.zarr).

    With its `task`, samples can be shown and weights can be made; raises `PatterningError` where it is another task's.
    """
    tree = open_response(Path(path))
    if task is not None and tree["susceptibility"].attrs["task"] != task.fingerprint:
        raise PatterningError(
            f"{path} was measured on another task (fingerprint {tree['susceptibility'].attrs['task']}, not "
            f"{task.fingerprint}): the model, its weights, the loss or the data have changed"
        )
    return Response(tree, task)


def _name(component: str, observable: str, components: int, observables: int) -> str:
    if observables == 1 and (observable == COMPONENT_LOSS or components > 1):
        return component
    return observable if components == 1 else f"{component}: {observable}"
