"""One row of χ as a page shows it: its samples in order, as a curve with its band and as lists of both ends."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from scipy.special import stdtrit

from patterning.core.task import Task
from patterning.face.examples import Decode, Example, as_text
from patterning.face.rows import ChiRow
from patterning.face.sample_views import Places, sample_list, where
from patterning.face.signs import in_words
from patterning.report.charts import BLUE, GREY, Curve, curves

if TYPE_CHECKING:
    import xarray

SHOWN = 5
"""Samples shown at either end of a row of χ."""
POINTS = 160
"""Points of a line."""
LETTERS = 48
"""Of a sample's text in a sentence."""


class RowView:
    """A row of χ with its samples in order, highest first."""

    def __init__(self, data: "xarray.Dataset", row: ChiRow, task: Task | None, decode: Decode | None) -> None:
        n = data.sizes["sample"]
        self.row, self.task, self.decode = row, task, decode
        self.chi, error = row.of(data, "chi"), row.of(data, "standard_error")
        self.width = float(stdtrit(data["degrees_of_freedom"].values[row.c], 0.975)) * error
        self.places = Places(
            data["row"].values if "row" in data.coords else np.arange(n),
            data["position"].values if "position" in data.coords else np.zeros(n, dtype=np.int64),
            self.chi,
        )
        self.order = np.argsort(-self.chi, kind="stable")

    def example(self, j: int) -> Example:
        """Sample j."""
        row = int(self.places.row[j])
        name = row if self.task is None else self.task.ids[row]
        return Example(name, row, int(self.places.position[j]), float(self.chi[j]), float(self.width[j]), "")

    def ends(self, count: int) -> tuple[list[Example], list[Example]]:
        """The samples of the most positive χ, and those of the most negative, the most extreme first."""
        raising = [int(j) for j in self.order[:count] if self.chi[j] > 0]
        lowering = [int(j) for j in self.order[::-1][:count] if self.chi[j] < 0]
        return [self.example(j) for j in raising], [self.example(j) for j in lowering]

    def most(self) -> Example:
        """The sample of the largest |χ|."""
        return self.example(int(np.nanargmax(np.abs(self.chi))) if np.isfinite(self.chi).any() else 0)

    def called(self, example: Example) -> str:
        """A sample in a sentence: by its text, cut short, and its place; by its place alone where it has no text."""
        place = where(example, self.task)
        if self.task is None or self.decode is None:
            return place
        text = as_text(self.decode, self.task, example.row, example.position)
        if len(text) > LETTERS:  # a token stands at the end of its context, and the head of a whole text says most
            text = f"…{text[-LETTERS:]}" if self.task.samples_per_row > 1 else f"{text[:LETTERS]}…"
        return f"“{text.strip()}” ({place})"

    def samples(self, examples: Sequence[Example]) -> Markup:
        """A list of them."""
        return sample_list(examples, self.places, self.task, self.decode)

    def curve(self) -> Markup:
        """χ of all samples from the highest to the lowest, with its 95 % band."""
        picks = self.order[thinned(len(self.order), POINTS)]
        place = (np.flatnonzero(np.isin(self.order, picks)) + 1).tolist()
        chi, width = self.chi[picks], self.width[picks]
        band = {"low": (chi - width).tolist(), "high": (chi + width).tolist()} if width.any() else {}
        lines = [
            Curve("", [place[0], place[-1]], [0.0, 0.0], GREY, dashed=True),
            Curve(f"χ of {self.row.name}", place, chi.tolist(), BLUE, **band),
        ]
        return curves(lines, "samples, from the highest χ to the lowest", "χ, [φ] · nats", width=420, height=230)


def row_details(view: RowView, numbers: Mapping[str, Any], opened: bool) -> Markup:
    """A row that opens and closes, with its numbers (`response_table.component_table`) in its heading."""
    raising, lowering = view.ends(SHOWN)
    nothing = Markup('<p class="quiet">no sample</p>')
    r_hat = f", R-hat {numbers['r_hat']:.3f}" if np.isfinite(numbers["r_hat"]) else ""
    reliability = f"reliability {numbers['reliability']:.2f}" if np.isfinite(numbers["reliability"]) else "no spread"
    return Markup(
        '<details class="rowchi"{}><summary>{} · {}{}</summary><p class="quiet">{}</p><div class="columns">'
        "<div>{}</div><div><h4>Weighting these up raises ⟨φ⟩ most</h4>{}"
        "<h4>Weighting these up lowers ⟨φ⟩ most</h4>{}</div></div></details>"
    ).format(
        Markup(" open") if opened else "", view.row.name, reliability, r_hat,
        in_words(view.row.name, view.row.component, view.row.observable),
        view.curve() if np.isfinite(view.chi).all() else "",
        view.samples(raising) if raising else nothing, view.samples(lowering) if lowering else nothing,
    )  # fmt: skip


def thinned(count: int, points: int) -> NDArray[np.int64]:
    """At most `points` whole numbers from 0 to count - 1, both ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, points)).round().astype(int))
