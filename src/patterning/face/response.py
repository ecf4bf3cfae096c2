"""`Response`: the susceptibility matrix χ as one object, with its errors, its samples and what can be done with it.

A row of χ is a component with an observable; a column is a sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import stdtrit

from patterning.core.arrays import Floats, check_level
from patterning.core.errors import PatterningError, check_whole
from patterning.core.samples import Data, Samples
from patterning.core.shapes import Chi, PerSample, SampleNumbers, shaped
from patterning.core.task import Task
from patterning.face.examples import Decode, Example, Texts, as_text
from patterning.face.response_table import cautions, component_table, warnings_of
from patterning.face.rows import RowMeans, of_data, share_of_data, shown_rows
from patterning.face.signs import as_docstring
from patterning.intervention.direction import MIN_RELIABILITY, Direction, Rows, find_direction
from patterning.response.moderated import moderate
from patterning.response.modes import Modes, find_modes
from patterning.response.sample import COMPONENT_LOSS
from patterning.response.store import r_hat_apart, refused_components, save_tree

if TYPE_CHECKING:
    import xarray


class Response:
    """χ (k rows, n samples) in units of [φ] · nats; `tree` holds everything as labelled arrays (xarray).

    `names` (k,): an observable where one component was measured, a component where one observable was, else
    "component: observable". The component loss is a row only where no other observable was asked for.
    """

    def __init__(self, tree: "xarray.DataTree", task: Task | None = None) -> None:
        self.tree, self.task = tree, task
        data = tree["susceptibility"].to_dataset().load()
        self.data = data
        rows = shown_rows(data)
        self._places = [(row.c, row.o) for row in rows]
        self.names = tuple(row.name for row in rows)
        self.rows_of = tuple((row.component, row.observable) for row in rows)

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
    @shaped
    def chi(self) -> Chi:
        """χ (k, n)."""
        return self._pick("chi")

    @property
    @shaped
    def standard_error(self) -> Chi:
        """Monte Carlo standard errors (k, n)."""
        return self._pick("standard_error")

    @property
    def errors_known(self) -> bool:
        """False for a table that another program made without errors: standard errors and reliability are NaN."""
        return bool(np.isfinite(self.data["standard_error"].values).any())

    @property
    def reliability(self) -> dict[str, float]:
        """Split-half reliability of each row, stepped up to all chains."""
        return dict(zip(self.names, self._pick("reliability").tolist(), strict=True))

    @property
    def r_hat(self) -> dict[str, float]:
        """Split R-hat of each observable φ (not of χ) over the draws: have the chains settled? NaN for a first look."""
        return dict(zip(self.names, self._pick("r_hat").tolist(), strict=True))

    @property
    @shaped
    def row(self) -> SampleNumbers:
        """Row of the data that each sample lies in (n,)."""
        return self.data["row"].values

    @property
    @shaped
    def position(self) -> SampleNumbers:
        """Place of each sample in its row (n,)."""
        return self.data["position"].values

    @property
    @shaped
    def base_weights(self) -> PerSample:
        """q (n,) of the samples, summing to 1."""
        return self.data["base_weight"].values

    @property
    def refused(self) -> dict[str, str]:
        """Components whose chains gave no result, with why and what to change."""
        return refused_components(self.tree)

    @property
    def calibration(self) -> str:
        """What `sampler="calibrate"` chose, and its verdict; empty where the settings were given."""
        return str(self.data.attrs.get("calibration", ""))

    @property
    def warnings(self) -> list[str]:
        """What a reader should know, worst first."""
        groups = cautions(warnings_of(self.tree, component_table(self.tree)))
        return [line for group in groups for line in group.lines]

    @shaped
    def half_width(self, level: float = 0.95) -> Chi:
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
        Of a language model, position p is the prediction of token p + 1, both counted from 0.
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
                of_token=self.task is not None and self.task.samples_per_row > 1,
                text=self._text(decode, int(self.row[j]), int(self.position[j])),
            )
            for j in places
        ]

    def rows(self) -> RowMeans:
        """χ of each row of the data: the mean over its samples under q, with errors; masked tokens are none of them.

        The samples of a row without a base weight count alike.
        """
        members, place = np.unique(self.row, return_inverse=True)
        q = np.where(np.bincount(place, self.base_weights)[place] > 0, self.base_weights, 1.0)
        mass = np.bincount(place, q)
        known = self.data["chi_of_chain"].transpose("chain", "component", "observable", "sample").values
        means, errors, freedoms = [], [], []
        if not self.errors_known:
            mean = np.stack([np.bincount(place, q * chi) / mass for chi in self.chi])
            return RowMeans(self.names, members, mean, np.full_like(mean, np.nan), float("nan"))
        for c, o in self._places:
            chains = [chain for chain in known[:, c, o] if np.isfinite(chain).all()]
            if len(chains) < 2:
                raise PatterningError("fewer than 2 chains are known: errors over chains cannot be given")
            table = np.stack([np.bincount(place, q * chain) / mass for chain in chains])
            variance, freedom = moderate(table.var(0, ddof=1), len(table) - 1, np.abs(table.mean(0)))
            means.append(table.mean(0))
            errors.append(np.sqrt(variance / len(table)))
            freedoms.append(freedom)
        return RowMeans(self.names, members, np.stack(means), np.stack(errors), min(freedoms))

    def modes(self, **settings: Any) -> Modes:
        """Modes of χ over its rows (`response.modes.find_modes`), with their noise floor and stability."""
        halves = np.stack([self._pick_half(half) for half in (0, 1)])
        return find_modes(self.chi, halves, self.names, **settings)

    def by_chain(self) -> Floats:
        """χ of each chain alone (c, k, n), the independent units; chains that some component excluded are left out."""
        known = self.data["chi_of_chain"].transpose("chain", "component", "observable", "sample").values
        chains = np.stack([known[:, c, o] for c, o in self._places], axis=1)
        kept = np.isfinite(chains).all((1, 2))
        if kept.sum() < 2:
            raise PatterningError("fewer than 2 chains are known of every row: errors over chains cannot be given")
        return chains[kept]

    def invert(
        self,
        wanted: Mapping[str, float] | Mapping[str | tuple[str, str], float],
        hold: str | Sequence[str | tuple[str, str]] = (),
        *,
        free: Any = None,
        min_reliability: float = MIN_RELIABILITY,
    ) -> Direction:
        """The smallest change of the data's weights for a wanted change: ``invert({"8s": -1}, hold=["rest"])``.

        Signs and ratios alone count (which sign to ask for: `help(Response)`); the size of the change is set by the
        strength of the weights. Rows in `hold` are asked not to move; the others are left free. `free` (n,) bool:
        samples that may gain or lose weight. A direction that cannot be trusted says why in `refused`; one from χ
        without errors is refused, and what it predicts has none.
        """
        if not isinstance(wanted, Mapping):
            raise PatterningError(
                f"the wanted change is {wanted!r}: give rows and signs, as in {{{self.names[0]!r}: -1}}"
            )
        names = dict[str, float]()
        for name, value in wanted.items():
            if (row := self.names[self.index(name)]) in names:
                raise PatterningError(f"row {row!r} is wanted twice, the second time as {name!r}: ask for it once")
            names[row] = value
        held = [self.names[self.index(name)] for name in ([hold] if isinstance(hold, str) else hold or ())]
        if not np.isfinite(self.n_beta):
            raise PatterningError("nβ of this χ is not known: give it, pt.from_devinterp(path, n_beta=...)")
        halves = [self._pick_half(half) for half in (0, 1)] if self.errors_known else [self.chi, self.chi]
        chains = self.by_chain() if self.errors_known else np.stack(halves)  # the same twice: no error can be told
        rows = Rows(
            self.names, self.chi, chains, (halves[0] - halves[1]) / 2, tuple(self.reliability.values()),
            tuple(r_hat_apart(self.data).values[c, o] for c, o in self._places),
        )  # fmt: skip
        samples = Samples(
            self.row, self.position, self.base_weights, np.arange(len(self.row)), share_of_data(self.data)
        )
        direction = find_direction(
            rows, samples, self._data(), self.n_beta, names, held, free=free, min_reliability=min_reliability
        )
        kinds = dict(zip(self.names, (observable for _, observable in self.rows_of), strict=True))
        losses = tuple(name for name in direction.wanted if kinds[name] == COMPONENT_LOSS)
        return replace(direction, component_losses=losses)

    def save(self, path: str | Path) -> None:
        """Write a Zarr folder (whole, with checksums) that xarray and ArviZ open, and `load` gives back."""
        save_tree(self.tree, Path(path))

    def page(self, path: str | Path, title: str = "Susceptibilities", *, decode: Decode | None = None) -> None:
        """Write one self-contained HTML page; samples are shown by `decode` (as in `top`), as pictures or by number."""
        from patterning.face.response_page import response_page
        from patterning.report.page import write_page

        write_page(path, lambda: response_page(self.tree, title, task=self.task, decode=decode))

    def __str__(self) -> str:
        """Every row with its reliability, the medians of |χ| and of its 95 % half-width, then the warnings."""
        width = np.median(self.half_width(), axis=1)
        size = np.median(np.abs(self.chi), axis=1)
        head = f"{'row':24} {'estimator':12} {'reliability':>11} {'R-hat':>7} {'median |χ|':>11} {'median ±':>9}"
        unknown = "" if self.errors_known else " (error unknown)"
        lines = [
            f"{name[:24]:24} {self.estimator[c]:12} {_number(self.reliability[name], '.2f'):>11} "
            f"{_number(self.r_hat[name], '.3f'):>7} {size[i]:11.3g} {_number(width[i] or np.nan, '.2g'):>9}{unknown}"
            for i, (name, (c, _)) in enumerate(zip(self.names, self.rows_of, strict=True))
        ]
        count = "1 row" if len(self.names) == 1 else f"{len(self.names)} rows"
        first = f"χ: {count}, {len(self.row):,} samples{of_data(self.data)}, {self._settings()}"
        return "\n".join([first, head, *lines, *(f"! {line}" for line in self.warnings)])

    __repr__ = __str__

    def _settings(self) -> str:
        at = self.data.attrs
        signs = (("nβ", "n_beta"), ("γ", "localization"), ("ε", "step_size"))
        return ", ".join(f"{sign} {_number(at[key], 'g')}" for sign, key in signs if key in at)

    def _pick(self, field: str) -> Floats:
        return np.stack([self.data[field].values[c, o] for c, o in self._places])

    def _pick_half(self, half: int) -> Floats:
        values = self.data["halves"].transpose("half", "component", "observable", "sample").values[half]
        return np.stack([values[c, o] for c, o in self._places])

    def _text(self, decode: Decode | None, row: int, position: int) -> str:
        return "" if decode is None else as_text(decode, self._attached(), row, position)

    def _attached(self) -> "Task | Texts":
        if self.task is not None:
            return self.task
        if "tokens" in self.data:  # devinterp stores the texts that were probed
            tokens = torch.from_numpy(self.data["tokens"].values)
            return Texts({"input_ids": tokens}, tokens.shape[1] - 1)
        raise PatterningError("the data is not known here: load the response with its task, load(path, task)")

    def _data(self) -> Data | None:
        if self.task is None:
            return None
        task = self.task
        own = task.sample_weights
        cells = np.ones((len(task.base_weights), task.samples_per_row)) if own is None else own.double().cpu().numpy()
        share = task.base_weights.numpy()[:, None] * cells / np.maximum(cells.sum(1, keepdims=True), 1e-300)
        return Data(len(task.base_weights), task.samples_per_row, task.ids, task.data_fingerprint, share)


Response.__doc__ = f"{Response.__doc__}\n{as_docstring()}\n"


def _number(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "n/a"
